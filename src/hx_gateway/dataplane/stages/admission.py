"""Stage `admission`: the gateway's own limit of requests at the same time, over all its workers, and over gateways that share a Redis."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from hx_gateway.access.account import Hold, Refusal
from hx_gateway.core import errors
from hx_gateway.core.context import Exchange, KeyLimits
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Stage
from hx_gateway.dataplane.stages.limits import PLACES_SLOT, waited


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where no limit is configured."""
    most = gateway.config.performance.max_concurrent_requests
    if not most:
        return None
    metering = gateway.metering
    places = metering.limiter.account("gateway:places", "", KeyLimits(max_concurrent=most), PLACES_SLOT)

    def admit(exchange: Exchange) -> Awaitable[None] | None:
        answer = metering.take(places, exchange)
        if isinstance(answer, Hold | Refusal):
            placed(exchange, answer)
            return None
        return wait(exchange, answer)

    async def wait(exchange: Exchange, waiting: Awaitable[Hold | Refusal]) -> None:
        placed(exchange, await waited(metering, waiting))

    def placed(exchange: Exchange, answer: Hold | Refusal) -> None:
        if isinstance(answer, Refusal):
            raise Failure(
                errors.OVERLOADED,
                f"the gateway is at its limit of concurrent requests (performance.max_concurrent_requests, {most})",
                retry_after_s=max(1.0, answer.wait_s),
            )
        if exchange.hold is None:
            exchange.hold = answer
        else:
            exchange.hold.place = answer

    return admit
