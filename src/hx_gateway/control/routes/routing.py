"""Routing, read and asked: why a request would go where it would go, what was decided, and reload."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from hx_gateway.control.audit import audit
from hx_gateway.control.dependencies import Administrator, Caller, GatewayOf, siblings_of
from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS
from hx_gateway.core.context import Route as Inference
from hx_gateway.core.errors import Failure

_ROUTES: dict[str, Inference] = {route.name: route for route in (CHAT, COMPLETIONS, EMBEDDINGS)}


async def reload(request: Request, gateway: GatewayOf, caller: Administrator, response: Response) -> dict[str, Any]:
    """Load the configuration again, in all workers; 409 with the reasons when it is refused. Needs an admin key."""
    if gateway.reloading is None:
        raise Failure(errors.NOT_FOUND, "this gateway was started without a configuration that can be loaded again")
    outcome = gateway.reloading.everywhere()
    response.status_code = 200 if outcome.ok else 409
    audit(gateway, request, caller, "reload", "", "ok" if outcome.ok else "refused", problems=list(outcome.problems))
    return _told(outcome)


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.post("/v1/route/explain")
    async def explain(
        request: Request,
        gateway: GatewayOf,
        caller: Caller,
        route: Annotated[str, Query(description="chat, completions or embeddings; else what the body looks like.")] = "",
    ) -> dict[str, Any]:
        """Where this request would go and why, by the same code; nothing is sent. Takes the body of a chat, completion or embeddings request."""
        body = await request.body()
        kind = _ROUTES.get(route)
        if route and kind is None:
            raise Failure(errors.INVALID_VALUE, f"route: must be one of {', '.join(_ROUTES)}", param="route")
        notes = {name: value for name, value in request.scope["headers"] if name.startswith(b"x-hx-")}
        told: dict[str, Any] = gateway.explain(kind or _kind_of(body), body, notes, caller)
        return told

    @routes.get("/admin/decisions")
    async def decisions(
        request: Request, caller: Administrator, limit: Annotated[int, Query(ge=1, le=1000, description="Most decisions to list.")] = 50
    ) -> dict[str, Any]:
        """The latest routing decisions of all workers of this machine, newest first. Needs an admin key."""
        found = [one for answer in await siblings_of(request).ask("decisions", str(limit)) for one in answer]
        return {"object": "list", "data": sorted(found, key=lambda one: one["id"], reverse=True)[:limit]}

    @routes.get("/admin/decisions/{id}")
    async def decision(id: str, request: Request, caller: Administrator) -> dict[str, Any]:
        """Every attempt of one request, by its x-hx-decision-id, with everything that was weighed where that was kept. Needs an admin key."""
        found = [attempt for answer in await siblings_of(request).ask("decision", id) for attempt in answer]
        if not found:
            raise Failure(errors.NOT_FOUND, f"no decision {id!r} is remembered; each worker keeps its latest few thousand")
        return {"object": "decision", "id": id, "attempts": found[::-1]}

    routes.add_api_route("/admin/reload", reload, methods=["POST"])

    @routes.get("/admin/reload")
    async def reloaded(gateway: GatewayOf, caller: Administrator) -> dict[str, Any]:
        """How the last reload of this worker ended. Needs an admin key."""
        last = gateway.reloading.last if gateway.reloading is not None else None
        return _told(last) if last is not None else {"ok": None, "problems": [], "restart": [], "at": None}

    return routes


def _kind_of(body: bytes) -> Inference:
    if b'"messages"' in body:
        return CHAT
    return EMBEDDINGS if b'"input"' in body else COMPLETIONS


def _told(outcome: Any) -> dict[str, Any]:
    at = datetime.fromtimestamp(outcome.wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"ok": outcome.ok, "problems": list(outcome.problems), "restart": list(outcome.restart), "at": at}
