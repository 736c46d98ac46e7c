"""A routing decision in words and numbers: candidates, what removed them, each term in seconds, and what would change the choice."""

from __future__ import annotations

from typing import Any

from hx_gateway.core.context import Exchange
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.router import Candidate, Decision, summed


def told(exchange: Exchange, ask: Ask, decision: Decision, shown: bool) -> dict[str, Any]:
    """The decision as the explain route answers it.

    Args:
        exchange: The request.
        ask: As the router saw it.
        decision: The choice with its reasons.
        shown: Whether the caller may see the endpoints' names.
    """
    target: Target = ask.target
    names = _names(target.whole or target, shown)
    chosen = decision.chosen
    best = next((candidate for candidate in decision.candidates if candidate.deployment is chosen), None)
    return {
        "object": "route.explanation",
        "id": exchange.id,
        "model": exchange.asked,
        "target": target.name,
        "stands_in_for": target.instead_of or None,
        "kind": target.kind,
        "policy": decision.policy,
        "request": {
            "prompt_tokens_estimated": round(ask.prompt_tokens) or None,
            "output_tokens_at_most": round(ask.output_tokens) or None,
            "prefix_blocks": len(ask.blocks),
            "has_session": bool(ask.session),
        },
        "choice": {"model": chosen.model, "endpoint": names[chosen]} if chosen is not None else None,
        "rule": decision.rule,
        "sentence": _sentence(decision, best, names),
        "weights": dict(decision.weights),
        "candidates": [_candidate(candidate, candidate.deployment is chosen, names) for candidate in decision.candidates],
        "excluded": [
            {"model": deployment.model, "endpoint": deployment.endpoint.name if shown else "hidden", "reason": reason}
            for deployment, reason in target.excluded
        ],
        "would_change": _changes(decision, best, names),
        "stands_in": {"down": list(target.down), "context": list(target.context)},
    }


def _names(target: Target, shown: bool) -> dict[Deployment, str]:
    return {
        deployment: deployment.endpoint.name if shown else f"endpoint-{number}"
        for number, deployment in enumerate(target.deployments, start=1)
    }


def _candidate(candidate: Candidate, chosen: bool, names: dict[Deployment, str]) -> dict[str, Any]:
    deployment = candidate.deployment
    return {
        "model": deployment.model,
        "endpoint": names[deployment],
        "chosen": chosen,
        "removed": candidate.removed or None,
        "terms": {name: round(seconds, 6) for name, seconds in candidate.terms.items()},
        "total": round(candidate.total, 6) if candidate.terms else None,
        "cached_tokens": round(candidate.cached_tokens),
        "in_flight": deployment.in_flight,
        "endpoint_in_flight": deployment.endpoint.in_flight,
        "weight": deployment.weight,
        "breaker": deployment.breaker.state if deployment.breaker.state != "closed" else deployment.endpoint.breaker.state,
    }


def _sentence(decision: Decision, best: Candidate | None, names: dict[Deployment, str]) -> str:
    if best is None:
        return f"no deployment can take the request: {decision.rule}"
    where = f"{best.deployment.model} on {names[best.deployment]}"
    if not best.terms:
        return f"{where}: {decision.rule}"
    sum_of = summed(best.terms, decision.weights)
    said = f"{best.total:.2f} s = {sum_of}" if sum_of else "nothing to wait for"
    return f"{where}: {said}, the least of {sum(1 for candidate in decision.candidates if not candidate.removed)}"


def _changes(decision: Decision, best: Candidate | None, names: dict[Deployment, str]) -> list[str]:
    """What would have to be different for another candidate to be chosen."""
    changes = []
    for candidate in decision.candidates:
        where = f"{candidate.deployment.model} on {names[candidate.deployment]}"
        if candidate.removed:
            changes.append(f"{where} could be chosen if not: {candidate.removed}")
        elif best is not None and candidate is not best and candidate.terms:
            behind = candidate.total - best.total
            counts = decision.weights
            mores = {name: (value - best.terms.get(name, 0.0)) * counts.get(name, 1.0) for name, value in candidate.terms.items()}
            worst = max(mores, key=lambda name: mores[name])
            more = mores[worst]
            if behind <= 0.0 or more <= 0.0:
                changes.append(f"{where} is as good; near ties are drawn at random")
            else:
                changes.append(f"{where} is {behind:.2f} s behind, mostly by {worst} (+{more:.2f} s)")
    return changes
