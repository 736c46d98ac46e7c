"""A running gateway in front of a scripted model server, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.testing.backend import Backend
from hx_gateway.testing.reply import Received

PLAIN = """
models:
  tiny: {{endpoint: "{url}", provider: openai, upstream_model: "tiny:1b"}}
gateway: {{default_upstream: "{url}"}}
load_balancer: {{health_check_interval: 3600}}
performance: {{request_timeout_seconds: 20}}
"""
TIGHT = (
    PLAIN
    + """
http: {{max_head_bytes: 8192, max_body_bytes: 65536, head_timeout_seconds: 0.6, body_timeout_seconds: 0.9, keep_alive_seconds: 1.2}}
"""
)


@dataclass
class Pair:
    """A gateway, and the model server behind it."""

    gateway: GatewayProcess
    server: Scripted
    backend: Backend

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return self.gateway.port

    def received(self) -> list[Received]:
        """Requests that reached the model server, probes left out."""
        return [received for received in list(self.backend.requests) if (received.method, received.path) not in _PROBES]


_PROBES = {("GET", "/health"), ("GET", "/v1/models"), ("GET", "/version"), ("GET", "/metrics"), ("GET", "/api/version"), ("GET", "/props")}


def pair_of(config: str) -> Iterator[Pair]:
    """A gateway with that configuration, its model server, and a look at the log when it ends."""
    server = Scripted("openai", models=("tiny:1b",))
    with server as backend:
        gateway = GatewayProcess(config.format(url=backend.url))
        with gateway:
            yield Pair(gateway, server, backend)
            log = gateway.log
        assert "Traceback" not in log, log[-6000:]


@pytest.fixture(scope="package")
def shared() -> Iterator[Pair]:
    """With the limits as they are by default."""
    yield from pair_of(PLAIN)


@pytest.fixture(scope="package")
def shared_tight() -> Iterator[Pair]:
    """With small limits and short deadlines."""
    yield from pair_of(TIGHT)


@pytest.fixture
def plain(shared: Pair) -> Pair:
    """The gateway with default limits, its model server's memory emptied."""
    shared.backend.forget()
    return shared


@pytest.fixture
def tight(shared_tight: Pair) -> Pair:
    """The gateway with small limits, its model server's memory emptied."""
    shared_tight.backend.forget()
    return shared_tight
