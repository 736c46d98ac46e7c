"""The fleet as all workers of this machine together know it: each tells what it sees, and the newest look at a server counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hx_gateway.access.moments import written

if TYPE_CHECKING:
    from hx_gateway.control.dependencies import Gateway
    from hx_gateway.fleet.breaker import Breaker
    from hx_gateway.fleet.endpoint import Endpoint

_WORST = {"closed": 0, "half-open": 1, "open": 2}


def told(gateway: Gateway) -> dict[str, Any]:
    """What this worker sees: ``endpoints`` by name, and how many wait for each public name."""
    registry, now_s, wall_s = gateway.registry, gateway.clock.monotonic(), gateway.clock.wall()
    queues = gateway.proxy.hotel.queues
    return {
        "endpoints": {name: _endpoint(gateway, one, now_s, wall_s) for name, one in registry.endpoints.items()},
        "waiting": {name: queue.size for name, queue in queues.items()},
    }


def together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What several workers see, as one: the first is who asks, and what it has configured is shown.

    During a handover some are of another version: what they do not tell is taken from who asks, what only they tell is left out.
    """
    endpoints: dict[str, dict[str, Any]] = {}
    for name, own in answers[0]["endpoints"].items():
        seen = [answer["endpoints"][name] for answer in answers if name in answer.get("endpoints", ())]
        newest = max(seen, key=lambda one: one.get("checked_ms") or 0)
        endpoints[name] = {
            **{key: newest.get(key, value) for key, value in own.items()},
            **_summed(seen),
            "drained": own["drained"],
            "workers": len(seen),
            "models": [
                {**model, **_summed([other for one in seen for other in one.get("models", ()) if other.get("model") == model["model"]])}
                for model in own["models"]
            ],
        }
        endpoints[name]["state"] = _state(endpoints[name])
    waiting: dict[str, int] = {}
    for answer in answers:
        for name, count in answer.get("waiting", {}).items():
            waiting[name] = waiting.get(name, 0) + count
    return {"endpoints": endpoints, "waiting": waiting}


def _summed(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """What is under way in all workers, and the worst of their breakers; the first is that of who asks."""
    breakers = [one.get("breaker", {}) for one in seen]
    worst = max(breakers, key=lambda one: _WORST.get(one.get("state", ""), 0))
    alike = sum(one.get("state") == worst.get("state") for one in breakers)
    return {"in_flight": sum(one.get("in_flight", 0) for one in seen), "breaker": {**breakers[0], **worst, "in_workers": alike}}


def _state(one: dict[str, Any]) -> str:
    if one["drained"]:
        return "draining" if one["in_flight"] else "drained"
    if one["healthy"] is False:
        return "down"
    if one["breaker"]["state"] != "closed":
        return "resting"
    if one["healthy"] is None:
        return "unknown"
    return "partly" if any(model["breaker"]["state"] != "closed" for model in one["models"]) else "up"


def _breaker(breaker: Breaker, now_s: float) -> dict[str, Any]:
    return {"state": breaker.state, "failures": breaker.failures, "retry_after_s": round(breaker.retry_after_s(now_s), 1)}


def _endpoint(gateway: Gateway, endpoint: Endpoint, now_s: float, wall_s: float) -> dict[str, Any]:
    facts, load, drain = endpoint.facts, endpoint.facts.load, gateway.backing.drains.drained.get(endpoint.name)
    forward = gateway.registry.forward_to is endpoint
    return {
        "name": endpoint.name,
        "address": str(endpoint.address),
        "provider": endpoint.provider.name if endpoint.provider is not None else None,
        "engine": facts.engine or None,
        "version": facts.version or None,
        "healthy": facts.healthy,
        "error": facts.error or None,
        "checked_ms": int((wall_s - (now_s - facts.checked_s)) * 1000) if facts.checked_s else None,
        "breaker": _breaker(endpoint.breaker, now_s),
        "drained": {"by": drain.by, "at": written(drain.at_ms)} if drain is not None and endpoint.drained else None,
        "in_flight": endpoint.in_flight,
        "max_concurrent": endpoint.max_concurrent or None,
        "slots": endpoint.slots or None,
        "running": load.running if load is not None else None,
        "waiting": load.waiting if load is not None else None,
        "cache_used": load.cache_used if load is not None else None,
        "sleeping": facts.sleeping,
        "memory_bytes": endpoint.residency.memory or None,
        "loaded": [
            {
                "name": held.name,
                "size_bytes": held.size or None,
                "accelerator_share": round(1.0 - held.spilled, 3),
                "context": held.context_length or None,
                "expires_ms": int(held.expires_s * 1000) or None,
            }
            for held in sorted(facts.memory.values(), key=lambda held: -held.size)
        ]
        if facts.loaded is not None
        else None,
        "models": [
            {
                "model": one.model,
                "upstream_model": one.upstream_model,
                "in_flight": one.in_flight,
                "max_concurrent": one.max_concurrent or None,
                "minute": {unit: {"left": left, "of": most} for unit, left, most in gateway.proxy.ceilings.minute(one, now_s)},
                "weight": one.weight,
                "breaker": _breaker(one.breaker, now_s),
                "size_bytes": int(one.size) or None,
                "loaded": facts.in_memory(one.upstream_model) is not None if facts.loaded is not None else None,
                "tokens_per_s": round(one.pace.decode_rate, 1) if one.pace.seen else None,
            }
            for one in sorted(gateway.registry.at(endpoint), key=lambda one: one.model)
        ],
        "forwards": forward,
    }
