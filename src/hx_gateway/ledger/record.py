"""The record of one exchange: what it was, who asked, how it ended and what it cost."""

from __future__ import annotations

from math import floor
from typing import Any

import msgspec

from hx_gateway.core.context import FORWARD, Exchange
from hx_gateway.ledger.pricing import cost_of, worked

VERSION = 1
"""Of the meaning of the fields. New ones are added at the end, with a default: older segments lack them, older readers skip them."""
_LONGEST = 256  # characters of what a client may choose


class UsageRecord(msgspec.Struct, array_like=True, gc=False):
    """One exchange.

    Args:
        version: Of the fields' meaning.
        id: The request's own id, a ULID.
        at_ms: When the request came, in milliseconds of Unix time.
        duration_ms: From then to the last byte.
        ttft_ms: To the first byte of the model server; None where there was none.
        queued_ms: Waiting for a place.
        load_ms: Loading the model, where the server tells.
        route: ``chat``, ``completions``, ``embeddings`` or ``forward``.
        key_id: The key's id; empty for keys of the configuration, and for nobody.
        key_name: The key's name; empty for nobody.
        team: The key's team.
        user: The end user, where the key may say so.
        asked: The name the client used; the path of a forwarded request.
        model: The model of the last attempt.
        group: The group that was asked, by its name or an alias; empty for a model.
        endpoint: Of the last attempt.
        attempts: Calls to model servers.
        trail: Those that failed: endpoint, error code, milliseconds.
        status: HTTP status the client saw; 499 where it had left.
        outcome: ``ok``, or the error's code.
        stream: Whether the answer was streamed.
        cached: ``hit`` or ``shared`` where the gateway's cache answered.
        prompt_tokens: Tokens of the prompt; None for unknown.
        completion_tokens: Tokens of the answer, or of what was sent of it.
        cached_tokens: Tokens of the prompt that the engine had cached.
        estimated: Whether a count is an estimate.
        cost: In the operator's money.
        engine_ms: Time an engine worked on it.
        tags: The key's labels.
        learned: In groups that learn what was made of the prompt, as `routing.learned.choice.Choice.record` has it.
    """

    version: int
    id: str
    at_ms: int
    duration_ms: float
    ttft_ms: float | None
    queued_ms: float
    load_ms: float
    route: str
    key_id: str
    key_name: str
    team: str
    user: str
    asked: str
    model: str
    group: str
    endpoint: str
    attempts: int
    trail: list[tuple[str, str, float]] | None
    status: int
    outcome: str
    stream: bool
    cached: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    estimated: bool
    cost: float
    engine_ms: float
    tags: list[str] | None = None
    learned: list[Any] | None = None


def values_of(exchange: Exchange, now_s: float, wall_s: float, user: str = "") -> tuple[Any, ...]:
    """What the `UsageRecord` of an exchange that has come to its end holds, in its order; it is written to the journal as it is.

    Args:
        exchange: The exchange.
        now_s: Monotonic time.
        wall_s: Unix time at the same moment.
        user: The end user.
    """
    deployment, target, identity, facts = exchange.deployment, exchange.candidates, exchange.identity, exchange.facts
    outcome, first_s, received_s = exchange.outcome, exchange.first_byte_s, exchange.received_s
    prompt, completion, cached = exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens
    taken_s = now_s - received_s
    cost = engine = 0.0
    model, endpoint = "", exchange.upstream
    if deployment is not None:
        model, endpoint = deployment.model, deployment.endpoint.name
        if worked(exchange):
            engine = exchange.engine_s or now_s - exchange.call_s
            prices = deployment.prices
            if not prices.free:
                cost = cost_of(prices, prompt, completion, cached, engine)
    asked = exchange.asked
    if not asked:
        if exchange.route is FORWARD:
            asked = exchange.target.partition(b"?")[0].decode("latin-1")
        elif facts is not None:
            asked = facts.model or ""
    key_id = key_name = team = ""
    tags = None
    if identity is not None:
        key_id, key_name, team = identity.id, identity.name, identity.team
        tags = identity.tags or None
    return (
        VERSION,
        exchange.id,
        floor((wall_s - taken_s) * 1000.0),
        taken_s * 1000.0,
        (first_s - received_s) * 1000.0 if first_s else None,
        exchange.queued_s * 1000.0,
        exchange.load_s * 1000.0,
        exchange.route.name,
        key_id,
        key_name,
        team,
        user[:_LONGEST] if user else "",
        asked if len(asked) <= _LONGEST else asked[:_LONGEST],
        model,
        target.group if target is not None else "",
        endpoint,
        exchange.attempts,
        exchange.trail,
        exchange.status,
        outcome.code if outcome is not None else "ok",
        facts is not None and facts.stream is True,
        exchange.cached,
        prompt if prompt >= 0 else None,
        completion if completion >= 0 else None,
        cached if cached >= 0 else None,
        exchange.estimated,
        cost,
        engine * 1000.0,
        tags,
        exchange.choice.record() if exchange.choice is not None else None,
    )
