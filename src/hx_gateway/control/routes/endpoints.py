"""Endpoints for administrators: what all workers see of each, and taking one out of service and back."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from hx_gateway.control.audit import NOBODY, audit
from hx_gateway.control.dependencies import Administrator, Gateway, GatewayOf, siblings_of
from hx_gateway.control.fleet import together
from hx_gateway.control.openapi import failures
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure
from hx_gateway.fleet.drains import Drain

if TYPE_CHECKING:
    from hx_gateway.core.context import Identity


class Drained(BaseModel):
    """Who took an endpoint out of service, and when."""

    by: str = Field(description="name of the key")
    at: str = Field(description="ISO 8601, UTC")


class EndpointSeen(BaseModel):
    """One model server, as all workers of this machine together see it."""

    name: str
    address: str
    state: Literal["up", "partly", "resting", "down", "unknown", "draining", "drained"] = Field(
        description="up; partly: a model there is being rested; resting: its breaker is not closed; down: the last probe failed; "
        "unknown: not probed yet; draining: taken out of service, with requests still under way; drained: without"
    )
    error: str | None
    healthy: bool | None = Field(description="by the newest probe of any worker; null before the first")
    checked_ms: int | None = Field(description="when that was, in Unix milliseconds")
    drained: Drained | None
    in_flight: int = Field(description="requests under way")
    max_concurrent: int | None
    provider: str | None
    engine: str | None
    version: str | None
    slots: int | None = Field(description="requests it works on at the same time")
    running: int | None = Field(description="requests it works on, as it tells")
    waiting: int | None = Field(description="requests in its own queue, as it tells")
    cache_used: float | None = Field(description="share of its KV cache in use")
    sleeping: bool
    memory_bytes: float | None = Field(description="memory its models may take, as configured")
    breaker: dict[str, Any] = Field(description="the worst of all workers, and in how many it is so")
    loaded: list[dict[str, Any]] | None = Field(description="what is in its memory; null where it does not tell")
    models: list[dict[str, Any]] = Field(description="what is served there")
    workers: int = Field(description="workers that told")


class EndpointList(BaseModel):
    """All endpoints, in configuration order."""

    object: Literal["list"] = "list"
    data: list[EndpointSeen]
    waiting: dict[str, int] = Field(description="requests that wait for a place, by public name")


class DrainChange(BaseModel):
    """An endpoint that was drained or put back."""

    object: Literal["endpoint"] = "endpoint"
    name: str
    drained: bool
    changed: bool = Field(description="false where it was so already")
    in_flight: int = Field(description="requests still under way there; they are not broken off")
    left_without: list[str] = Field(description="public names that no endpoint serves while it is drained")


def drain(gateway: Gateway, request: Request, caller: Identity | None, name: str, out: bool) -> dict[str, Any]:
    """Take an endpoint out of service, or put it back.

    Args:
        gateway: The gateway.
        request: Where that was asked for.
        caller: Who asks.
        name: Of the endpoint.
        out: Whether out of service.

    Returns:
        The fields of `DrainChange`.

    Raises:
        Failure: There is no such endpoint, or it cannot be kept.
    """
    registry, drains = gateway.registry, gateway.backing.drains
    endpoint = registry.endpoints.get(name)
    if endpoint is None and (out or name not in drains.drained):
        raise Failure(errors.NOT_FOUND, f"there is no endpoint {name!r}; GET /admin/endpoints lists them", param="name")
    if not drains.shared and gateway.workers > 1:
        raise Failure(
            errors.STORE_UNAVAILABLE,
            "the workers cannot tell each other: the state directory cannot be written (storage.state_directory)",
        )
    try:
        changed = drains.change(name, Drain(caller.name if caller is not None else NOBODY, int(time.time() * 1000)) if out else None)
    except (OSError, ValueError) as error:
        raise Failure(errors.STORE_UNAVAILABLE, f"it cannot be written to the state directory: {error}") from None
    drains.look(registry.endpoints.values())
    alone = [
        target.name
        for target in registry.targets.values()
        if target.deployments and all(one.endpoint.name in drains.drained for one in target.deployments)
    ]
    if changed:
        audit(gateway, request, caller, "endpoint.drain" if out else "endpoint.undrain", name, left_without=alone)
    in_flight = endpoint.in_flight if endpoint is not None else 0
    return {"name": name, "drained": out, "changed": changed, "in_flight": in_flight, "left_without": alone}


async def endpoints(request: Request, caller: Administrator) -> Any:
    """Every endpoint, as all workers of this machine together see it. Needs an admin key."""
    found = together(await siblings_of(request).ask("fleet"))
    return {"data": list(found["endpoints"].values()), "waiting": found["waiting"]}


async def drained(name: str, request: Request, gateway: GatewayOf, caller: Administrator) -> Any:
    """Send nothing new to an endpoint; what is under way there is finished. Holds for all workers of this machine, and across reloads and restarts."""
    return drain(gateway, request, caller, name, True)


async def undrained(name: str, request: Request, gateway: GatewayOf, caller: Administrator) -> Any:
    """Put a drained endpoint back into service."""
    return drain(gateway, request, caller, name, False)


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["fleet"], responses=failures("401", "403"))
    routes.add_api_route("/admin/endpoints", endpoints, methods=["GET"], response_model=EndpointList)
    changed: dict[str, Any] = {"methods": ["POST"], "response_model": DrainChange, "responses": failures("404", "503")}
    routes.add_api_route("/admin/endpoints/{name:path}/drain", drained, **changed)
    routes.add_api_route("/admin/endpoints/{name:path}/undrain", undrained, **changed)
    return routes
