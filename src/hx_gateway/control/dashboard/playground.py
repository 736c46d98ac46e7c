"""The page Playground: one prompt to one or two models, streamed through the gateway as any client's, with what the gateway says of it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from hx_gateway.control.bridge import AsgiClientSide, ExchangeAnswer, fits
from hx_gateway.control.dashboard.frame import SignedIn, render
from hx_gateway.control.dependencies import GatewayOf
from hx_gateway.core.context import CHAT, Exchange


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/playground")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """The whole page."""
        able = [
            target for target in gateway.registry.targets.values() if target.mode != "embedding" and session.identity.may_use(target.name)
        ]
        names = {kind: [target.name for target in able if target.kind == kind] for kind in ("group", "model", "alias")}
        return render(request, session, "playground.html", title="Playground", names={kind: some for kind, some in names.items() if some})

    @routes.post("/playground/chat")
    async def chat(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """A chat for the key of the session: the stages, limits and records of every other."""
        try:
            body = fits(await request.body(), gateway.config.http.max_body_bytes)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody will read it
        notes = {name: value for name, value in request.scope["headers"] if name.startswith(b"x-hx-")}
        client, id = AsgiClientSide(), request.scope["state"]["request_id"]
        exchange = Exchange(id, CHAT, b"POST", b"/v1/chat/completions", notes, [], body, client, gateway.clock.monotonic())
        exchange.identity = session.identity
        return ExchangeAnswer(exchange, client, gateway.dispatch)

    return routes
