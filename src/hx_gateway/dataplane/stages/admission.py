"""Stage `admission`: the gateway's own limit of requests at the same time, and the refusal of new ones while draining."""

from __future__ import annotations

from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Stage


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where no limit is configured."""
    # Each worker takes its share: together they never exceed the limit.
    limit = gateway.share(gateway.config.performance.max_concurrent_requests)
    if not limit:
        return None
    proxy = gateway.proxy

    def admit(exchange: Exchange) -> None:
        if proxy.in_flight >= limit:
            raise Failure(
                errors.OVERLOADED,
                f"the gateway is at its limit of concurrent requests (performance.max_concurrent_requests, {limit} in this worker)",
                retry_after_s=1.0,
            )

    return admit
