"""The metrics in Prometheus' text format: the counts of all workers added up, and the state of things as they last told it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from hx_gateway.core.errors import CATALOGUE
from hx_gateway.telemetry import metrics as numbers
from hx_gateway.telemetry.book import Book
from hx_gateway.telemetry.families import FAMILIES, TOKENS, Family
from hx_gateway.telemetry.history import NAME
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
_PLAIN = {"hx_gateway_overhead_seconds": "overhead", "hx_gateway_queue_wait_seconds": "waits", "hx_gateway_rag_seconds": "documents"}
Labels = tuple[str, ...]
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_SPECIAL = re.compile(r'[\\"\n]')


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


class Report:
    """The book, and what one worker can tell at the moment of a scrape, as text.

    Args:
        observed: The gateway of the worker that was asked.
        version: The gateway's version.
        state: Reads what the housekeeper last told.
    """

    def __init__(self, observed: Observed, version: str, state: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        self._observed = observed
        self._version = version
        self._state = state

    def told(self) -> list[Sample]:
        """What is to be asked of the gateway itself, on its own thread; the book is brought up to date."""
        observed = self._observed
        observed.telemetry.report(observed)
        return [("hx_gateway_info", (self._version,), 1.0), *kept(self._state()), *terms(observed)]

    def text(self, told: Iterable[Sample], accept: str) -> tuple[bytes, str]:
        """The report and its content type: OpenMetrics where ``accept`` asks for it, else Prometheus' text format. In any thread."""
        book = self._observed.telemetry.book
        exemplary = "application/openmetrics-text" in accept
        text = "".join(_families(_Sums(book, told), exemplary))
        return text.encode(), OPENMETRICS if exemplary else PLAIN

    async def served(self, accept: str) -> tuple[bytes, str]:
        """The same, made in a thread, so that no request waits for a report on a large fleet."""
        return await asyncio.to_thread(self.text, self.told(), accept)


class _Sums:
    """The numbers of a book, with those of all workers made into one."""

    def __init__(self, book: Book, told: Iterable[Sample]) -> None:
        self.vectors: dict[str, dict[Labels, list[float]]] = {}
        self.values: dict[str, dict[Labels, float]] = {}
        self.exemplars: dict[Labels, dict[int, str]] = {}  # by family and labels, then number of the bucket
        self._newest: dict[Labels, float] = {}
        for name, labels, value in told:
            self._gauge(name, labels, value)
        for entries, beat_s in book.pages():
            for name, labels, cells in entries:
                if name in FAMILIES and FAMILIES[name].kind in ("sum", "max", "min"):
                    if beat_s and cells[1] == beat_s:
                        self._gauge(name, labels, cells[0])
                    continue
                if name.startswith(NAME):
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
        seconds, at_s = memoryview(data[:16]).cast("d")
        if at_s > self._newest.get(labels, 0.0):
            self._newest[labels] = at_s
            known = self.exemplars.setdefault(labels[:-1], {})
            known[int(labels[-1])] = f' # {{trace_id="{data[16:48].decode()}"}} {seconds!r} {at_s:.3f}'

    def of(self, name: str) -> Iterator[tuple[Labels, list[float]]]:
        yield from sorted(self.vectors.get(name, {}).items())


def _families(sums: _Sums, exemplary: bool) -> Iterator[str]:
    """The text of every family of `FAMILIES`."""
    derived = dict(_requests(sums))
    for family in FAMILIES.values():
        name, kind = family.name, family.kind
        counter = kind == "counter"
        shown = f"{name}_total" if counter else name
        described = name if exemplary else shown
        yield f"# HELP {described} {family.help}\n# TYPE {described} {kind if kind in ('counter', 'histogram') else 'gauge'}\n"
        if kind == "histogram":
            yield from _histogram(family, sums, exemplary)
            continue
        rows: Iterable[tuple[Labels, float]]
        if not counter:
            rows = sums.values.get(name, {}).items()
        elif name in derived:
            rows = derived[name].items()
        else:
            rows = ((labels, cells[0]) for labels, cells in sums.of(name))
        for labels, value in sorted(rows):
            inside = _labels(family.labels, labels)
            yield f"{shown}{{{inside}}} {value!r}\n" if inside else f"{shown} {value!r}\n"
    if exemplary:
        yield "# EOF\n"


def _labels(names: Labels, values: Labels) -> str:
    return ",".join([f'{name}="{_escaped(value)}"' for name, value in sorted(zip(names, values, strict=True))])


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") if _SPECIAL.search(value) else value


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


def _histogram(family: Family, sums: _Sums, exemplary: bool) -> Iterator[str]:
    """The lines of a histogram, from the series of times that hold it."""
    name, bounds = family.name, family.bounds
    if name in _PLAIN:
        for labels, cells in sums.of(_PLAIN[name]):
            yield from _buckets(family, labels, cells, {})
        return
    for (route, model), cells in sums.of("times"):
        if name == "gen_ai_client_token_usage":
            if route in _OPERATIONS and model:
                for kind, start in (("input", numbers.READ), ("output", numbers.WRITTEN)):
                    yield from _buckets(
                        family, (_OPERATIONS[route], _PROVIDER, model, kind), cells[start : start + len(TOKENS) + 2], {}
                    )  # fmt: skip
            continue
        for own, (start, theirs) in _TIMES.items():
            part = cells[start : start + len(bounds) + 2]
            examples = sums.exemplars.get((own, route, model), {}) if exemplary else {}
            if name == own:
                yield from _buckets(family, (route, model), part, examples)
            elif name == theirs and route in _OPERATIONS and model:
                yield from _buckets(family, (_OPERATIONS[route], _PROVIDER, model), part, examples)


def _buckets(family: Family, labels: Labels, cells: list[float], examples: dict[int, str]) -> Iterator[str]:
    total = 0.0
    inside = _labels(family.labels, labels)
    lines = []
    for number, (bound, count) in enumerate(zip((*map(repr, family.bounds), "+Inf"), cells, strict=False)):
        total += count
        lines.append(f'{family.name}_bucket{{{inside},le="{bound}"}} {total!r}{examples.get(number, "")}\n')
    if total:
        yield from lines
        yield f"{family.name}_count{{{inside}}} {total!r}\n{family.name}_sum{{{inside}}} {cells[-1]!r}\n"
