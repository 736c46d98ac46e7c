"""Gateways in front of scripted model servers that fail on demand, and a look at what they leave behind."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.background import Scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend
from hx_gateway.testing.faults import Fault

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai}}
  two: {{url: "{two}", provider: openai}}
models:
  solo: {{endpoint: one, upstream_model: "tiny:1b"}}
  first: {{endpoint: one, upstream_model: "tiny:1b", weight: 1000000}}
  second: {{endpoint: two, upstream_model: "tiny:1b", weight: 0.0001}}
groups:
  pair: {{models: [first, second], policy: weighted}}
gateway: {{default_upstream: one}}
load_balancer: {{health_check_interval: 3600, circuit_breaker_threshold: {threshold}, circuit_breaker_timeout: {rest_s}}}
performance: {{request_timeout_seconds: {wait_s}, connect_timeout_seconds: 2}}
http: {{max_response_bytes: 1000000}}
queue: {{max_waiting: 0}}
"""


@dataclass
class Fleet:
    """A gateway and two model servers; requests to ``pair`` go to the first while it is well."""

    gateway: GatewayProcess
    servers: dict[str, Scripted]
    one: Backend
    two: Backend

    def fail(self, name: str, fault: Fault | str | None) -> None:
        """Make a server misbehave, from the thread it runs in."""
        server = self.servers[name]

        async def change() -> None:
            assert server.backend is not None
            server.backend.fault = fault  # type: ignore[assignment]

        server.run(change)

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return self.gateway.port

    def status(self) -> dict[str, dict[str, Any]]:
        """Every deployment as ``/models/status`` shows it, by its model's name."""
        return status_of(self.gateway)

    def until(self, condition: Callable[[Fleet], bool], within_s: float = 30.0) -> None:
        """Wait until the condition holds."""
        wait_until(lambda: condition(self), within_s)

    def at_rest(self) -> bool:
        """Whether nothing is under way anywhere."""
        return not any(deployment["in_flight"] for deployment in self.status().values())


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    """Wait until the condition holds; fails the test when it never does."""
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "what was waited for did not come"
        time.sleep(0.01)


def status_of(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    """Every deployment as ``/models/status`` shows it, by its model's name."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", "/models/status", headers={"authorization": f"Bearer {KEY}"})
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return {deployment["model"]: deployment for target in answer["models"] for deployment in target["deployments"]}


def fleet_of(threshold: int = 1000, rest_s: float = 60, wait_s: float = 1.0, more: str = "", **settings: Any) -> Iterator[Fleet]:
    """A fleet; ``settings`` are those of the scripted servers."""
    settings = {"models": ("tiny:1b",), **settings}
    servers = {name: Scripted("openai", **settings) for name in ("one", "two")}
    with servers["one"] as one, servers["two"] as two:
        config = CONFIG.format(one=one.url, two=two.url, threshold=threshold, rest_s=rest_s, wait_s=wait_s) + more
        with GatewayProcess(config) as gateway:
            yield Fleet(gateway, servers, one, two)


@pytest.fixture(scope="package")
def shared() -> Iterator[Fleet]:
    """A fleet whose breakers do not open for a single failure."""
    for fleet in fleet_of():
        yield fleet
        assert "Traceback" not in fleet.gateway.log and "internal error" not in fleet.gateway.log, fleet.gateway.log[-4000:]


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    """The shared fleet, well; after the test nothing may be under way, and the next request must be answered."""
    from tests.faults.asking import chat

    for name, backend in (("one", shared.one), ("two", shared.two)):
        shared.fail(name, None)
        backend.first_token_s = backend.token_s = 0.0
        backend.forget()
    yield shared
    for name, backend in (("one", shared.one), ("two", shared.two)):
        shared.fail(name, None)
        backend.first_token_s = backend.token_s = 0.0
    shared.until(Fleet.at_rest)
    for model in ("solo", "first", "second"):
        assert chat(shared.port, "and the next", model=model).content == "and the next"
    assert shared.at_rest()
