"""Stage `limits`: the configured rate of requests over all callers, as a token bucket with one second of burst."""

from __future__ import annotations

from time import monotonic
from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Stage


class RateLimit:
    """A token bucket.

    Args:
        rate: Requests per second.
        burst: Most requests at once after a pause.
    """

    __slots__ = ("at_s", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self.at_s = monotonic()

    def __call__(self, exchange: Exchange) -> None:
        now_s = exchange.received_s
        self.tokens = min(self.burst, self.tokens + max(0.0, now_s - self.at_s) * self.rate)
        self.at_s = max(self.at_s, now_s)
        if self.tokens < 1.0:
            wait_s = (1.0 - self.tokens) / self.rate
            raise Failure(
                errors.RATE_LIMITED,
                f"more than {self.rate:g} requests per second (performance.rate_limit_rps, this worker's share)",
                retry_after_s=wait_s,
            )
        self.tokens -= 1.0


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where rate limiting is off. Each worker enforces its share of the rate."""
    performance = gateway.config.performance
    if not performance.rate_limiting_enabled or not performance.rate_limit_rps:
        return None
    rate = performance.rate_limit_rps / gateway.workers
    return RateLimit(rate, max(1.0, rate))
