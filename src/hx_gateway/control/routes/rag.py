"""Documents that can be searched: by meaning, by words, or both; under the same keys, limits and records as everything else."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from hx_gateway.control.audit import audit
from hx_gateway.control.bridge import AsgiClientSide, ExchangeAnswer, fits, split_headers
from hx_gateway.control.dependencies import Caller as CallerOf
from hx_gateway.control.dependencies import Gateway, GatewayOf, gateway_of
from hx_gateway.control.openapi import failures
from hx_gateway.control.rag import COLLECTION, Caller, limits_of
from hx_gateway.control.rag_openai import VectorStoreSearch, page, translated
from hx_gateway.core import errors
from hx_gateway.core.context import RAG, Exchange, Identity
from hx_gateway.core.errors import Failure, Unavailable, error_body
from hx_gateway.core.interfaces import TAKEN
from hx_gateway.core.interfaces import Response as Whole
from hx_gateway.dataplane.answer import EVENTS, JSON, request_id
from hx_gateway.rag import service
from hx_gateway.rag.bodies import Delete, Document, Search, Upsert, read, schema
from hx_gateway.rag.points import StoreUnavailable, Unfit
from hx_gateway.rag.service import Shelves
from hx_gateway.rag.upsert import Result, failure_of, upsert

_AGAIN_S = 5.0
Act = Callable[[Shelves, Any, Caller, Exchange], Awaitable[Any]]


async def search(request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    """Search documents by a query, a vector, or both; a collection or namespace that is not there finds nothing."""

    async def act(shelves: Shelves, ask: Search, asker: Caller, exchange: Exchange) -> Any:
        return await service.search(shelves, ask, asker)

    return await _served(request, gateway, caller, Search, act, lambda ask: ask.query or "")


async def insert(request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    """Add documents or replace those of the same id; answered when they are stored, with the outcome of each."""

    async def act(shelves: Shelves, ask: Upsert, asker: Caller, exchange: Exchange) -> Any:
        if ask.stream:
            return await _streamed(gateway, shelves, ask, asker, exchange)
        return await upsert(shelves, ask, asker, limits_of(gateway.config))

    return await _served(request, gateway, caller, Upsert, act, lambda ask: "".join(map(_to_embed, ask.documents)))


async def delete(request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    """Remove documents of one namespace: by their ids, by a filter, or all of them."""

    async def act(shelves: Shelves, ask: Delete, asker: Caller, exchange: Exchange) -> Any:
        done = await service.delete(shelves, ask, asker, gateway.config.rag.max_documents)
        if ask.everything:
            about = {"collection": ask.collection, "deleted": done["deleted"]}
            audit(gateway, request, caller, "rag.delete_everything", ask.namespace or "default", **about)
        return done

    return await _served(request, gateway, caller, Delete, act)


async def collections(request: Request, gateway: GatewayOf, caller: CallerOf) -> Response:
    """The collections with model and dimension, and how many chunks each namespace has that the key may read."""

    async def act(shelves: Shelves, ask: None, asker: Caller, exchange: Exchange) -> Any:
        return await service.collections(shelves, asker)

    return await _served(request, gateway, caller, None, act)


async def remove(
    request: Request, gateway: GatewayOf, caller: CallerOf, name: Annotated[str, Path(description="The collection.")]
) -> Response:
    """Remove a collection that is empty; whether it was there."""

    async def act(shelves: Shelves, ask: None, asker: Caller, exchange: Exchange) -> Any:
        done = await service.drop(shelves, name, asker)
        if done["removed"]:
            audit(gateway, request, caller, "rag.remove_collection", name)
        return done

    return await _served(request, gateway, caller, None, act)


async def vector_store(
    request: Request,
    gateway: GatewayOf,
    caller: CallerOf,
    id: Annotated[str, Path(description="A collection, or COLLECTION:NAMESPACE.")],
) -> Response:
    """Search a collection in the words of OpenAI's vector stores."""

    async def act(shelves: Shelves, ask: VectorStoreSearch, asker: Caller, exchange: Exchange) -> Any:
        return page(ask, await service.search(shelves, translated(id, ask), asker))

    return await _served(request, gateway, caller, VectorStoreSearch, act, lambda ask: ask.text, bare=True)


def _to_embed(document: Document) -> str:
    """The text of a document that has no vectors yet."""
    return document.text or "".join(part if isinstance(part, str) else part.text * (not part.embedded) for part in document.chunks or ())


async def _served(
    request: Request,
    gateway: Gateway,
    caller: Identity | None,
    kind: type[msgspec.Struct] | None,
    act: Act,
    text_of: Callable[[Any], str] = lambda ask: "",
    bare: bool = False,
) -> Response:
    """Take a request the way of every other, with ``act`` in the place of a model server.

    Args:
        request: The request.
        gateway: The gateway.
        caller: Who asks; None to find out on the way.
        kind: What its body is; None for none.
        act: Finds what is to be answered.
        text_of: What of the body has to be embedded: limits of tokens go by it.
        bare: Whether that is the whole answer, and not the result of one in Qdrant's shape.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        return Response(status_code=400)  # nobody will read it
    refusal: Failure | None = None
    ask: Any = None
    try:
        fits(body, gateway.config.http.max_body_bytes)
        ask = read(kind, body) if kind is not None else None
    except Failure as failure:
        refusal = failure  # told when it is known who asks, and recorded
    state, client = request.scope["state"], AsgiClientSide()
    notes, _ = split_headers(request.scope["headers"], RAG)
    text = text_of(ask).encode() if refusal is None else b""
    path = request.scope["path"]
    exchange = Exchange(
        state["request_id"], RAG, state["method"].encode(), path.encode(), notes, [], text, client, gateway.clock.monotonic()
    )
    exchange.asked = path
    exchange.identity = caller

    async def work(exchange: Exchange) -> Whole:
        if refusal is not None:
            raise refusal
        asker = Caller(gateway, exchange)
        try:
            result = await act(await _shelves(request, gateway), ask, asker, exchange)
            return TAKEN if result is TAKEN else Whole(200, _answer(result, asker, exchange, bare), JSON)
        except (Unfit, Unavailable) as error:
            raise _refused(error) from None

    return ExchangeAnswer(exchange, client, lambda exchange: gateway.serve(exchange, work))


def _refused(error: Unfit | Unavailable) -> Failure:
    if isinstance(error, Unfit | StoreUnavailable):
        return failure_of(error)
    return Failure(errors.STORE_UNAVAILABLE, f"the vector store cannot be used: {error}", retry_after_s=_AGAIN_S)


def _answer(result: Any, asker: Caller, exchange: Exchange, bare: bool = False) -> bytes:
    if bare:
        return msgspec.json.encode(result)
    usage = {"inference": {"models": {model: {"tokens": tokens} for model, tokens in asker.tokens.items()}}} if asker.tokens else None
    return msgspec.json.encode({"status": "ok", "time": round(time.monotonic() - exchange.received_s, 6), "usage": usage, "result": result})


async def _shelves(request: Request, gateway: Gateway) -> Shelves:
    """What is known of the store's collections; made with the store, on first use."""
    store = await gateway.backing.vectors()
    default = gateway.config.storage.qdrant_collection or COLLECTION
    known: Shelves | None = getattr(request.app.state, "shelves", None)
    if known is None or known.store is not store or known.default != default:
        known = request.app.state.shelves = Shelves(store, default)
    return known


async def _streamed(gateway: Gateway, shelves: Shelves, ask: Upsert, asker: Caller, exchange: Exchange) -> Whole:
    """Tell of each document when it is stored, as server-sent events."""
    client, done = exchange.client, 0

    def begin() -> None:
        exchange.first_byte_s = time.monotonic()
        client.begin(exchange, 200, b"%bx-request-id: %b\r\n%b" % (EVENTS, request_id(exchange), exchange.limit_lines))

    def progress(number: int, result: Result) -> None:
        nonlocal done
        if not done:
            begin()
        done += 1
        told = {"status": "progress", "done": done, "total": len(ask.documents), "number": number, "document": result}
        client.write(b"data: %b\n\n" % msgspec.json.encode(told))

    try:
        result = await upsert(shelves, ask, asker, limits_of(gateway.config), progress)
    except (Unfit, Unavailable, Failure) as error:
        if not done:
            raise
        failure = error if isinstance(error, Failure) else _refused(error)
        exchange.outcome = failure.kind
        last = error_body(failure.kind, failure.message, failure.param)
    else:
        last = _answer(result, asker, exchange)
    exchange.status = 200
    exchange.owner = None
    gateway.finished(exchange)
    client.end(b"data: %b\n\ndata: [DONE]\n\n" % last)
    return TAKEN


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["documents"], responses=failures("400", "401", "403", "409", "413", "429", "502", "503"))
    for path, endpoint, kind in (("search", search, Search), ("upsert", insert, Upsert), ("delete", delete, Delete)):
        routes.add_api_route(f"/v1/rag/{path}", endpoint, methods=["POST"], openapi_extra=_takes(schema(kind)), name=f"rag {path}")
    routes.add_api_route("/v1/rag/collections", collections, methods=["GET"], name="rag collections")
    routes.add_api_route("/v1/rag/collections/{name}", remove, methods=["DELETE"], name="remove a rag collection")
    extra = _takes(schema(VectorStoreSearch))
    routes.add_api_route("/v1/vector_stores/{id}/search", vector_store, methods=["POST"], openapi_extra=extra, name="search a vector store")
    return routes


def direct() -> list[Route]:
    """The search once more, to stand before all other routes: what the framework does for one of its own takes longer than to search."""

    async def found(request: Request) -> Response:
        return await search(request, gateway_of(request), None)  # who asks is found out on the way that every request takes

    return [Route("/v1/rag/search", found, methods=["POST"], include_in_schema=False)]


def _takes(body: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
