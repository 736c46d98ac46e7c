"""Lets the data plane answer a request that came through the control plane: callbacks on one side, ASGI on the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.responses import Response

from hx_gateway.control.envelope import parse_lines
from hx_gateway.core import errors
from hx_gateway.core.context import FORWARD, Exchange, Route
from hx_gateway.core.errors import Failure
from hx_gateway.core.headers import DROP, KEEP, NOTE, disposition
from hx_gateway.core.interfaces import Headers

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

HIGH_WATER = 256 * 1024  # bytes waiting for the client at which the data plane is asked to pause
LOW_WATER = 64 * 1024  # and at which it may go on


class AsgiClientSide:
    """The client's end of an exchange, for an ASGI server.

    What the data plane says is queued and sent by `run`, in order.

    Args:
        high_water: Bytes waiting for the client at which the exchange's owner is paused.
        low_water: Bytes at which it is resumed.
    """

    def __init__(self, high_water: int = HIGH_WATER, low_water: int = LOW_WATER) -> None:
        self._high_water = high_water
        self._low_water = low_water
        self._queue: deque[Message] = deque()
        self._queued = 0  # bytes
        self._news = asyncio.Event()
        self._exchange: Exchange | None = None
        self._paused = False
        self._begun = False
        self._over = False  # nothing more will be queued
        self._broken = False
        self._gone = False

    # What the data plane calls

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer and finish."""
        lines = parse_lines(headers)
        if status >= 200 and status not in (204, 304):
            lines.append((b"content-length", b"%d" % len(body)))
        self._put({"type": "http.response.start", "status": status, "headers": lines}, 0)
        self._put({"type": "http.response.body", "body": body, "more_body": False}, len(body))
        self._over = True

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Send the head of an answer whose length is not known."""
        self._begun = True
        self._put({"type": "http.response.start", "status": status, "headers": parse_lines(headers)}, 0)

    def write(self, data: bytes) -> None:
        """Send a piece of the body begun; a client that reads too slowly pauses the owner."""
        if not data:
            return
        self._put({"type": "http.response.body", "body": data, "more_body": True}, len(data))
        exchange = self._exchange
        if self._queued > self._high_water and not self._paused and exchange is not None and exchange.owner is not None:
            self._paused = True
            exchange.owner.pause()

    def end(self, data: bytes = b"") -> None:
        """Send the last piece, if any, and finish the body begun."""
        self._put({"type": "http.response.body", "body": data, "more_body": False}, len(data))
        self._over = True

    def abort(self) -> None:
        """Break off: what is queued is dropped, and the server closes the connection."""
        self._broken = self._over = True
        self._queue.clear()
        self._news.set()

    def _put(self, message: Message, size: int) -> None:
        if not self._over and not self._gone:
            self._queue.append(message)
            self._queued += size
            self._news.set()

    # What the control plane calls

    async def run(self, exchange: Exchange, dispatch: Callable[[Exchange], None], receive: Receive, send: Send) -> None:
        """Have the exchange dispatched and send what comes of it, until all is sent or the client is gone."""
        self._exchange = exchange
        watcher = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            dispatch(exchange)
            await self._pump(send)
        except OSError:
            self._leave()  # the server found the connection gone while sending
        finally:
            watcher.cancel()
            if not self._over:
                self._leave()

    async def _pump(self, send: Send) -> None:
        while not self._gone:
            while self._queue and not self._gone:
                message = self._queue.popleft()
                await send(message)
                self._queued -= len(message.get("body", b""))
                self._relieve()
            if self._broken:
                if not self._begun:
                    raise RuntimeError("the data plane broke off an answer that it had not begun")
                return  # without the end of the body: the server closes the connection, and the client can tell
            if self._over and not self._queue:
                return
            self._news.clear()
            await self._news.wait()

    def _relieve(self) -> None:
        exchange = self._exchange
        if self._paused and self._queued <= self._low_water:
            self._paused = False
            if exchange is not None and exchange.owner is not None:
                exchange.owner.resume()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        """The client is gone: tell the owner at once, whatever is still queued."""
        if self._gone:
            return
        self._gone = True
        self._queue.clear()
        exchange = self._exchange
        if not self._over and exchange is not None and exchange.owner is not None:
            exchange.owner.client_gone()
        self._over = True
        self._news.set()


class ExchangeAnswer(Response):
    """An answer that the data plane makes.

    Args:
        exchange: What is asked; its client must be an `AsgiClientSide`.
        client: That client side.
        dispatch: Runs an exchange through the data plane.
    """

    def __init__(self, exchange: Exchange, client: AsgiClientSide, dispatch: Callable[[Exchange], None]) -> None:
        super().__init__()
        self._exchange = exchange
        self._client = client
        self._dispatch = dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        await self._client.run(self._exchange, self._dispatch, receive, send)


def split_headers(headers: Headers, route: Route) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Request headers as the data plane wants them.

    Args:
        headers: As received, names in lower case.
        route: What the request is for; a forwarded body keeps its own content type.

    Returns:
        What the gateway reads itself, and the cleaned lines that go upstream.
    """
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    notes: dict[bytes, bytes] = {}
    forward: list[bytes] = []
    for name, value in headers:
        action = disposition(name)
        if action == NOTE:
            notes.setdefault(name, value)
        elif name in named:
            continue
        elif action == KEEP or (action == DROP and name == b"content-type" and route is FORWARD):
            forward += (name + b": ", value, b"\r\n")
    return notes, forward


def fits(body: bytes, most: int) -> bytes:
    """A body that came through the control plane, of which the setting allows ``most`` bytes.

    Raises:
        Failure: It is larger.
    """
    if len(body) > most:
        raise Failure(errors.TOO_LARGE, f"the body is larger than http.max_body_bytes ({most})")
    return body
