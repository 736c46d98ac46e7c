"""A small real gateway for the control plane's tests: real registry, keys, ids and metrics, and a data plane by script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from hx_gateway.access.keys import KeyRing
from hx_gateway.backing import Backing
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.control.app import create_app
from hx_gateway.core.clock import ManualClock
from hx_gateway.core.context import Exchange
from hx_gateway.core.identifiers import RequestIds
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, DeploymentOptions, Endpoint
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.telemetry.desk import Desk

MASTER = "sk-hx-admin-01"
USER = "sk-hx-user-02"
KEYS: dict[str, Any] = {"master_key": MASTER, "api_keys": [{"name": "user", "key": USER, "models": ["hx-chat", "emb-premium"]}]}


class Named:
    """A provider that only has a name."""

    name = "ollama"


def fleet(forward: bool = False) -> Registry:
    """Two chat models in a group, an embedding model, an alias, and names with ``/`` and ``:``."""
    first = Endpoint("llm-01", Address("http", "192.0.2.1", 11434), Named())
    second = Endpoint("192.0.2.2:11434", Address("http", "192.0.2.2", 11434))
    llama = Deployment("llama3.2:3b", "llama3.2:3b", first, mode="chat", options=DeploymentOptions(num_ctx=8192))
    phi = Deployment("org/phi:mini", "phi3", second, max_concurrent=10)
    embedder = Deployment("emb-premium", "mxbai-embed-large", first, mode="embedding", options=DeploymentOptions(dimensions=1024))
    targets = (
        Target("llama3.2:3b", "model", (llama,)),
        Target("org/phi:mini", "model", (phi,)),
        Target("emb-premium", "model", (embedder,)),
        Target("hx-chat", "group", (llama, phi), "balanced", "least_busy"),
        Target("gpt-4o", "alias", (llama,)),
    )
    return Registry(
        {target.name: target for target in targets},
        {endpoint.name: endpoint for endpoint in (first, second)},
        forward_to=Endpoint("litellm", Address("http", "192.0.2.3", 4000)) if forward else None,
    )


class House:
    """What `control.dependencies.Gateway` asks for.

    Args:
        config: Configuration sections.
        registry: The fleet.
        script: The data plane.
    """

    def __init__(
        self, config: dict[str, Any] | None = None, registry: Registry | None = None, script: Callable[[Exchange], None] | None = None
    ) -> None:
        self.config = GatewayConfig.model_validate(config or {})
        self.registry = registry or fleet()
        self.keys = KeyRing.from_config(self.config)
        self.backing = Backing(self.config)  # not started: nothing is kept
        self.clock = ManualClock(500.0)
        self.started_wall_s = self.clock.wall()
        self.telemetry = Desk(self.config.monitoring, self.clock)
        self.router = Router(policy)
        self.proxy = Proxy(self.router, lambda endpoint: None)  # type: ignore[arg-type,return-value]
        self.reloading = None
        self.ids = RequestIds(self.clock.wall)
        self.draining = False
        self.ready = True
        self.exchanges: list[Exchange] = []
        self.script = script

    def under_way(self, deployment: Deployment) -> int:
        return deployment.in_flight

    def dispatch(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        assert self.script is not None, "nothing should reach the data plane"
        self.script(exchange)

    def client(self, key: str = "") -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        transport = httpx.ASGITransport(create_app(self))
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers)


def answer(
    status: int = 200, body: bytes = b'{"ok":true}', headers: bytes = b"content-type: application/json\r\n"
) -> Callable[[Exchange], None]:
    """A data plane that answers at once."""

    def run(exchange: Exchange) -> None:
        exchange.client.respond(exchange, status, headers, body)

    return run
