"""The metrics in Prometheus' text format: counters as they stand, and the fleet's state at the moment of the scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

from hx_gateway.core.errors import CATALOGUE
from hx_gateway.dataplane.shelf import Shelf
from hx_gateway.health.summary import deployment_usable
from hx_gateway.ledger.observer import Ledger
from hx_gateway.telemetry.cached import cached
from hx_gateway.telemetry.limited import limited
from hx_gateway.telemetry.metrics import OVERHEAD_SECONDS, SECONDS, Metrics, Times

if TYPE_CHECKING:
    from hx_gateway.fleet.registry import Registry

_THROTTLED = frozenset(("rate_limit_exceeded", "insufficient_quota", "overloaded", "upstream_busy"))
_BLAME = {kind.code: kind.blame.value for kind in CATALOGUE}
_BREAKER_STATES = {"closed": 0.0, "half-open": 1.0, "open": 2.0}


class Kept(Protocol):
    """What keeps something for the gateway."""

    @property
    def ledger(self) -> Ledger: ...

    @property
    def metering(self) -> Any: ...

    @property
    def shelf(self) -> Shelf: ...

    @property
    def redis(self) -> Any: ...


class Observed(Protocol):
    """What is reported on: the gateway, as far as it is needed here."""

    @property
    def backing(self) -> Kept: ...

    @property
    def registry(self) -> Registry: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def started_wall_s(self) -> float: ...

    @property
    def draining(self) -> bool: ...

    @property
    def ready(self) -> bool: ...


class GatewayCollector(Collector):
    """Turns the counters of `Metrics` and the live state of the registry into metric families."""

    def __init__(self, observed: Observed, version: str) -> None:
        self._observed = observed
        self._version = version

    def collect(self) -> Iterable[Metric]:
        """All families; read in one go on the loop's own thread, so they agree with each other."""
        observed = self._observed
        info = GaugeMetricFamily("hx_gateway_info", "Always 1; its label tells the version.", labels=["version"])
        info.add_metric([self._version], 1.0)
        yield info
        yield GaugeMetricFamily("hx_gateway_start_time_seconds", "When the gateway started, in Unix time.", value=observed.started_wall_s)
        yield GaugeMetricFamily(
            "hx_gateway_ready", "1 while requests are taken, 0 before start and while draining.", value=float(observed.ready and not observed.draining)
        )  # fmt: skip
        yield from _requests(observed.metrics)
        yield from _times_taken(observed.metrics)
        yield from _endpoints(observed.registry)
        yield from _deployments(observed.registry)
        yield from limited(observed.backing)
        yield from cached(observed.backing.shelf)
        yield from _ledger(observed.backing.ledger)


def _requests(metrics: Metrics) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "hx_gateway_requests", "Requests that came to an end.", labels=["route", "target", "model", "endpoint", "status", "code"]
    )
    refused = CounterMetricFamily(
        "hx_gateway_errors", "Requests that ended in an error, and whose fault it was.", labels=["route", "code", "blame"]
    )
    throttled = CounterMetricFamily("hx_gateway_throttled", "Requests refused by a limit.", labels=["route", "code"])
    tokens = CounterMetricFamily("hx_gateway_tokens", "Tokens read and written by models.", labels=["target", "model", "kind"])
    errors: dict[tuple[str, str], int] = {}
    used: dict[tuple[str, str, str], int] = {}
    for (route, target, model, endpoint, code, status), series in metrics.series.items():
        requests.add_metric([route, target, model, endpoint, str(status), code], series.count)
        if code:
            errors[route, code] = errors.get((route, code), 0) + series.count
        kinds = (("prompt", series.prompt_tokens), ("completion", series.completion_tokens), ("cached", series.cached_tokens))
        for kind, count in kinds:
            if count:
                used[target, model, kind] = used.get((target, model, kind), 0) + count
    for (route, code), count in errors.items():
        refused.add_metric([route, code, _BLAME.get(code, "")], count)
        if code in _THROTTLED:
            throttled.add_metric([route, code], count)
    for labels, count in used.items():
        tokens.add_metric(list(labels), count)
    attempts = CounterMetricFamily(
        "hx_gateway_attempts",
        "Calls to model servers: how requests were distributed, and how the calls ended.",
        labels=["target", "model", "endpoint", "code"],
    )
    for attempt, count in metrics.attempts.items():
        attempts.add_metric(list(attempt), count)
    yield from (requests, refused, throttled, tokens, attempts)


def _times_taken(metrics: Metrics) -> Iterator[Metric]:
    response = HistogramMetricFamily(
        "hx_gateway_response_seconds", "From the request received to the last byte handed on.", labels=["route", "model"]
    )
    for labels, times in metrics.durations.items():
        _add(response, list(labels), SECONDS, times)
    first = HistogramMetricFamily(
        "hx_gateway_first_token_seconds", "From the request received to the first byte of a stream.", labels=["route", "model"]
    )
    for labels, times in metrics.first_tokens.items():
        _add(first, list(labels), SECONDS, times)
    overhead = HistogramMetricFamily(
        "hx_gateway_overhead_seconds", "Response time of whole answers without the wait for the model server.", labels=["route"]
    )
    for route, times in metrics.overheads.items():
        _add(overhead, [route], OVERHEAD_SECONDS, times)
    yield from (response, first, overhead)


def _add(family: HistogramMetricFamily, labels: list[str], bounds: tuple[float, ...], times: Times) -> None:
    buckets: list[tuple[str, float]] = []
    total = 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), times, strict=False):
        total += count
        buckets.append((bound, total))
    if total:
        family.add_metric(labels, buckets, times[-1])


def _endpoints(registry: Registry) -> Iterator[Metric]:
    up = GaugeMetricFamily("hx_gateway_endpoint_up", "1 if the last probe went well, else 0; absent before the first.", labels=["endpoint"])
    in_flight = GaugeMetricFamily("hx_gateway_endpoint_in_flight", "Calls under way at an endpoint.", labels=["endpoint"])
    breaker = GaugeMetricFamily("hx_gateway_endpoint_breaker", "An endpoint's breaker: 0 closed, 1 half-open, 2 open.", labels=["endpoint"])
    limit = GaugeMetricFamily("hx_gateway_endpoint_limit", "Most calls at once; absent for no limit.", labels=["endpoint"])
    for endpoint in registry.endpoints.values():
        labels = [endpoint.name]
        if endpoint.facts.healthy is not None:
            up.add_metric(labels, float(endpoint.facts.healthy))
        in_flight.add_metric(labels, endpoint.in_flight)
        breaker.add_metric(labels, _BREAKER_STATES[endpoint.breaker.state])
        if endpoint.max_concurrent:
            limit.add_metric(labels, endpoint.max_concurrent)
    yield from (up, in_flight, breaker, limit)


def _deployments(registry: Registry) -> Iterator[Metric]:
    labels = ["model", "endpoint"]
    in_flight = GaugeMetricFamily("hx_gateway_deployment_in_flight", "Calls under way for a model at an endpoint.", labels=labels)
    breaker = GaugeMetricFamily(
        "hx_gateway_deployment_breaker", "Breaker of a model at an endpoint: 0 closed, 1 half-open, 2 open.", labels=labels
    )
    limit = GaugeMetricFamily("hx_gateway_deployment_limit", "Most calls at once; absent for no limit.", labels=labels)
    available = GaugeMetricFamily(
        "hx_gateway_available_ratio", "Share of the deployments of a public name that can be used now.", labels=["target"]
    )
    seen: set[tuple[str, str]] = set()
    for target in registry.targets.values():
        usable = 0
        for deployment in target.deployments:
            usable += deployment_usable(deployment)
            key = (deployment.model, deployment.endpoint.name)
            if key in seen:
                continue
            seen.add(key)
            in_flight.add_metric(key, deployment.in_flight)
            breaker.add_metric(key, _BREAKER_STATES[deployment.breaker.state])
            if deployment.max_concurrent:
                limit.add_metric(key, deployment.max_concurrent)
        if target.deployments:
            available.add_metric([target.name], usable / len(target.deployments))
    yield from (in_flight, breaker, limit, available)


def _ledger(ledger: Ledger) -> Iterator[Metric]:
    journal = ledger.journal
    written, lost, buried, discarded, pending = (
        (journal.records, journal.lost, journal.dead_lettered, journal.discarded, journal.pending_bytes)
        if journal is not None
        else (0,) * 5
    )
    yield CounterMetricFamily("hx_gateway_journal_records", "Usage records written to the journal.", value=written)
    yield CounterMetricFamily(
        "hx_gateway_journal_lost",
        "Usage records that could not be written: the disk or the journal is full.",
        value=lost + ledger.unrecorded,
    )
    yield CounterMetricFamily(
        "hx_gateway_journal_dead_lettered", "Usage records moved aside because the journal was full and the store away.", value=buried
    )
    yield CounterMetricFamily(
        "hx_gateway_journal_discarded", "Segments of dead letters deleted because those were full, too.", value=discarded
    )
    yield GaugeMetricFamily("hx_gateway_journal_pending_bytes", "Journal of all workers that is not in the store yet.", value=pending)
    bodies = ledger.bodies
    yield CounterMetricFamily("hx_gateway_bodies_kept", "Exchanges whose bodies were written down.", value=bodies.kept)
    yield CounterMetricFamily(
        "hx_gateway_bodies_lost", "Exchanges whose bodies could not be written down: no room, or too many at once.", value=bodies.lost
    )


def collectors(observed: Observed, version: str) -> CollectorRegistry:
    """A registry of its own with everything this process reports, its memory and processor time included."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(GatewayCollector(observed, version))
    ProcessCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The report and its content type: OpenMetrics where ``accept`` asks for it, else Prometheus' text format."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
