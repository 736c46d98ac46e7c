"""A gateway before two scripted servers, for the commands that look at a running gateway."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.conftest import wait_until
from tests.support.background import Scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.ops.verify_client import Client
from hx_gateway.testing.script import Model

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai, discover: false}}
  two: {{url: "{two}", provider: openai, discover: false}}
models:
  small: {{endpoints: [one, two], upstream_model: "tiny:1b", mode: chat}}
  large: {{endpoint: one, upstream_model: "tiny:1b", mode: chat}}
  emb-premium: {{endpoint: one, upstream_model: vectors, mode: embedding, dimensions: 16}}
groups:
  hx-chat: {{models: [small, large], tier: balanced}}
aliases: {{gpt-4o: hx-chat}}
load_balancer: {{algorithm: round_robin, health_check_interval: 0.5, circuit_breaker_threshold: 1000}}
storage: {{state_directory: "{state}"}}
"""


class Fleet:
    """A gateway before two scripted servers that can be made to misbehave."""

    def __init__(self, gateway: GatewayProcess, servers: dict[str, Scripted]) -> None:
        self.gateway = gateway
        self.servers = servers

    def fail(self, name: str, fault: str | None) -> None:
        server = self.servers[name]

        async def change() -> None:
            assert server.backend is not None
            server.backend.fault = fault

        server.run(change)


@pytest.fixture(scope="package")
def servers() -> Iterator[dict[str, Scripted]]:
    models = (Model("tiny:1b", ("completion",)), Model("vectors", ("embedding",)))
    found = {name: Scripted("openai", models=models) for name in ("one", "two")}
    with found["one"], found["two"]:
        yield found


def config_for(servers: dict[str, Scripted], state: Path, more: str = "") -> str:
    one, two = (server.backend.url for server in servers.values() if server.backend is not None)
    return CONFIG.format(one=one, two=two, state=state) + more


@pytest.fixture(scope="package")
def shared(servers: dict[str, Scripted], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with GatewayProcess(config_for(servers, tmp_path_factory.mktemp("state"))) as gateway:
        yield Fleet(gateway, servers)


@pytest.fixture
def fleet(shared: Fleet) -> Iterator[Fleet]:
    """The shared fleet; after the test its servers are well, and the gateway knows it."""
    yield shared
    for name in shared.servers:
        shared.fail(name, None)
    client = Client(shared.gateway.url, KEY)
    wait_until(lambda: all(one["state"] == "up" for one in client.ask("GET", "/admin/endpoints").json()["data"]))
