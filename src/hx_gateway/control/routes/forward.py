"""Inference requests that did not take the short way: any other path below /v1, and hot routes asked for in odd ways."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from hx_gateway.control.bridge import AsgiClientSide, ExchangeAnswer, fits, split_headers
from hx_gateway.control.dependencies import gateway_of, identify
from hx_gateway.control.refusals import method_refused
from hx_gateway.core import errors
from hx_gateway.core.context import FORWARD, HOT_ROUTES, Exchange
from hx_gateway.core.context import Route as Inference
from hx_gateway.core.errors import Failure

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_NOT_DELETED = "models are part of the configuration; take this one out of the file and reload. Nothing was deleted"
_DOCUMENTS = {"rag/search": "POST", "rag/upsert": "POST", "rag/delete": "POST", "rag/collections": "GET, HEAD"}
_HOT = {prefix + route.path + end: route for route in HOT_ROUTES for prefix in ("/v1", "") for end in ("", "/")}


async def hot(request: Request) -> Response:
    """A hot route with a query, an odd spelling of its path, or the wrong method."""
    if request.method != "POST":
        return method_refused(request, "POST")
    return await _exchange(request, _HOT[request.scope["path"]])


async def forward(request: Request) -> Response:
    """Any other path below /v1: to the default upstream, where there is one."""
    path: str = request.path_params["path"]
    if path == "models" or path.startswith("models/"):
        return method_refused(request, "GET, HEAD", _NOT_DELETED if request.method == "DELETE" else "")
    if path in _DOCUMENTS:
        return method_refused(request, _DOCUMENTS[path])
    if gateway_of(request).registry.forward_to is None:
        identify(request)  # what exists is told to those only who may call
        raise Failure(
            errors.NOT_FOUND,
            f"there is no {request.method} /v1/{path} here; GET /docs lists what there is, "
            "and gateway.default_upstream forwards what the gateway does not serve itself",
        )
    return await _exchange(request, FORWARD)


async def _exchange(request: Request, route: Inference) -> Response:
    gateway = gateway_of(request)
    state = request.scope["state"]
    try:
        body = fits(await request.body(), gateway.config.http.max_body_bytes)
    except ClientDisconnect:
        return Response(status_code=400)  # nobody will read it
    notes, lines = split_headers(request.scope["headers"], route)
    client = AsgiClientSide()
    exchange = Exchange(
        state["request_id"], route, state["method"].encode(), _target(request), notes, lines, body, client, gateway.clock.monotonic()
    )
    return ExchangeAnswer(exchange, client, gateway.dispatch)


def _target(request: Request) -> bytes:
    """Path and query as the client spelt them."""
    scope = request.scope
    path: bytes = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


def routes() -> list[Route]:
    """The routes, to stand behind all others."""
    return [
        *(Route(path, hot, methods=METHODS, include_in_schema=False) for path in _HOT),
        Route("/v1/{path:path}", forward, methods=METHODS, include_in_schema=False),
    ]
