"""Stage `limits`: what each key may use, and the gateway's own rate of requests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any

from hx_gateway.access.account import Account, Hold, Refusal
from hx_gateway.core import errors
from hx_gateway.core.context import Exchange, Identity, KeyLimits
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Response, Stage
from hx_gateway.dataplane.metering import Metering

RATE_SLOT, PLACES_SLOT = 0, 1
"""Slots of the table that count for the gateway itself."""


def refused(account: Account, refusal: Refusal) -> Failure:
    """The failure that a refusal is to the client: which limit, its value, whose, and when it frees."""
    name, wait_s = refusal.limit, refusal.wait_s
    who, value = f"the key {account.name!r}", f"{refusal.value:g}"
    if name == "requests_per_second":
        if account.scope == "gateway":
            who, name = "this gateway", "performance.rate_limit_rps"
        burst = account.limits.burst or max(1, math.ceil(refusal.value))
        text = f"{who} has used its {value} requests per second and a burst of {burst} ({name}); try again in {_span(wait_s)}"
    elif name == "tokens_per_minute":
        text = f"{who} has a limit of {refusal.value:.0f} tokens per minute ({name}), and this request may need {refusal.asked:.0f}"
        text += (
            f"; try again in {_span(wait_s)}" if wait_s else ", more than it can ever have at once; lower max_tokens or shorten the prompt"
        )
        return Failure(errors.RATE_LIMITED, text, retry_after_s=wait_s or None, should_retry=None if wait_s else False)
    elif name == "max_concurrent":
        text = f"{who} has as many requests under way as it may ({name}, {value}); try again when one has ended"
    else:
        until = (datetime.now(UTC) + timedelta(seconds=wait_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
        period, _, unit = name.partition("_")
        what = f"{refusal.value:.0f} tokens" if unit == "tokens" else value
        text = f"{who} has used its budget of {what} per {period} ({name}), or this request may need more than is left; it is renewed at {until}"
        return Failure(errors.INSUFFICIENT_QUOTA, text, retry_after_s=wait_s, should_retry=False)
    return Failure(errors.RATE_LIMITED, text, retry_after_s=wait_s)


def _span(seconds: float) -> str:
    return f"{math.ceil(seconds * 1000)} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway. A key without limits costs one look at it, where the gateway has no rate of its own."""
    performance, metering = gateway.config.performance, gateway.metering
    limiter = metering.limiter
    rate: Account | None = None
    if performance.rate_limiting_enabled and performance.rate_limit_rps:
        rate = limiter.account("gateway:rate", "", KeyLimits(performance.rate_limit_rps), RATE_SLOT)

    def limits(exchange: Exchange) -> Awaitable[Response | None] | None:
        identity = exchange.identity
        if identity is not None and identity.limits is not None:
            known = metering.known.get(identity.name)
            account = known[1] if known is not None and known[0] is identity else account_of(metering, identity)
            answer = metering.take(account, exchange)
            if type(answer) is Hold and exchange.hold is None:
                exchange.limit_lines = account.header_lines()
                if account.under_way:
                    exchange.hold = answer
            elif isinstance(answer, Hold | Refusal):
                _passed(account, exchange, answer)
            else:
                return _wait(metering, account, exchange, answer, rate)
        return _within(metering, rate, exchange) if rate is not None else None

    return limits


def account_of(metering: Metering, identity: Identity) -> Account:
    """The account of a limited key, to be found at once from now on."""
    limits = identity.limits
    assert limits is not None
    account = metering.limiter.account(f"key:{identity.id or identity.name}", identity.name, limits)
    metering.known[identity.name] = identity, account
    return account


def _passed(account: Account, exchange: Exchange, answer: Hold | Refusal) -> None:
    exchange.limit_lines = account.header_lines()
    if isinstance(answer, Refusal):
        raise refused(account, answer)
    if account.under_way:
        answer.place = exchange.hold  # where the stages stand in another order
        exchange.hold = answer


def _within(metering: Metering, rate: Account, exchange: Exchange) -> Awaitable[None] | None:
    answer = metering.take(rate, exchange)
    if isinstance(answer, Refusal):
        raise refused(rate, answer)
    return None if isinstance(answer, Hold) else _agreed(metering, rate, answer)


async def _agreed(metering: Metering, rate: Account, waiting: Awaitable[Hold | Refusal]) -> None:
    answer = await waited(metering, waiting)
    if isinstance(answer, Refusal):
        raise refused(rate, answer)


async def _wait(
    metering: Metering, account: Account, exchange: Exchange, waiting: Awaitable[Hold | Refusal], rate: Account | None
) -> Response | None:
    _passed(account, exchange, await waited(metering, waiting))
    if rate is not None and (agreed := _within(metering, rate, exchange)) is not None:
        await agreed
    return None


async def waited(metering: Metering, waiting: Awaitable[Hold | Refusal]) -> Hold | Refusal:
    """What other gateways' store says; what it gave to a client that has left meanwhile goes back."""
    try:
        return await waiting
    except asyncio.CancelledError:  # perhaps just after it was let pass
        if isinstance(waiting, asyncio.Future) and waiting.done() and not waiting.cancelled() and isinstance(waiting.result(), Hold):
            metering.settle(waiting.result(), 0, 0)
        raise
