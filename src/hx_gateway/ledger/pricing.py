"""What an exchange cost, in the operator's money: requests, tokens, and the time engines worked."""

from __future__ import annotations

from typing import Protocol

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange


class Priced(Protocol):
    """The prices of a deployment (`fleet.endpoint.Prices`)."""

    per_request: float
    per_prompt_token: float
    per_completion_token: float
    per_cached_token: float | None
    per_engine_second: float
    free: bool


def worked(exchange: Exchange) -> bool:
    """Whether a model server did work for it that the client got, or would have got had it stayed."""
    outcome = exchange.outcome
    if exchange.cached:
        return False
    if outcome is None:
        return exchange.deployment is not None
    if outcome is errors.CLIENT_CLOSED:
        return exchange.call_s > 0.0
    return exchange.status == 200 and exchange.first_byte_s > 0.0  # a stream that broke after it had begun


def engine_s(exchange: Exchange, now_s: float) -> float:
    """Seconds an engine worked on it: as the server tells, else those of the last attempt.

    An engine that works on several requests at a time is counted once for each of them.
    """
    return exchange.engine_s or now_s - exchange.call_s


def cost_of(prices: Priced, prompt: int, completion: int, cached: int, engine_seconds: float) -> float:
    """The price of one exchange.

    Args:
        prices: Of the deployment that answered.
        prompt: Tokens of the prompt, those from the engine's cache included; -1 for unknown.
        completion: Tokens of the answer; -1 for unknown.
        cached: Tokens of the prompt that the engine had cached; -1 for unknown.
        engine_seconds: What `engine_s` says.
    """
    cost = prices.per_request + engine_seconds * prices.per_engine_second
    if prompt > 0:
        cost += prompt * prices.per_prompt_token
        if cached > 0 and prices.per_cached_token is not None:
            cost += min(cached, prompt) * (prices.per_cached_token - prices.per_prompt_token)
    if completion > 0:
        cost += completion * prices.per_completion_token
    return cost
