"""The page RAG: what documents there are, what a search finds by meaning and by words, and removing some."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard.frame import Session, SignedIn, fields, go, render
from hx_gateway.control.dependencies import Gateway, GatewayOf
from hx_gateway.control.routes import rag
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import CATALOGUE, Failure

MODES = {"hybrid": "hybrid: by meaning and by words", "dense": "dense: by meaning", "sparse": "sparse: by words"}
_ALL = "all"
_MOST_HITS = 50
_Route = Callable[[Request, Gateway, Identity | None], Awaitable[Response]]


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/rag")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """The whole page."""
        try:
            found, failure = await _asked(request, gateway, session, rag.collections), None
        except Failure as refused:  # the page says so, and what can be done about it
            found, failure = {"collections": [], "default": ""}, refused
        return render(request, session, "rag.html", title="RAG", **found, failure=failure, modes={**MODES, _ALL: "all three side by side"})

    @routes.post("/rag/search")
    async def search(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """What a search finds."""
        given = await fields(request)
        limit = given.get("limit", "").strip() or "10"
        if not limit.isdigit() or not 1 <= int(limit) <= _MOST_HITS:
            raise Failure(errors.INVALID_VALUE, f"limit: should be a whole number from 1 to {_MOST_HITS}", param="limit")
        mode = given.get("mode", "hybrid")
        body: dict[str, Any] = {"query": given.get("query", ""), "limit": int(limit), **_where(given)}
        if filter := given.get("filter", "").strip():
            body["filter"] = _json(filter)
        found = [
            (one, await _asked(request, gateway, session, rag.search, {**body, "mode": one}))
            for one in (MODES if mode == _ALL else (mode,))
        ]
        return render(request, session, "rag_found.html", title="Found", found=[(one, answer["points"]) for one, answer in found])

    @routes.post("/rag/delete")
    async def delete(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Removes documents by their ids, or all of a namespace."""
        given = await fields(request)
        ids = [part for part in (part.strip() for part in given.get("ids", "").replace("\n", ",").split(",")) if part]
        what: dict[str, Any] = {"everything": True} if "everything" in given else {"ids": ids}
        if not ids and not what.get("everything"):
            raise Failure(errors.INVALID_VALUE, "ids: say which documents are to go, with commas between", param="ids")
        done = await _asked(request, gateway, session, rag.delete, {**what, **_where(given)})
        gone, place = done["deleted"], f"{given.get('namespace') or 'default'} of {given.get('collection') or 'the usual collection'}"
        return go(request, "/ui/rag", f"{gone} chunk{'' if gone == 1 else 's'} removed from {place}.")

    return routes


def _where(given: dict[str, str]) -> dict[str, str]:
    return {name: value for name in ("collection", "namespace") if (value := given.get(name, "").strip())}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(errors.INVALID_VALUE, f"filter: is not JSON: {error}", param="filter") from None


async def _asked(request: Request, gateway: Gateway, session: Session, route: _Route, body: dict[str, Any] | None = None) -> Any:
    """The result of a call of the API for the session's key: the same limits, and a record as of any other.

    Raises:
        Failure: As the API answers it.
    """
    told = False

    async def receive() -> Any:
        nonlocal told
        if told:
            return await request.receive()  # which tells when the reader has left
        told = True
        return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode(), "more_body": False}

    status, pieces = 500, []

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        pieces.append(message.get("body", b""))

    inner = Request(request.scope, receive)
    answer = await route(inner, gateway, session.identity)
    await answer(request.scope, receive, send)
    found = json.loads(b"".join(pieces) or b"{}")
    if status == 200:
        return found["result"]
    error = found.get("error", {})
    kind = next((kind for kind in CATALOGUE if kind.code == error.get("code")), errors.INTERNAL)
    raise Failure(kind, error.get("message", "the reader has left"), param=error.get("param"))
