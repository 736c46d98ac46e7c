"""The dashboard as an application of its own below ``/ui``: signing in and out, its files, its headers, and what becomes of failures."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from hx_gateway.access.keys import digest_of
from hx_gateway.control.audit import audit
from hx_gateway.control.dashboard import PAGES
from hx_gateway.control.dashboard.frame import Desk, Session, SignedIn, SignedOut, cookie_of, desk_of, fields, go, render, session_in, sign
from hx_gateway.control.dashboard.sessions import TooManyAttempts
from hx_gateway.control.dependencies import GatewayOf, siblings_of
from hx_gateway.control.refusals import failure_response
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from hx_gateway.control.dependencies import Gateway

HOME = f"/ui{PAGES[0].path}"
POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=()",
}


class Guard:
    """Wraps the application: off when the configuration says so, closed to pages of other origins, with strict headers on every answer."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = None
        if self._gateway.config.gateway.disable_admin_ui:
            failure = Failure(errors.NOT_FOUND, "the dashboard is switched off (gateway.disable_admin_ui)")
        elif scope["type"] == "http" and _foreign(Headers(scope=scope), scope["method"]):
            failure = Failure(errors.ADMIN_ONLY, "the dashboard answers its own pages only, not those of another origin")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if failure is not None:
            await failure_response(failure)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)


def _foreign(headers: Headers, method: str) -> bool:
    """Whether a browser says that a page of another origin asks: following a link to here is all that one may do."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if method not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return True
    return site not in ("none", "same-origin") and not (method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate")


def mounted(app: FastAPI, gateway: Gateway) -> None:
    """Let an application have the dashboard."""
    ui = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    ui.state.gateway, ui.state.siblings = gateway, app.state.siblings
    ui.state.desk = desk = Desk(gateway)
    app.state.siblings.learn("wake", lambda _: desk.wake())
    for page in PAGES:
        ui.include_router(importlib.import_module(f"{__package__}.{page.module}").router())
    ui.include_router(_router())
    ui.add_exception_handler(SignedOut, _on_signed_out)
    ui.add_exception_handler(Failure, _on_failure)
    ui.add_exception_handler(HTTPException, _on_http)
    ui.add_exception_handler(RequestValidationError, _on_validation)
    ui.add_exception_handler(Exception, _on_fault)

    async def home() -> Response:
        """The dashboard."""
        if gateway.config.gateway.disable_admin_ui:
            raise HTTPException(404)
        return RedirectResponse(HOME, 303)

    for path in ("/", "/ui", "/ui/"):
        app.add_api_route(path, home, methods=["GET"], include_in_schema=False)
    app.mount("/ui", Guard(ui, gateway))


def _router() -> APIRouter:
    found = APIRouter()

    @found.get("/static/{name:path}")
    async def file(name: str, request: Request) -> Response:
        """A style sheet, a script or a picture; no secret, so no session."""
        data, kind, digest = desk_of(request).file(name)
        headers = {"etag": f'"{digest[:16]}"', "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type=kind)

    @found.get("/login")
    async def ask(request: Request, next: str = HOME) -> Response:
        """Asks for a key."""
        try:
            session_in(request)
        except SignedOut:
            return _login(request, next)
        return RedirectResponse(_inside(next), 303)

    @found.post("/login")
    async def check(request: Request, gateway: GatewayOf) -> Response:
        """Takes an admin key and opens a session for it."""
        given = await fields(request)
        next, key = given.get("next", HOME), given.get("key", "").strip()
        desk, address = desk_of(request), request.client.host if request.client is not None else ""
        if gateway.backing.folder is None and gateway.workers > 1:
            why = "The workers of this gateway cannot share sessions: its state directory cannot be written (storage.state_directory)."
            return _login(request, next, why, 503)
        try:
            desk.sessions.attempt(address)
        except TooManyAttempts as error:
            return _login(request, next, f"Too many wrong keys from your address. Try again in {error.wait_s:.0f} s.", 429)
        identity = gateway.keys.identify(key.encode()) if key else None
        if identity is None and (key or gateway.keys.required):
            await asyncio.sleep(desk.sessions.failed(address))
            failure = gateway.keys.refusal(key.encode())
            return _login(
                request, next, f"{failure.message[:1].upper()}{failure.message[1:]}." if key else "Enter an admin key.", failure.status
            )
        if identity is not None and not identity.admin:
            return _login(request, next, f"The key {identity.name} is no admin key; the dashboard needs one.", 403)
        desk.sessions.close(request.cookies.get(cookie_of(request)[0], ""))
        token, _ = desk.sessions.open(digest_of(key).hex() if identity is not None else "")
        audit(gateway, request, identity, "dashboard.sign_in")
        await siblings_of(request).ask("wake")
        return sign(request, go(request, _inside(next)), token)

    @found.post("/logout")
    async def leave(request: Request, session: SignedIn) -> Response:
        """Ends the session."""
        desk_of(request).sessions.close(session.token)
        return sign(request, go(request, "/ui/login"), "")

    return found


def _login(request: Request, next: str, problem: str = "", status: int = 200) -> Response:
    return render(request, None, "login.html", status, title="Sign in", next=_inside(next), problem=problem)


def _inside(path: str) -> str:
    return path if path.startswith("/ui/") and "\\" not in path and "\n" not in path and "\r" not in path else HOME


def _on_signed_out(request: Request, error: Exception) -> Response:
    path = request.url.path
    where = f"/ui/login?next={quote(path + ('?' + request.url.query if request.url.query else ''))}"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"hx-redirect": "/ui/login"})
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        return sign(request, RedirectResponse(where, 303), "")
    return failure_response(Failure(errors.INVALID_API_KEY, "the session has ended; sign in again at /ui/login"))


def _on_failure(request: Request, error: Exception) -> Response:
    assert isinstance(error, Failure)
    return _message(request, error)


def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _message(request, Failure(errors.NOT_FOUND, f"there is no page {request.url.path}"))
    kind = errors.METHOD_NOT_ALLOWED if error.status_code == 405 else errors.INVALID_VALUE
    return _message(request, Failure(kind, str(error.detail)))


def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: Any = error.errors()[0]
    name = ".".join(str(part) for part in first.get("loc", ())[1:])
    return _message(request, Failure(errors.INVALID_VALUE, f"{name}: {first.get('msg', 'not valid')}", param=name))


async def _on_fault(request: Request, error: Exception) -> Response:
    """The trace is logged around us."""
    id = request.scope["state"]["request_id"]
    return _message(request, Failure(errors.INTERNAL, f"an internal error occurred; the log has it under request id {id}"))


def _message(request: Request, failure: Failure) -> Response:
    """A failure as a page, as a part of one, or for scripts as the API has it."""
    if "hx-request" not in request.headers and "text/html" not in request.headers.get("accept", ""):
        return failure_response(failure)
    session: Session | None
    try:
        session = session_in(request)
    except SignedOut:
        session = None
    template = "problem.html" if "hx-request" in request.headers else "message.html"
    return render(request, session, template, failure.status, title="Not possible", failure=failure)
