"""Counts and times every exchange at almost no cost: one dictionary look-up, then plain additions."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from hx_gateway.core.clock import Clock, SystemClock
from hx_gateway.core.context import Exchange

if TYPE_CHECKING:
    from hx_gateway.core.errors import Failure

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets for response times and times to the first token, in seconds."""
OVERHEAD_SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds of the buckets for the gateway's own share of a response time, in seconds."""

RequestKey = tuple[str, str, str, str, str, int]
"""Route, public name, model, endpoint, error code (empty for success), status."""
AttemptKey = tuple[str, str, str, str]
"""Public name, model, endpoint, error code (empty for an answer)."""

Times = list[float]
"""A histogram: one count per bucket, one for all above the last bound, and the sum of the values."""


def _times(bounds: tuple[float, ...]) -> Times:
    return [0.0] * (len(bounds) + 2)


class Series:
    """Everything counted under one `RequestKey`; the histograms are shared with its siblings of the same route and model."""

    __slots__ = ("cached_tokens", "completion_tokens", "count", "duration", "first_token", "overhead", "prompt_tokens")

    def __init__(self, duration: Times, first_token: Times, overhead: Times) -> None:
        self.count = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.duration = duration
        self.first_token = first_token
        self.overhead = overhead


class Metrics:
    """An observer that keeps counters and histograms of one process.

    Labels are bounded: routes and error codes are fixed, and public names, models and endpoints are taken from the
    registry only, never from what a client sent.

    Args:
        clock: Source of time; the same monotonic clock that stamps exchanges.
    """

    __slots__ = ("_now", "attempts", "durations", "first_tokens", "overheads", "series")

    def __init__(self, clock: Clock | None = None) -> None:
        self._now = (clock or SystemClock()).monotonic
        self.series: dict[RequestKey, Series] = {}
        self.attempts: dict[AttemptKey, int] = {}
        self.durations: dict[tuple[str, str], Times] = {}
        self.first_tokens: dict[tuple[str, str], Times] = {}
        self.overheads: dict[str, Times] = {}

    def attempted(self, exchange: Exchange, failure: Failure | None, /) -> None:
        """Count one attempt on a deployment."""
        deployment = exchange.deployment
        target = exchange.candidates
        key = (
            target.name if target is not None else "",
            deployment.model,
            deployment.endpoint.name,
            failure.kind.code if failure is not None else "",
        )
        self.attempts[key] = self.attempts.get(key, 0) + 1

    def finished(self, exchange: Exchange, /) -> None:
        """Count one exchange, its times and its tokens.

        The overhead is the response time without the wait for the model server. It is taken where that wait is known:
        whole answers and refusals, at the first attempt.
        """
        now_s = self._now()
        deployment = exchange.deployment
        target = exchange.candidates
        outcome = exchange.outcome
        if deployment is not None:
            model, endpoint = deployment.model, deployment.endpoint.name
        else:
            model = endpoint = ""
        key = (
            exchange.route.name,
            target.name if target is not None else "",
            model,
            endpoint,
            outcome.code if outcome is not None else "",
            exchange.status,
        )
        series = self.series.get(key)
        if series is None:
            series = self._open(key)
        series.count += 1
        received_s = exchange.received_s
        taken_s = now_s - received_s
        times = series.duration
        times[bisect_left(SECONDS, taken_s)] += 1.0
        times[-1] += taken_s
        first_s = exchange.first_byte_s
        facts = exchange.facts
        if first_s and facts is not None and facts.stream:
            waited_s = first_s - received_s
            times = series.first_token
            times[bisect_left(SECONDS, waited_s)] += 1.0
            times[-1] += waited_s
        elif exchange.attempts < 2:
            call_s = exchange.call_s
            if first_s and call_s:
                taken_s -= first_s - call_s
            elif exchange.attempts:
                call_s = -1.0  # asked, but not answered: whose time it was is not known
            if call_s >= 0.0:
                times = series.overhead
                times[bisect_left(OVERHEAD_SECONDS, taken_s)] += 1.0
                times[-1] += taken_s
        if exchange.cached:
            return  # its tokens were read and written for another
        if exchange.prompt_tokens > 0:
            series.prompt_tokens += exchange.prompt_tokens
        if exchange.completion_tokens > 0:
            series.completion_tokens += exchange.completion_tokens
        if exchange.cached_tokens > 0:
            series.cached_tokens += exchange.cached_tokens

    def _open(self, key: RequestKey) -> Series:
        route, model = key[0], key[2]
        series = self.series[key] = Series(
            self.durations.setdefault((route, model), _times(SECONDS)),
            self.first_tokens.setdefault((route, model), _times(SECONDS)),
            self.overheads.setdefault(route, _times(OVERHEAD_SECONDS)),
        )
        return series
