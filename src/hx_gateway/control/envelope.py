"""The outermost layer of the control plane, in plain ASGI: request ids, CORS, HEAD, and the answer to a fault of our own."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.cors import CorsPolicy
from hx_gateway.core.errors import error_body
from hx_gateway.core.interfaces import Headers
from hx_gateway.health.detect import SERVICE_MARK

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_request_id = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")
_log = logging.getLogger(__name__)


def parse_lines(lines: bytes) -> Headers:
    """Complete header lines as pairs, as ASGI wants them."""
    pairs = []
    for line in lines.split(b"\r\n"):
        if line:
            name, _, value = line.partition(b":")
            pairs.append((name.strip().lower(), value.strip()))
    return pairs


class Envelope:
    """Wraps the app.

    ``scope["state"]`` gets ``request_id`` (ours), and ``method``, the method as sent: HEAD is run as GET, and the server
    sends no body for it.

    Args:
        app: What is wrapped.
        ids: Makes request ids.
        cors: The CORS policy; None when off.
    """

    def __init__(self, app: ASGIApp, *, ids: Callable[[], str], cors: CorsPolicy | None = None) -> None:
        self._app = app
        self._ids = ids
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given: dict[bytes, bytes] = dict(scope["headers"])
        request_id = self._ids()
        shown = given.get(b"x-request-id", b"")
        if not _request_id.match(shown):
            shown = request_id.encode()
        method: str = scope["method"]
        scope = {**scope, "method": "GET" if method == "HEAD" else method}
        scope["state"] = {**scope.get("state", {}), "request_id": request_id, "method": method}
        extra = [(b"x-request-id", shown), SERVICE_MARK]
        origin = given.get(b"origin")
        wanted = given.get(b"access-control-request-method")
        if self._cors is not None and origin is not None:
            if method == "OPTIONS" and wanted is not None:
                status, lines = self._cors.preflight(origin, wanted, given.get(b"access-control-request-headers", b""))
                await _answer(send, status, [*parse_lines(lines), *extra], b"")
                return
            extra += parse_lines(self._cors.response_lines(origin))
        started = False

        async def enveloped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = list(message.get("headers", ()))
                present = {name for name, _ in headers}
                headers += [header for header in extra if header[0] not in present or header[0] == b"vary"]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, enveloped)
        except Exception:  # blame: the gateway's own; the client gets an id, the log the trace
            _log.exception("internal error in request %s (%s %s)", shown.decode(), method, scope["path"])
            if started:
                raise  # the server breaks the connection, so that the client can tell the answer is not complete
            body = error_body(errors.INTERNAL, f"an internal error occurred; it is logged under request id {shown.decode()}")
            await _answer(send, 500, [(b"content-type", b"application/json"), *extra], body)


async def _answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    length = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers + length})
    await send({"type": "http.response.body", "body": body})
