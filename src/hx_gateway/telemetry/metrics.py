"""Counts and times every exchange at almost no cost: one dictionary look-up, then plain additions."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from hx_gateway.core.clock import Clock, SystemClock
from hx_gateway.core.context import RAG, Exchange
from hx_gateway.ledger.pricing import cost_of, engine_s, worked
from hx_gateway.telemetry.book import Book, Cells
from hx_gateway.telemetry.families import OVERHEAD_SECONDS, SECONDS, TOKEN_SECONDS, TOKENS

if TYPE_CHECKING:
    from hx_gateway.core.errors import Failure

COUNT, PROMPT, COMPLETION, CACHED, COST = range(5)
"""Numbers of a series ``requests`` in the book: exchanges, tokens by kind, money. Its labels are those of `Metrics.finished`."""

# Numbers of a series `times`: for each histogram one count a bucket, one for all above the last bound, and the sum.
RESPONSE = 0
FIRST = RESPONSE + len(SECONDS) + 2
PACE = FIRST + len(SECONDS) + 2
READ = PACE + len(TOKEN_SECONDS) + 2
WRITTEN = READ + len(TOKENS) + 2
_TIMES = WRITTEN + len(TOKENS) + 2
_RESPONSE_SUM, _FIRST_SUM, _PACE_SUM, _READ_SUM, _WRITTEN_SUM = FIRST - 1, PACE - 1, READ - 1, WRITTEN - 1, _TIMES - 1
_OPERATIONS = (b"search", b"upsert", b"delete", b"collections")
_MOST_RESOLVED = 4096  # combinations whose series is remembered; fleets of before a reload go with the others


class Series:
    """Where an exchange of one kind is counted; the times are shared with its siblings of the same route and model."""

    __slots__ = ("cells", "overhead", "times")

    def __init__(self, cells: Cells, times: list[float], overhead: list[float]) -> None:
        self.cells = cells
        self.times = times
        self.overhead = overhead


class Metrics:
    """An observer that keeps counters and histograms.

    What has to agree with the ledger is written to the book at once, and is there whatever ends this process the moment
    after. Times are kept in lists, at half the cost, until `flush`.

    Labels are bounded: routes and error codes are fixed, and public names, models and endpoints are taken from the
    registry only, never from what a client sent.

    Args:
        clock: Source of time; the same monotonic clock that stamps exchanges.
        book: Where they are kept; None for memory of this process.
    """

    __slots__ = ("_attempts", "_lists", "_now", "_series", "book")

    def __init__(self, clock: Clock | None = None, book: Book | None = None) -> None:
        self._now = (clock or SystemClock()).monotonic
        self.book = book or Book()
        self._series: dict[tuple[Any, ...], Series] = {}
        self._lists: dict[tuple[str, tuple[str, ...]], tuple[list[float], Cells]] = {}
        self._attempts: dict[tuple[Any, ...], Cells] = {}

    def attempted(self, exchange: Exchange, failure: Failure | None, /) -> None:
        """Count one attempt on a deployment."""
        key = (exchange.candidates, exchange.deployment, failure.kind.code if failure is not None else "")
        cells = self._attempts.get(key)
        if cells is None:
            if len(self._attempts) >= _MOST_RESOLVED:
                self._attempts.clear()
            target, deployment, code = key
            labels = (target.name if target is not None else "", deployment.model, deployment.endpoint.name, code)
            cells = self._attempts[key] = self.book.cells("attempts", labels, 1)
        cells[0] += 1.0

    def finished(self, exchange: Exchange, /) -> None:
        """Count one exchange, its times, tokens and cost.

        The overhead is the response time without the wait for the model server. It is taken where that wait is known:
        whole answers and refusals, at the first attempt.
        """
        now_s = exchange.ended_s or self._now()
        deployment = exchange.deployment
        outcome = exchange.outcome
        key = (
            exchange.route,
            exchange.candidates,
            deployment or exchange.upstream,
            outcome.code if outcome is not None else "",
            exchange.status,
            exchange.cached,
        )
        series = self._series.get(key)
        if series is None:
            series = self._open(key)
        cells, times = series.cells, series.times
        cells[COUNT] += 1.0
        received_s = exchange.received_s
        taken_s = now_s - received_s
        times[bisect_left(SECONDS, taken_s)] += 1.0
        times[_RESPONSE_SUM] += taken_s
        prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
        first_s = exchange.first_byte_s
        facts = exchange.facts
        if first_s and facts is not None and facts.stream:
            waited_s = first_s - received_s
            times[FIRST + bisect_left(SECONDS, waited_s)] += 1.0
            times[_FIRST_SUM] += waited_s
            if completion > 1 and not exchange.cached:
                each_s = (now_s - first_s) / (completion - 1)
                times[PACE + bisect_left(TOKEN_SECONDS, each_s)] += 1.0
                times[_PACE_SUM] += each_s
        elif exchange.attempts < 2:
            call_s = exchange.call_s
            if first_s and call_s:
                taken_s -= first_s - call_s
            elif exchange.attempts:
                call_s = -1.0  # asked, but not answered: whose time it was is not known
            if call_s >= 0.0:
                overhead = series.overhead
                overhead[bisect_left(OVERHEAD_SECONDS, taken_s)] += 1.0
                overhead[-1] += taken_s
        if prompt > 0:
            cells[PROMPT] += prompt
            times[READ + bisect_left(TOKENS, prompt)] += 1.0
            times[_READ_SUM] += prompt
        if completion > 0:
            cells[COMPLETION] += completion
            times[WRITTEN + bisect_left(TOKENS, completion)] += 1.0
            times[_WRITTEN_SUM] += completion
        if exchange.cached_tokens > 0:
            cells[CACHED] += exchange.cached_tokens
        if deployment is not None:
            if not deployment.prices.free and worked(exchange):
                cells[COST] += cost_of(deployment.prices, prompt, completion, exchange.cached_tokens, engine_s(exchange, now_s))
            if exchange.load_s and not exchange.cached:
                loads = self.book.cells("loads", (deployment.model, deployment.endpoint.name), 2)
                loads[0] += 1.0
                loads[1] += exchange.load_s
        if exchange.route is RAG:
            operation = exchange.target.partition(b"?")[0].rpartition(b"/")[2]
            name = operation.decode() if operation in _OPERATIONS else "other"
            times = self._list("documents", (name,), len(SECONDS) + 2)
            times[bisect_left(SECONDS, now_s - received_s)] += 1.0
            times[-1] += now_s - received_s
            self.book.cells("hx_gateway_rag_requests", (name, outcome.code if outcome is not None else ""), 1)[0] += 1.0
        if exchange.queued_s:
            target = exchange.candidates
            waits = self._list("waits", (target.name if target is not None else "",), len(SECONDS) + 2)
            waits[bisect_left(SECONDS, exchange.queued_s)] += 1.0
            waits[-1] += exchange.queued_s

    def _open(self, key: tuple[Any, ...]) -> Series:
        if len(self._series) >= _MOST_RESOLVED:
            self._series.clear()
        route, target, place, code, status, cached = key
        model, endpoint = ("", place) if isinstance(place, str) else (place.model, place.endpoint.name)
        source = "cache" if cached else "engine"
        labels = (route.name, target.name if target is not None else "", model, endpoint, str(status), code, source)
        series = self._series[key] = Series(
            self.book.cells("requests", labels, 5),
            self._list("times", (route.name, model), _TIMES),
            self._list("overhead", (route.name,), len(OVERHEAD_SECONDS) + 2),
        )
        return series

    def _list(self, name: str, labels: tuple[str, ...], width: int) -> list[float]:
        found = self._lists.get((name, labels))
        if found is None:
            cells = self.book.cells(name, labels, width)
            found = self._lists[name, labels] = (list(cells), cells)
        return found[0]

    def flush(self) -> None:
        """Write the times to the book; called a few times a second, before each scrape, and at the end."""
        for values, cells in self._lists.values():
            cells[:] = array("d", values)
