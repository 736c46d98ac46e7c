"""The metrics in Prometheus' text format: the counts of all workers added up, and the state of things as they last told it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from hx_gateway.core.errors import CATALOGUE
from hx_gateway.telemetry import metrics as numbers
from hx_gateway.telemetry.book import Book
from hx_gateway.telemetry.families import FAMILIES, TOKENS, Family
from hx_gateway.telemetry.reporting import Sample, kept, terms

if TYPE_CHECKING:
    from hx_gateway.fleet.registry import Registry
    from hx_gateway.telemetry.desk import Desk

_THROTTLED = frozenset(("rate_limit_exceeded", "insufficient_quota", "overloaded", "upstream_busy"))
_BLAME = {kind.code: kind.blame.value for kind in CATALOGUE}
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_PROVIDER = "hx_gateway"
_TIMES = {
    "hx_gateway_response_seconds": (numbers.RESPONSE, "gen_ai_server_request_duration_seconds"),
    "hx_gateway_first_token_seconds": (numbers.FIRST, "gen_ai_server_time_to_first_token_seconds"),
    "hx_gateway_output_token_seconds": (numbers.PACE, "gen_ai_server_time_per_output_token_seconds"),
}
Labels = tuple[str, ...]


class Observed(Protocol):
    """What is reported on: the gateway, as far as it is needed here."""

    @property
    def backing(self) -> Any: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def router(self) -> Any: ...

    @property
    def proxy(self) -> Any: ...

    @property
    def telemetry(self) -> Desk: ...

    @property
    def reloading(self) -> Any: ...

    @property
    def started_wall_s(self) -> float: ...

    @property
    def draining(self) -> bool: ...

    @property
    def ready(self) -> bool: ...


class GatewayCollector(Collector):
    """Turns the book, and what this worker can tell at the moment of a scrape, into metric families.

    Args:
        observed: The gateway of the worker that was asked.
        version: The gateway's version.
        state: Reads what the housekeeper last told.
    """

    def __init__(self, observed: Observed, version: str, state: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        self._observed = observed
        self._version = version
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """All families."""
        observed = self._observed
        observed.telemetry.report(observed)
        told: list[Sample] = [("hx_gateway_info", (self._version,), 1.0), *kept(self._state()), *terms(observed)]
        yield from families(observed.telemetry.book, told)


class _Sums:
    """The numbers of a book, with those of all workers made into one."""

    def __init__(self, book: Book, told: Iterable[Sample]) -> None:
        self.vectors: dict[str, dict[Labels, list[float]]] = {}
        self.values: dict[str, dict[Labels, float]] = {}
        self.exemplars: dict[tuple[str, ...], Exemplar] = {}
        for name, labels, value in told:
            self._gauge(name, labels, value)
        for entries, beat_s in book.pages():
            for name, labels, cells in entries:
                if name in FAMILIES and FAMILIES[name].kind in ("sum", "max", "min"):
                    if beat_s and cells[1] == beat_s:
                        self._gauge(name, labels, cells[0])
                    continue
                if name == "exemplar":
                    self._exemplar(labels, cells.tobytes())
                    continue
                known = self.vectors.setdefault(name, {})
                before = known.get(labels)
                known[labels] = list(cells) if before is None else [a + b for a, b in zip(before, cells, strict=True)]

    def _gauge(self, name: str, labels: Labels, value: float) -> None:
        known = self.values.setdefault(name, {})
        if labels not in known:
            known[labels] = value
        else:
            kind = FAMILIES[name].kind
            before = known[labels]
            known[labels] = before + value if kind == "sum" else max(before, value) if kind == "max" else min(before, value)

    def _exemplar(self, labels: Labels, data: bytes) -> None:
        value, at_s = memoryview(data[:16]).cast("d")
        before = self.exemplars.get(labels)
        if at_s and (before is None or float(before.timestamp or 0.0) < at_s):
            self.exemplars[labels] = Exemplar({"trace_id": data[16:48].decode()}, value, at_s)

    def of(self, name: str) -> Iterator[tuple[Labels, list[float]]]:
        yield from sorted(self.vectors.get(name, {}).items())


def families(book: Book, told: Iterable[Sample] = ()) -> Iterator[Metric]:
    """Every family of `FAMILIES`.

    Args:
        book: The worker's; read are the pages of all.
        told: Further samples of gauges.
    """
    sums = _Sums(book, told)
    derived = dict(_requests(sums))
    for family in FAMILIES.values():
        if family.kind == "histogram":
            yield _histogram(family, sums)
        elif family.kind == "counter":
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            rows = derived.get(family.name)
            for labels, value in sorted(rows.items()) if rows is not None else ((found, cells[0]) for found, cells in sums.of(family.name)):
                counter.add_metric(labels, value)
            yield counter
        else:
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, value in sorted(sums.values.get(family.name, {}).items()):
                gauge.add_metric(labels, value)
            yield gauge


def _requests(sums: _Sums) -> Iterator[tuple[str, dict[Labels, float]]]:
    """The counters that the series of requests, attempts and loads hold."""
    requests: dict[Labels, float] = {}
    errors: dict[Labels, float] = {}
    throttled: dict[Labels, float] = {}
    tokens: dict[Labels, float] = {}
    cost: dict[Labels, float] = {}

    def add(counts: dict[Labels, float], labels: Labels, value: float) -> None:
        counts[labels] = counts.get(labels, 0.0) + value

    for (route, target, model, endpoint, status, code, source), cells in sums.of("requests"):
        count = cells[numbers.COUNT]
        add(requests, (route, target, model, endpoint, status, code), count)
        if code:
            add(errors, (route, code, _BLAME.get(code, "")), count)
            if code in _THROTTLED:
                add(throttled, (route, code), count)
        for kind, number in (("prompt", numbers.PROMPT), ("completion", numbers.COMPLETION), ("cached", numbers.CACHED)):
            if cells[number]:
                add(tokens, (target, model, kind, source), cells[number])
        if cells[numbers.COST]:
            add(cost, (target, model, endpoint), cells[numbers.COST])
    yield from (
        ("hx_gateway_requests", requests),
        ("hx_gateway_errors", errors),
        ("hx_gateway_throttled", throttled),
        ("hx_gateway_tokens", tokens),
        ("hx_gateway_cost", cost),
        ("hx_gateway_attempts", {labels: cells[0] for labels, cells in sums.of("attempts")}),
        ("hx_gateway_model_loads", {labels: cells[0] for labels, cells in sums.of("loads")}),
        ("hx_gateway_model_load_seconds", {labels: cells[1] for labels, cells in sums.of("loads")}),
    )


def _histogram(family: Family, sums: _Sums) -> HistogramMetricFamily:
    """A histogram, from the series of times that hold it."""
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    name, bounds = family.name, family.bounds
    if name == "hx_gateway_overhead_seconds":
        for labels, cells in sums.of("overhead"):
            _add(made, labels, bounds, cells, sums, (name, *labels))
    elif name == "hx_gateway_queue_wait_seconds":
        for labels, cells in sums.of("waits"):
            _add(made, labels, bounds, cells, sums, (name, *labels))
    elif name == "gen_ai_client_token_usage":
        for (route, model), cells in sums.of("times"):
            if route in _OPERATIONS and model:
                for kind, start in (("input", numbers.READ), ("output", numbers.WRITTEN)):
                    part = cells[start : start + len(TOKENS) + 2]
                    _add(made, (_OPERATIONS[route], _PROVIDER, model, kind), bounds, part, sums, ())
    else:
        for own, (start, theirs) in _TIMES.items():
            for (route, model), cells in sums.of("times"):
                part = cells[start : start + len(bounds) + 2]
                if name == own:
                    _add(made, (route, model), bounds, part, sums, (own, route, model))
                elif name == theirs and route in _OPERATIONS and model:
                    _add(made, (_OPERATIONS[route], _PROVIDER, model), bounds, part, sums, (own, route, model))
    return made


def _add(
    family: HistogramMetricFamily, labels: Labels, bounds: tuple[float, ...], cells: list[float], sums: _Sums, series: tuple[str, ...]
) -> None:
    buckets: list[Any] = []
    total = 0.0
    for number, (bound, count) in enumerate(zip((*map(str, bounds), "+Inf"), cells, strict=False)):
        total += count
        exemplar = sums.exemplars.get((*series, str(number)))
        buckets.append((bound, total) if exemplar is None else (bound, total, exemplar))
    if total:
        family.add_metric(labels, buckets, cells[-1])


def collectors(observed: Observed, version: str, state: Callable[[], dict[str, Any] | None] = lambda: None) -> CollectorRegistry:
    """A registry of its own with everything the gateway reports; the arguments are those of `GatewayCollector`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(observed, version, state))
    return registry


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The report and its content type: OpenMetrics where ``accept`` asks for it, else Prometheus' text format."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
