"""Plug-ins from outside that raise: the client gets a 500 with the request id, the log the trace, and nothing leaks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.conftest import status_of
from tests.integration.protocol.wire import Answer, ask, one, request
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

PLUGIN = '''
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.routing.pickers import RoundRobin


class Picker:
    """Takes turns, and trips over a name that ends in -0, or over a second attempt at one that ends in -1."""

    def __init__(self):
        self.turns = RoundRobin()

    def pick(self, target, usable):
        if target.name.endswith("-0") or (target.name.endswith("-1") and len(usable) < len(target.deployments)):
            raise ZeroDivisionError("the picker's own")
        return self.turns.pick(target, usable)


def term(ask, deployment, cached_tokens, now_s):
    raise ZeroDivisionError("the term's own")


class Reader:
    """Trips over the first bytes, or over the end."""

    failure = None
    complete = False

    def __init__(self, at):
        self.at = at

    def feed(self, data):
        if self.at == "feed":
            raise ZeroDivisionError("the reader's own")
        return data.replace(b"data: [DONE]\\n\\n", b"")

    def finish(self):
        raise ZeroDivisionError("the reader's own")


class Provider(OpenAIProvider):
    """Trips where the model's name says."""

    name = "tripping"

    def prepare(self, exchange, deployment):
        if deployment.model == "prepare":
            raise ZeroDivisionError("the provider's own")
        return super().prepare(exchange, deployment)

    def whole(self, exchange, deployment, body):
        if deployment.model == "whole":
            raise ZeroDivisionError("the provider's own")
        return super().whole(exchange, deployment, body)

    def reader(self, exchange, deployment):
        if deployment.model == "reader":
            raise ZeroDivisionError("the provider's own")
        if deployment.model in ("feed", "finish"):
            return Reader(deployment.model)
        return super().reader(exchange, deployment)

    def failure(self, exchange, deployment, status, headers, body):
        raise ZeroDivisionError("the provider's own")
'''

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai, discover: false}}
  two: {{url: "{two}", provider: openai, discover: false}}
  three: {{url: "{two}", provider: openai, api_key: "another", discover: false}}
  odd: {{url: "{one}/", provider: "hx_raising_plugin:Provider", api_key: "another", discover: false}}
models:
  picked-0: {{endpoints: [one, two], upstream_model: "tiny:1b"}}
  picked-1: {{endpoints: [one, two, three], upstream_model: "tiny:1b"}}
  lone: {{endpoint: "http://127.0.0.1:9", provider: openai}}
  single: {{endpoint: one, upstream_model: "tiny:1b"}}
  prepare: {{endpoint: odd, upstream_model: "tiny:1b"}}
  whole: {{endpoint: odd, upstream_model: "tiny:1b"}}
  reader: {{endpoint: odd, upstream_model: "tiny:1b"}}
  feed: {{endpoint: odd, upstream_model: "tiny:1b"}}
  finish: {{endpoint: odd, upstream_model: "tiny:1b"}}
  absent: {{endpoint: odd, upstream_model: "nobody:1b"}}
groups:
  steady: {{models: [picked-0], policy: round_robin}}
  scored: {{models: [picked-0], policy: own}}
  scored-alone: {{models: [single], policy: own}}
policies:
  own: {{terms: {{"hx_raising_plugin:term": 1.0}}}}
fallbacks: {{lone: {{down: [picked-0, steady]}}}}
load_balancer: {{algorithm: "hx_raising_plugin:Picker", health_check_interval: 3600, circuit_breaker_threshold: 1000}}
performance: {{request_timeout_seconds: 2, max_concurrent_requests: 1}}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, Scripted]]:
    folder: Path = tmp_path_factory.mktemp("plugin")
    (folder / "hx_raising_plugin.py").write_text(PLUGIN)
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    servers = [Scripted("openai", models=("tiny:1b",)) for _ in range(2)]
    with (
        servers[0] as first,
        servers[1] as second,
        GatewayProcess(CONFIG.format(one=first.url, two=second.url), {"PYTHONPATH": paths}) as process,
    ):
        yield process, servers[0]


def fail(server: Scripted, fault: str | None) -> None:
    """Make a server misbehave, from the thread it runs in."""

    async def change() -> None:
        assert server.backend is not None
        server.backend.fault = fault

    server.run(change)


def chat(gateway: GatewayProcess, model: str, content: str = "ping", stream: bool = False) -> Answer:
    return one(gateway.port, request(ask(content, stream=stream, model=model), "x-request-id: mine-" + model))


def nothing_leaked(gateway: GatewayProcess) -> None:
    """Nothing is counted as under way: the one request at a time that the limit allows is let in and answered."""
    assert not any(deployment["in_flight"] for deployment in status_of(gateway).values())
    assert chat(gateway, "steady").content == "pong"


def faulty(gateway: GatewayProcess, answer: Answer, whose: str) -> None:
    """It is a 500 that leads to its trace in the log."""
    assert (answer.status, answer.code) == (500, "internal_error"), answer.body
    message = json.loads(answer.body)["error"]["message"]
    id = message.rpartition(" ")[2]
    assert answer.header("x-request-id") and len(id) > 20
    log = gateway.log
    assert id in log and f"ZeroDivisionError: the {whose}'s own" in log


@pytest.mark.parametrize(
    ("model", "whose"), [("picked-0", "picker"), ("scored", "term"), ("scored-alone", "term"), ("prepare", "provider")]
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_raises_before_a_call_answers_500(gateway: tuple[GatewayProcess, Scripted], model: str, whose: str, stream: bool) -> None:
    process, _ = gateway
    for _ in range(3):
        faulty(process, chat(process, model, stream=stream), whose)
    nothing_leaked(process)


def test_a_picker_that_raises_at_the_second_attempt_leaves_nobody_without_an_answer(gateway: tuple[GatewayProcess, Scripted]) -> None:
    process, server = gateway
    fail(server, "status status=500")
    seen = [chat(process, "picked-1") for _ in range(6)]
    fail(server, None)
    assert sorted(answer.status for answer in seen) == [200] * 4 + [500] * 2
    for answer in seen:
        if answer.status == 500:
            faulty(process, answer, "picker")
    nothing_leaked(process)


def test_a_name_whose_picker_raises_does_not_stand_in(gateway: tuple[GatewayProcess, Scripted]) -> None:
    process, _ = gateway
    for _ in range(4):
        answer = chat(process, "lone")
        assert answer.content == "pong" and answer.header("x-hx-fallback-from") == "lone"
    assert "might stand in" in process.log
    nothing_leaked(process)


@pytest.mark.parametrize("model", ["whole", "absent"])
def test_an_answer_that_a_provider_trips_over_is_the_servers_fault(gateway: tuple[GatewayProcess, Scripted], model: str) -> None:
    process, _ = gateway
    answer = chat(process, model)
    assert (answer.status, answer.code) == (502, "bad_upstream_response")
    assert "ZeroDivisionError: the provider's own" in process.log
    nothing_leaked(process)


@pytest.mark.parametrize("model", ["reader", "feed"])
def test_a_stream_that_a_provider_trips_over_before_its_first_event(gateway: tuple[GatewayProcess, Scripted], model: str) -> None:
    process, _ = gateway
    answer = chat(process, model, stream=True)
    assert (answer.status, answer.code) == (502, "bad_upstream_response")
    nothing_leaked(process)


def test_a_stream_that_a_provider_trips_over_at_its_end(gateway: tuple[GatewayProcess, Scripted]) -> None:
    process, _ = gateway
    answer = chat(process, "finish", stream=True)
    assert answer.status == 200 and answer.events[-1]["error"]["code"] == "stream_broken"
    nothing_leaked(process)
