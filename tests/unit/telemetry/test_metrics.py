"""What is counted, under which labels, and what the report looks like to Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hx_gateway.config.schema import MonitoringSettings
from hx_gateway.core import errors
from hx_gateway.core.clock import ManualClock
from hx_gateway.core.context import CHAT, EMBEDDINGS, FORWARD, RAG, Exchange, Route
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.metering import Metering
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.dataplane.shelf import Shelf
from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.drains import Drains
from hx_gateway.fleet.endpoint import Address, Endpoint, Prices
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.ledger.observer import Ledger
from hx_gateway.routing.ceilings import limits_of
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.telemetry.desk import Desk
from hx_gateway.telemetry.exposition import Report
from hx_gateway.telemetry.families import FAMILIES
from hx_gateway.telemetry.metrics import Metrics
from hx_gateway.testing.factories import DeafClient

ENDPOINT = Endpoint("llm-01", Address("http", "127.0.0.1", 9), max_concurrent=4)
DEPLOYMENT = Deployment("phi3", "phi3", ENDPOINT, max_concurrent=2)
TARGET = Target("hx-chat", "group", (DEPLOYMENT,), "balanced")


@dataclass
class Facts:
    stream: bool


@dataclass
class Kept:
    """What keeps something for it."""

    ledger: Ledger = field(default_factory=Ledger)
    metering: Metering = field(default_factory=Metering)
    redis: None = None
    vectors_open: bool = False
    drains: Drains = field(default_factory=Drains)
    shelf: Shelf = field(default_factory=Shelf)
    folder: Path | None = None


@dataclass
class Observed:
    """A gateway, as far as metrics look at it."""

    telemetry: Desk
    registry: Registry = field(default_factory=lambda: Registry({"hx-chat": TARGET}, {"llm-01": ENDPOINT}))
    started_wall_s: float = 1_700_000_000.0
    backing: Kept = field(default_factory=Kept)
    draining: bool = False
    ready: bool = True
    reloading: None = None
    router: Router = field(default_factory=lambda: Router(policy))
    proxy: Proxy = field(default_factory=lambda: Proxy(Router(policy), lambda endpoint: None))  # type: ignore[arg-type,return-value]


def desk(metrics: Metrics) -> Desk:
    made = Desk(MonitoringSettings(), ManualClock(), metrics.book)
    made.metrics = metrics
    return made


def shown(report: Report, accept: str = "") -> tuple[bytes, str]:
    return report.text(report.told(), accept)


def exchange(route: Route = CHAT, stream: bool = False, at_s: float = 100.0, **changes: Any) -> Exchange:
    made = Exchange("01TEST", route, b"POST", b"/", {}, [], b"", DeafClient(), at_s)
    made.facts = Facts(stream)
    made.asked = "whatever the client wrote"
    made.candidates = TARGET
    made.deployment = DEPLOYMENT
    made.status = 200
    made.attempts = 1
    made.call_s = at_s + 0.001
    made.first_byte_s = at_s + 0.201
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def refused(kind: errors.ErrorKind) -> Exchange:
    return exchange(
        deployment=None, candidates=None, status=kind.status, outcome=kind, attempts=0, call_s=0.0, first_byte_s=0.0, facts=None
    )


def samples(metrics: Metrics, **parts: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = shown(Report(Observed(desk(metrics), **parts), "1.2.3"))
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def value(found: dict[Any, float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_an_answer_is_counted_with_times_and_tokens() -> None:
    clock = ManualClock(100.203)
    metrics = Metrics(clock)
    metrics.finished(exchange(prompt_tokens=9, completion_tokens=4, cached_tokens=2))
    metrics.finished(exchange(prompt_tokens=1, completion_tokens=-1))
    found = samples(metrics)
    labels = {"route": "chat", "target": "hx-chat", "model": "phi3", "endpoint": "llm-01", "status": "200", "code": ""}
    assert value(found, "hx_gateway_requests_total", **labels) == 2
    assert value(found, "hx_gateway_tokens_total", target="hx-chat", model="phi3", kind="prompt", source="engine") == 10
    assert value(found, "hx_gateway_tokens_total", target="hx-chat", model="phi3", kind="completion", source="engine") == 4
    assert value(found, "hx_gateway_tokens_total", target="hx-chat", model="phi3", kind="cached", source="engine") == 2
    assert value(found, "hx_gateway_response_seconds_count", route="chat", model="phi3") == 2
    assert value(found, "hx_gateway_response_seconds_sum", route="chat", model="phi3") == pytest.approx(0.406)
    assert value(found, "hx_gateway_response_seconds_bucket", route="chat", model="phi3", le="0.1") == 0
    assert value(found, "hx_gateway_response_seconds_bucket", route="chat", model="phi3", le="0.25") == 2
    assert value(found, "hx_gateway_response_seconds_bucket", route="chat", model="phi3", le="+Inf") == 2


def test_overhead_is_the_time_without_the_model_server() -> None:
    metrics = Metrics(ManualClock(100.203))  # 1 ms before the call, 200 ms waiting, 2 ms after
    metrics.finished(exchange())
    found = samples(metrics)
    assert value(found, "hx_gateway_overhead_seconds_sum", route="chat") == pytest.approx(0.003)
    assert value(found, "hx_gateway_overhead_seconds_bucket", route="chat", le="0.0025") == 0
    assert value(found, "hx_gateway_overhead_seconds_bucket", route="chat", le="0.005") == 1


def test_a_refusal_is_all_overhead() -> None:
    metrics = Metrics(ManualClock(100.0004))
    metrics.finished(refused(errors.INVALID_API_KEY))
    assert value(samples(metrics), "hx_gateway_overhead_seconds_sum", route="chat") == pytest.approx(0.0004)


@pytest.mark.parametrize(
    "changes",
    [
        {"attempts": 2},
        {"first_byte_s": 0.0, "status": 502, "outcome": errors.CONNECT_FAILED},
        {"route": FORWARD, "call_s": 0.0, "first_byte_s": 0.0},
    ],
)
def test_no_overhead_where_the_servers_share_is_not_known(changes: dict[str, Any]) -> None:
    metrics = Metrics(ManualClock(100.3))
    metrics.finished(exchange(**changes))
    found = samples(metrics)
    assert not any(name.startswith("hx_gateway_overhead_seconds_") for name, _ in found)
    assert sum(count for (name, _), count in found.items() if name == "hx_gateway_response_seconds_sum") == pytest.approx(0.3)


def test_a_stream_tells_its_time_to_the_first_token_and_no_overhead() -> None:
    metrics = Metrics(ManualClock(109.0))
    metrics.finished(exchange(stream=True))
    found = samples(metrics)
    assert value(found, "hx_gateway_first_token_seconds_sum", route="chat", model="phi3") == pytest.approx(0.201)
    assert value(found, "hx_gateway_response_seconds_sum", route="chat", model="phi3") == pytest.approx(9.0)
    assert not any(name.startswith("hx_gateway_overhead_seconds_") for name, _ in found)


def test_errors_and_throttling_are_counted_by_code() -> None:
    metrics = Metrics(ManualClock(100.0))
    for kind in (errors.RATE_LIMITED, errors.RATE_LIMITED, errors.OVERLOADED, errors.MODEL_NOT_FOUND, errors.CLIENT_CLOSED):
        metrics.finished(refused(kind))
    found = samples(metrics)
    assert value(found, "hx_gateway_errors_total", route="chat", code="rate_limit_exceeded", blame="client") == 2
    assert value(found, "hx_gateway_throttled_total", route="chat", code="rate_limit_exceeded") == 2
    assert value(found, "hx_gateway_throttled_total", route="chat", code="overloaded") == 1
    assert value(found, "hx_gateway_errors_total", route="chat", code="model_not_found", blame="client") == 1
    assert value(found, "hx_gateway_errors_total", route="chat", code="client_closed", blame="nobody") == 1
    assert ("hx_gateway_throttled_total", (("code", "model_not_found"), ("route", "chat"))) not in found


def test_attempts_show_the_distribution_and_what_failed() -> None:
    metrics = Metrics(ManualClock(100.0))
    metrics.attempted(exchange(), None)
    metrics.attempted(exchange(), None)
    metrics.attempted(exchange(), Failure(errors.CONNECT_FAILED, "x"))
    found = samples(metrics)
    labels = {"target": "hx-chat", "model": "phi3", "endpoint": "llm-01"}
    assert value(found, "hx_gateway_attempts_total", **labels, code="") == 2
    assert value(found, "hx_gateway_attempts_total", **labels, code="upstream_connect_failed") == 1


def test_nothing_a_client_writes_becomes_a_label() -> None:
    metrics = Metrics(ManualClock(100.0))
    for number in range(100):
        metrics.finished(exchange(asked=f"model-{number}", target=b"/v1/%d" % number, route=EMBEDDINGS))
        metrics.finished(refused(errors.MODEL_NOT_FOUND))
    assert sum(name == "hx_gateway_requests_total" for name, _ in samples(metrics)) == 2
    assert b"model-" not in shown(Report(Observed(desk(metrics)), "1"))[0]


def test_what_was_forwarded_is_counted_where_it_went() -> None:
    metrics = Metrics(ManualClock(100.0))
    metrics.finished(exchange(route=FORWARD, deployment=None, candidates=None, upstream="litellm", facts=None))
    labels = {"route": "forward", "target": "", "model": "", "endpoint": "litellm", "status": "200", "code": ""}
    assert value(samples(metrics), "hx_gateway_requests_total", **labels) == 1


def test_tokens_of_the_gateways_cache_are_told_apart() -> None:
    metrics = Metrics(ManualClock(100.3))
    metrics.finished(exchange(prompt_tokens=9, completion_tokens=4))
    metrics.finished(exchange(prompt_tokens=9, completion_tokens=4, cached="hit"))
    found = samples(metrics)
    tokens = {"target": "hx-chat", "model": "phi3", "kind": "prompt"}
    assert value(found, "hx_gateway_tokens_total", **tokens, source="engine") == 9
    assert value(found, "hx_gateway_tokens_total", **tokens, source="cache") == 9


def test_cost_is_that_of_the_ledger_and_follows_prices() -> None:
    one = Deployment("phi3", "phi3", ENDPOINT, prices=Prices(per_request=0.5, per_completion_token=0.25))
    metrics = Metrics(ManualClock(100.3))
    made = exchange(deployment=one, prompt_tokens=9, completion_tokens=4)
    metrics.finished(made)
    one.prices = Prices()
    metrics.finished(made)
    one.prices = Prices(per_prompt_token=1.0)
    metrics.finished(made)
    metrics.finished(exchange(deployment=one, prompt_tokens=9, cached="hit"))
    assert value(samples(metrics), "hx_gateway_cost_total", target="hx-chat", model="phi3", endpoint="llm-01") == 10.5


def test_opentelemetrys_names_tell_the_same() -> None:
    metrics = Metrics(ManualClock(101.201))
    metrics.finished(exchange(stream=True, prompt_tokens=16, completion_tokens=11))
    found = samples(metrics)
    model = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "hx_gateway", "gen_ai_request_model": "phi3"}
    assert value(found, "gen_ai_server_time_to_first_token_seconds_sum", **model) == pytest.approx(0.201)
    assert value(found, "gen_ai_server_time_per_output_token_seconds_sum", **model) == pytest.approx(0.1)
    assert value(found, "gen_ai_server_request_duration_seconds_count", **model) == 1
    assert value(found, "gen_ai_client_token_usage_bucket", **model, gen_ai_token_type="input", le="16.0") == 1
    assert value(found, "gen_ai_client_token_usage_bucket", **model, gen_ai_token_type="input", le="4.0") == 0
    assert value(found, "gen_ai_client_token_usage_sum", **model, gen_ai_token_type="output") == 11


def test_queues_and_cold_loads_are_timed() -> None:
    metrics = Metrics(ManualClock(101.0))
    metrics.finished(exchange(queued_s=0.3, load_s=4.0))
    metrics.finished(exchange())
    found = samples(metrics)
    assert value(found, "hx_gateway_queue_wait_seconds_count", target="hx-chat") == 1
    assert value(found, "hx_gateway_queue_wait_seconds_bucket", target="hx-chat", le="0.25") == 0
    assert value(found, "hx_gateway_model_loads_total", model="phi3", endpoint="llm-01") == 1
    assert value(found, "hx_gateway_model_load_seconds_total", model="phi3", endpoint="llm-01") == 4


def test_documents_are_counted_by_what_was_asked_for() -> None:
    metrics = Metrics(ManualClock(100.3))
    for target in (b"/v1/rag/search?x=1", b"/v1/vector_stores/a/search", b"/v1/rag/anything-a-client-writes"):
        metrics.finished(exchange(route=RAG, target=target, deployment=None, candidates=None, facts=None, call_s=0.0, first_byte_s=0.0))
    found = samples(metrics)
    assert value(found, "hx_gateway_rag_requests_total", operation="search", code="") == 2
    assert value(found, "hx_gateway_rag_requests_total", operation="other", code="") == 1
    assert value(found, "hx_gateway_rag_seconds_sum", operation="search") == pytest.approx(0.6)


def test_every_family_is_described_once_and_shown() -> None:
    text = shown(Report(Observed(desk(Metrics())), "1"))[0].decode()
    for family in FAMILIES.values():
        assert text.count(f"# TYPE {family.name}{'_total' if family.kind == 'counter' else ''} ") == 1, family.name
        assert family.help.endswith("."), family.name


def test_gauges_show_the_fleet_at_the_moment_of_the_scrape() -> None:
    broken = Breaker(1)
    broken.failed(0.0)
    endpoint = Endpoint("llm-02", Address("http", "127.0.0.1", 9))
    endpoint.facts.healthy = False
    endpoint.in_flight = 3
    down = Deployment("phi3", "phi3", endpoint, breaker=broken)
    down.in_flight = 2
    up = Deployment("gemma2", "gemma2", ENDPOINT, max_concurrent=2, limits=limits_of(60, 0))
    registry = Registry({"hx-chat": Target("hx-chat", "group", (down, up))}, {"llm-01": ENDPOINT, "llm-02": endpoint})
    found = samples(Metrics(), registry=registry, draining=True)
    assert value(found, "hx_gateway_info", version="1.2.3") == 1
    assert value(found, "hx_gateway_ready") == 0
    assert value(found, "hx_gateway_endpoint_up", endpoint="llm-02") == 0
    assert ("hx_gateway_endpoint_up", (("endpoint", "llm-01"),)) not in found  # never probed
    assert value(found, "hx_gateway_endpoint_in_flight", endpoint="llm-02") == 3
    assert value(found, "hx_gateway_endpoint_limit", endpoint="llm-01") == 4
    assert value(found, "hx_gateway_endpoint_breaker", endpoint="llm-01") == 0
    assert value(found, "hx_gateway_deployment_breaker", model="phi3", endpoint="llm-02") == 2
    assert value(found, "hx_gateway_deployment_in_flight", model="phi3", endpoint="llm-02") == 2
    assert value(found, "hx_gateway_deployment_limit", model="gemma2", endpoint="llm-01") == 2
    assert value(found, "hx_gateway_deployment_minute_left", model="gemma2", endpoint="llm-01", unit="requests") == 60
    assert value(found, "hx_gateway_deployment_minute_limit", model="gemma2", endpoint="llm-01", unit="requests") == 60
    assert not any(name == "hx_gateway_deployment_minute_left" and ("unit", "tokens") in labels for name, labels in found)
    assert value(found, "hx_gateway_available_ratio", target="hx-chat") == 0.5


def test_every_metric_of_ours_is_named_for_the_gateway() -> None:
    metrics = Metrics()
    metrics.finished(exchange(prompt_tokens=1))
    metrics.attempted(exchange(), None)
    names = {name for name, _ in samples(metrics)}
    assert all(name.startswith(("hx_gateway_", "gen_ai_")) for name in names)


def test_openmetrics_is_given_to_whom_asks_for_it() -> None:
    body, content_type = shown(Report(Observed(desk(Metrics())), "1"), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
