"""Traces of a running gateway, as a collector gets them: spans of the exchange and of each attempt, and a collector that is dead or deaf."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess, free_port
from tests.support.required import missing

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
except ImportError:
    missing("needs OpenTelemetry: pip install 'hx-gateway[otel]'")

TRACE, PARENT = "ab" * 16, "cd" * 8
CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}, gone: {{url: "http://127.0.0.1:9", provider: openai}}}}
models:
  solo: {{endpoint: one, upstream_model: "tiny:1b"}}
  lost: {{endpoint: gone, weight: 1000000}}
  found: {{endpoint: one, upstream_model: "tiny:1b", weight: 0.0001}}
groups: {{pair: {{models: [lost, found], policy: weighted}}}}
load_balancer: {{health_check_interval: 3600}}
monitoring: {{otlp_endpoint: "{collector}", trace_ratio: {ratio}, log_format: json}}
"""


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for part in told.resource_spans:
                    outer.resources.append({one.key: one.value.string_value for one in part.resource.attributes})
                    outer.spans += [span for scope in part.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, trace: str) -> list[Any]:
        """The spans of a trace, in the order they began."""
        return sorted((span for span in list(self.spans) if span.trace_id.hex() == trace), key=lambda span: span.start_time_unix_nano)


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, Collector, Scripted]]:
    collector, server = Collector(), Scripted()
    environment = {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("state"))}
    with server as backend, GatewayProcess(CONFIG.format(url=backend.url, collector=collector.url, ratio=0.0), environment) as gateway:
        yield gateway, collector, server
    collector.server.shutdown()


def lines(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gateway.log.splitlines()]


def test_an_exchange_and_its_attempts(stage: tuple[GatewayProcess, Collector, Scripted]) -> None:
    gateway, collector, server = stage
    began_ns = time.time_ns()
    answer = chat(gateway.port, "ping", "pair", False, f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: vendor=x")
    assert answer.status == 200
    wait_until(lambda: len(collector.of(TRACE)) == 3, 20)
    whole, failed, well = collector.of(TRACE)
    assert collector.resources[0]["service.name"] == "hx-gateway"
    assert whole.parent_span_id.hex() == PARENT and failed.parent_span_id == well.parent_span_id == whole.span_id
    assert (whole.kind, failed.kind) == (2, 3)  # SERVER, CLIENT
    assert began_ns <= whole.start_time_unix_nano + 5_000_000 and whole.end_time_unix_nano <= time.time_ns() + 5_000_000
    assert whole.start_time_unix_nano <= failed.start_time_unix_nano <= failed.end_time_unix_nano <= well.end_time_unix_nano
    about = attributes(whole)
    assert (
        about["gen_ai.operation.name"] == "chat" and about["gen_ai.request.model"] == "pair" and about["gen_ai.response.model"] == "found"
    )
    assert about["http.response.status_code"] == 200 and about["hx_gateway.attempts"] == 2 and about["gen_ai.usage.output_tokens"] > 0
    assert "error.type" not in about and whole.name == "chat found"
    assert attributes(failed)["error.type"] == "upstream_connect_failed" and failed.status.code == 2
    assert attributes(well)["server.address"] == "one" and well.status.code != 2

    assert server.backend is not None
    upstream = server.backend.requests[-1].headers
    assert upstream["traceparent"] == f"00-{TRACE}-{well.span_id.hex()}-01" and upstream["tracestate"] == "vendor=x"
    wait_until(lambda: any(line.get("trace_id") == TRACE for line in lines(gateway)), 20)
    scrape = one(gateway.port, request(b"", "accept: application/openmetrics-text", method="GET", path="/metrics")).body.decode()
    assert f'# {{trace_id="{TRACE}"}}' in scrape


def test_what_nobody_samples_is_passed_on_untouched(stage: tuple[GatewayProcess, Collector, Scripted]) -> None:
    gateway, _, server = stage
    theirs = f"00-{'a' * 32}-{PARENT}-00"
    assert chat(gateway.port, "ping", "solo", False, f"traceparent: {theirs}").status == 200
    assert server.backend is not None
    assert server.backend.requests[-1].headers["traceparent"] == theirs
    assert chat(gateway.port, "ping", "solo").status == 200
    assert "traceparent" not in server.backend.requests[-1].headers


def test_a_refusal_is_traced(stage: tuple[GatewayProcess, Collector, Scripted]) -> None:
    gateway, collector, _ = stage
    trace = "b" * 32
    assert chat(gateway.port, "ping", "nobody", False, f"traceparent: 00-{trace}-{PARENT}-01").status == 404
    wait_until(lambda: len(collector.of(trace)) == 1, 20)
    [span] = collector.of(trace)
    assert attributes(span)["error.type"] == "model_not_found" and attributes(span)["http.response.status_code"] == 404


@pytest.mark.parametrize("deaf", [False, True])
def test_a_collector_that_is_dead_or_deaf_hurts_nobody(tmp_path: Path, deaf: bool) -> None:
    silent = socket.create_server(("127.0.0.1", 0)) if deaf else None
    port = silent.getsockname()[1] if silent is not None else free_port()
    with Scripted() as backend:
        config = CONFIG.format(url=backend.url, collector=f"http://127.0.0.1:{port}/v1/traces", ratio=1.0)
        with GatewayProcess(config, {"XDG_STATE_HOME": str(tmp_path)}) as gateway:
            for number in range(60):
                assert chat(gateway.port, str(number)).status == 200
            if not deaf:
                wait_until(lambda: any("traces do not reach" in line["event"] for line in lines(gateway)), 60)
            began_s = time.monotonic()
            assert gateway.stop() == 0
            assert time.monotonic() - began_s < 20
            assert not any(line["level"] == "error" for line in lines(gateway))
    if silent is not None:
        silent.close()
