"""Who takes over from a name that cannot serve a request: able to, with room enough, and without anybody's turn being lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import monotonic
from typing import Any

from tests.unit.dataplane.tripping import MOOD, Client, Pool

from hx_gateway.config.load import load_text
from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.dataplane.run import Run
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.gateway import Gateway

CONFIG = """
endpoints:
  e1: {url: "http://127.0.0.1:1", provider: openai, discover: false}
  e2: {url: "http://127.0.0.1:2", provider: openai, discover: false}
  e3: {url: "http://127.0.0.1:3", provider: openai, discover: false}
  e4: {url: "http://127.0.0.1:4", provider: openai, discover: false}
models:
  lone: {endpoint: e1}
  pair: {endpoints: [e2, e3]}
  last: {endpoint: e4}
  wide: {endpoints: [e1, e2, e3]}
  tight: {endpoints: [e2, e3], max_concurrent: 1}
fallbacks: {lone: {down: [pair, last], context: [last]}, wide: {context: [last]}}
load_balancer: {algorithm: round_robin, max_attempts: 3, circuit_breaker_timeout: 600}
queue: {max_waiting: 3, max_wait_seconds: 500}
"""
TOO_LONG = b'{"error":{"message":"the maximum context length is 5","type":"invalid_request_error","code":"context_length_exceeded"}}'
WHOLE = (
    b'{"id":"x","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"pong"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)
TOOL = {"type": "function", "function": {"name": "clock"}}


class Fleet:
    """A gateway without sockets; the test says what its model servers answer."""

    def __init__(self) -> None:
        MOOD.__init__()  # type: ignore[misc]
        config = load_text(CONFIG, "gateway.yaml", {}).config
        assert config is not None
        self.gateway = Gateway(config)
        for endpoint in self.gateway.registry.endpoints.values():
            endpoint.pool = Pool(endpoint)

    def of(self, name: str) -> tuple[Deployment, ...]:
        return self.gateway.registry.targets[name].deployments

    def ask(self, name: str, text: str = "ping", **fields: Any) -> Exchange:
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": text}], **fields}).encode()
        exchange = Exchange("id", CHAT, b"POST", b"/v1/chat/completions", {}, [], body, Client(), monotonic())
        self.gateway.dispatch(exchange)
        return exchange

    def asked(self) -> list[str]:
        """Names of the endpoints with a request under way."""
        return [name for name, endpoint in self.gateway.registry.endpoints.items() for _ in endpoint.pool.calls]

    def answer(self, name: str, status: int = 200, body: bytes = WHOLE) -> None:
        call = self.gateway.registry.endpoints[name].pool.calls.pop()
        call.handler.call = None
        call.handler.answered(status, [], body)


def in_loop(test: Callable[[Fleet], None]) -> Callable[[], None]:
    """Run a test within an event loop."""

    def run() -> None:
        async def within() -> None:
            test(Fleet())

        asyncio.run(within())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def trying(deployment: Deployment) -> None:
    """It is down, and has its one trial."""
    for _ in range(deployment.breaker.threshold):
        deployment.breaker.failed(monotonic())
    deployment.breaker.start()


def knowing(fleet: Fleet, name: str, **known: Any) -> None:
    """Something becomes known of each deployment of a name; the registry is made anew, as it is when that happens."""
    for deployment in fleet.of(name):
        for attribute, value in known.items():
            setattr(deployment, attribute, value)
    fleet.gateway.registry = fleet.gateway.assembly.registry()


@in_loop
def test_each_deployment_of_the_name_that_stands_in_has_its_turn(fleet: Fleet) -> None:
    trying(fleet.of("lone")[0])
    for _ in range(4):
        fleet.ask("lone")
    assert fleet.asked() == ["e2", "e2", "e3", "e3"]


@in_loop
def test_who_cannot_do_what_is_asked_does_not_stand_in(fleet: Fleet) -> None:
    knowing(fleet, "pair", unable=frozenset(("tools",)))
    trying(fleet.of("lone")[0])
    fleet.ask("lone", tools=[TOOL])
    assert fleet.asked() == ["e4"]
    fleet.ask("lone")
    assert sorted(fleet.asked()) == ["e2", "e4"], "without tools the first of the chain stands in"


@in_loop
def test_who_has_too_little_context_does_not_stand_in(fleet: Fleet) -> None:
    knowing(fleet, "pair", context_length=1024)
    trying(fleet.of("lone")[0])
    fleet.ask("lone", "several words " * 4000)
    assert fleet.asked() == ["e4"]


@in_loop
def test_of_a_name_that_stands_in_only_those_are_asked_that_can(fleet: Fleet) -> None:
    fleet.of("pair")[0].context_length = 1024
    trying(fleet.of("lone")[0])
    for _ in range(3):
        fleet.ask("lone", "several words " * 4000)
    assert fleet.asked() == ["e3", "e3", "e3"]


@in_loop
def test_a_prompt_too_long_for_one_goes_to_a_sibling_with_more_context_before_another_name_stands_in(fleet: Fleet) -> None:
    small, large, equal = fleet.of("wide")
    small.context_length, large.context_length, equal.context_length = 4096, 8192, 4096
    exchange = fleet.ask("wide")
    assert fleet.asked() == ["e1"]
    fleet.answer("e1", 400, TOO_LONG)
    assert fleet.asked() == ["e2"], "not the one that has no more context than the first"
    fleet.answer("e2", 400, TOO_LONG)
    assert fleet.asked() == ["e4"], "the name that stands in"
    fleet.answer("e4")
    assert isinstance(exchange.client, Client) and exchange.client.status == 200 and exchange.attempts == 3
    assert not any(one.in_flight for one in (small, large, equal))


@in_loop
def test_a_prompt_too_long_is_said_where_nobody_has_more_context(fleet: Fleet) -> None:
    exchange = fleet.ask("pair")
    (name,) = fleet.asked()
    fleet.answer(name, 400, TOO_LONG)
    assert isinstance(exchange.client, Client) and exchange.client.status == 400 and not fleet.asked()


@in_loop
def test_asking_whether_there_is_a_place_takes_nobodys_turn(fleet: Fleet) -> None:
    fleet.ask("tight")
    fleet.ask("tight")
    assert fleet.asked() == ["e2", "e3"]
    run = fleet.ask("tight").owner
    assert isinstance(run, Run) and not run.ready()
    fleet.gateway.registry.endpoints["e2"].pool.calls[0].handler.client_gone()
    fleet.gateway.registry.endpoints["e3"].pool.calls[0].handler.client_gone()
    for _ in range(3):
        assert run.ready()
    run.admit()
    assert [len(fleet.gateway.registry.endpoints[name].pool.under_way()) for name in ("e2", "e3")] == [0, 1], "it is the second one's turn"
