"""A routing decision in words and numbers: candidates, what removed them, each term in seconds, and what would change the choice."""

from __future__ import annotations

from collections.abc import Iterable
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
        **_reasons(decision, names),
        "excluded": [
            {"model": deployment.model, "endpoint": deployment.endpoint.name if shown else "hidden", "reason": reason}
            for deployment, reason in target.excluded
        ],
        "stands_in": {"down": list(target.down), "context": list(target.context)},
    }


Remembered = tuple[str, str, str, Deployment, int, str, Decision | None]
"""Request, name, policy, deployment, number of the attempt, reason, and while there was time and room for it everything that was weighed."""


def remembered(choices: Iterable[Remembered], whole: bool = False) -> list[dict[str, Any]]:
    """Choices that were made, as administrators may see them.

    Args:
        choices: As the proxy keeps them.
        whole: With everything that was weighed, where it is kept: ``explanation``, else null.
    """
    found = []
    for id, name, rule, deployment, attempt, reason, decision in choices:
        one: dict[str, Any] = {
            "id": id,
            "target": name,
            "policy": rule,
            "model": deployment.model,
            "endpoint": deployment.endpoint.name,
            "attempt": attempt + 1,
            "reason": reason or (decision.rule if decision is not None else None) or None,
        }
        if whole:
            one["explanation"] = None
            if decision is not None and decision.candidates:
                names = {candidate.deployment: candidate.deployment.endpoint.name for candidate in decision.candidates}
                one["explanation"] = _reasons(decision, names, False)
        found.append(one)
    return found


def _reasons(decision: Decision, names: dict[Deployment, str], now: bool = True) -> dict[str, Any]:
    """What was weighed; how busy everything is only where that is ``now``."""
    best = next((candidate for candidate in decision.candidates if candidate.deployment is decision.chosen), None)
    return {
        "rule": decision.rule,
        "sentence": _sentence(decision, best, names),
        "weights": dict(decision.weights),
        "candidates": [_candidate(candidate, candidate is best, names, now) for candidate in decision.candidates],
        "would_change": _changes(decision, best, names),
    }


def _names(target: Target, shown: bool) -> dict[Deployment, str]:
    return {
        deployment: deployment.endpoint.name if shown else f"endpoint-{number}"
        for number, deployment in enumerate(target.deployments, start=1)
    }


def _candidate(candidate: Candidate, chosen: bool, names: dict[Deployment, str], now: bool) -> dict[str, Any]:
    deployment = candidate.deployment
    live = {
        "in_flight": deployment.in_flight,
        "endpoint_in_flight": deployment.endpoint.in_flight,
        "weight": deployment.weight,
        "breaker": deployment.breaker.state if deployment.breaker.state != "closed" else deployment.endpoint.breaker.state,
    }
    return {
        "model": deployment.model,
        "endpoint": names[deployment],
        "chosen": chosen,
        "removed": candidate.removed or None,
        "terms": {name: round(seconds, 6) for name, seconds in candidate.terms.items()},
        "total": round(candidate.total, 6) if candidate.terms else None,
        "cached_tokens": round(candidate.cached_tokens),
        **(live if now else {}),
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
