"""Makes exchanges and deployments for tests, with the fields that matter and sensible values for the rest."""

from __future__ import annotations

import json
from typing import Any

from hx_gateway.core.context import CHAT, Exchange, Route
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, DeploymentOptions, Endpoint
from hx_gateway.openai.requests import look


class DeafClient:
    """A client side that only remembers what it was told (`core.interfaces.ClientSide`)."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.ended = False
        self.aborted = False

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """Keep the whole answer."""
        self.status = status
        self.body = body
        self.ended = True

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Keep the status."""
        self.status = status

    def write(self, data: bytes) -> None:
        """Keep a piece."""
        self.body += data

    def end(self, data: bytes = b"") -> None:
        """Keep the last piece."""
        self.body += data
        self.ended = True

    def abort(self) -> None:
        """Remember the break."""
        self.aborted = True


def make_exchange(body: dict[str, Any] | bytes, route: Route = CHAT, id: str = "01TEST", asked: str | None = None) -> Exchange:
    """An exchange as it is when a provider gets it: the body looked into, the model known.

    Args:
        body: The request; a dictionary is sent as JSON.
        route: What it asks for.
        id: The request id.
        asked: The name the client used; by default the body's ``model``.

    Raises:
        hx_gateway.core.errors.Failure: The body is one that the gateway refuses before any provider sees it.
    """
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    target = b"/v1" + route.path.encode()
    exchange = Exchange(id, route, b"POST", target, {}, [], raw, DeafClient(), 0.0)
    exchange.facts = look(route, raw)
    exchange.asked = exchange.facts.model if asked is None else asked
    return exchange


def make_deployment(
    url: str = "http://127.0.0.1:11434",
    model: str = "shown-name",
    upstream_model: str = "tiny:1b",
    provider: Any = None,
    legacy_embeddings: bool | None = None,
    **options: Any,
) -> Deployment:
    """A deployment on an endpoint of its own; ``options`` are those of `DeploymentOptions`."""
    endpoint = Endpoint("test-host", Address.parse(url), provider)
    endpoint.facts.legacy_embeddings = legacy_embeddings
    return Deployment(model, upstream_model, endpoint, options=DeploymentOptions(**options))
