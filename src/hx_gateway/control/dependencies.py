"""What the control plane needs of the gateway, and what its routes need of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

from fastapi import Depends, Request

from hx_gateway.core import errors
from hx_gateway.core.clock import Clock
from hx_gateway.core.context import Exchange, Identity, Route
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.stages.authenticate import token_of
from hx_gateway.telemetry.exposition import Observed

if TYPE_CHECKING:
    from hx_gateway.backing import Backing
    from hx_gateway.config.schema import GatewayConfig
    from hx_gateway.control.siblings import Siblings
    from hx_gateway.core.interfaces import Stage
    from hx_gateway.fleet.deployment import Deployment
    from hx_gateway.fleet.endpoint import Endpoint


class Keys(Protocol):
    """Who may call, as `access.keys.KeyRing` tells."""

    @property
    def required(self) -> bool:
        """Whether a key is needed."""
        ...

    def identify(self, token: bytes, /) -> Identity | None:
        """Whose key this is; None when it is nobody's."""
        ...

    def holder(self, digest: bytes, /) -> Identity | None:
        """Whose key has this SHA-256; None when it is nobody's."""
        ...

    def refusal(self, token: bytes, /) -> Failure:
        """Why it is nobody's."""
        ...


class Gateway(Observed, Protocol):
    """The composition root, as far as the control plane uses it."""

    @property
    def config(self) -> GatewayConfig: ...

    @property
    def workers(self) -> int: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def backing(self) -> Backing: ...

    @property
    def proxy(self) -> Any: ...

    @property
    def reloading(self) -> Any: ...

    def ids(self) -> str:
        """A new request id."""
        ...

    def under_way(self, deployment: Deployment, /) -> int:
        """Requests under way at a deployment, of all workers."""
        ...

    def explain(self, route: Route, body: bytes, notes: dict[bytes, bytes], identity: Identity | None, /) -> dict[str, Any]:
        """Where a request would go and why."""
        ...

    def decisions(self, limit: int = 0, id: str = "", /) -> list[dict[str, Any]]:
        """The latest routing decisions of this worker, newest first; with an id those of that request, explained."""
        ...

    def dispatch(self, exchange: Exchange, /) -> None:
        """Run an exchange through the data plane."""
        ...

    def serve(self, exchange: Exchange, work: Stage, /) -> None:
        """Take an exchange that no model server answers through the stages that ask who calls and how much; ``work`` answers it."""
        ...

    def finished(self, exchange: Exchange, /) -> None:
        """Record an exchange that ``work`` answered piece by piece."""
        ...

    def inside(self, exchange: Exchange, endpoint: Endpoint | None = None, /) -> None:
        """Send an exchange that is part of one that was served."""
        ...


def gateway_of(request: Request) -> Gateway:
    """The gateway this app belongs to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def siblings_of(request: Request) -> Siblings:
    """The workers of this machine."""
    siblings: Siblings = request.app.state.siblings
    return siblings


def token_in(request: Request) -> bytes:
    """The API key a request carries; empty for none."""
    headers = request.headers
    return token_of(
        {name.encode(): headers[name].encode("latin-1") for name in ("authorization", "x-api-key", "api-key") if name in headers}
    )


def identify(request: Request) -> Identity | None:
    """Whose key came with the request; None where no key is configured at all.

    Raises:
        Failure: ``invalid_api_key``, or ``store_unavailable`` where that cannot be told.
    """
    keys = gateway_of(request).keys
    if not keys.required:
        return None
    token = token_in(request)
    identity = keys.identify(token)
    if identity is None:
        raise keys.refusal(token)
    return identity


# Coroutines, because the framework would run plain functions in a thread.


async def _gateway(request: Request) -> Gateway:
    return gateway_of(request)


async def _caller(request: Request) -> Identity | None:
    return identify(request)


async def _administrator(request: Request) -> Identity | None:
    identity = identify(request)
    if identity is not None and not identity.admin:
        raise Failure(errors.ADMIN_ONLY, "this route needs an admin key; the master key is one")
    return identity


async def _visitor(request: Request) -> Identity | None:
    return identify(request) if token_in(request) else None


GatewayOf = Annotated[Gateway, Depends(_gateway)]
"""The gateway."""
Caller = Annotated[Identity | None, Depends(_caller)]
"""Whose key came with the request: one is needed where any is configured; None where none is."""
Administrator = Annotated[Identity | None, Depends(_administrator)]
"""Whose admin key came with the request; None where no key is needed."""
Visitor = Annotated[Identity | None, Depends(_visitor)]
"""Whose key came with a request that needs none; a wrong one is refused."""
