"""The door: an HTTP/1.1 protocol for uvicorn that parses strictly and serves hot requests with no task and no framework."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import httptools

from hx_gateway.core import errors
from hx_gateway.core.context import HOT_ROUTES, Exchange, Route
from hx_gateway.core.errors import ErrorKind, error_body
from hx_gateway.core.headers import FRAMING, KEEP, NOTE, disposition
from hx_gateway.server.cold import Cold

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from hx_gateway.core.cors import CorsPolicy

HOT = {prefix + route.path.encode(): route for route in HOT_ROUTES for prefix in (b"/v1", b"")}
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_LINGER_S = 2.0
_length = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,10})(?=\r\n)")
_BIG = 1 << 16  # bytes; a larger body is written beside its head instead of joined to it
_KNOWN_HEADERS = 4096  # spellings of header names remembered


class Hall:
    """What all doors of one worker share.

    Args:
        dispatch: Takes a hot exchange.
        ids: Makes request ids.
        cors: The CORS policy; None when off.
        max_head: Largest request head in bytes.
        max_body: Largest request body in bytes.
        head_s: Seconds for a whole head to arrive.
        body_s: Seconds for a whole body to arrive.
        idle_s: Seconds a kept-alive connection may be silent.
        stall_s: Seconds a client may refuse to read.
    """

    def __init__(
        self,
        dispatch: Callable[[Exchange], None],
        ids: Callable[[], str],
        cors: CorsPolicy | None = None,
        *,
        max_head: int = 1 << 16,
        max_body: int = 1 << 25,
        head_s: float = 10.0,
        body_s: float = 60.0,
        idle_s: float = 75.0,
        stall_s: float = 120.0,
    ) -> None:
        self.dispatch = dispatch
        self.ids = ids
        self.cors = cors
        self.max_head = max_head
        self.max_body = max_body
        self.head_s = head_s
        self.body_s = body_s
        self.idle_s = idle_s
        self.stall_s = stall_s
        self.names: dict[bytes, tuple[int, bytes]] = {}
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Renew the Date header; called about every second."""
        self.date = b"date: " + formatdate(time(), usegmt=True).encode() + b"\r\n"

    def learn(self, name: bytes) -> tuple[int, bytes]:
        """What becomes of a header spelt like this, and its lower-case name (as a line's start where it is kept)."""
        lower = name.lower()
        action = disposition(lower)
        entry = (action, lower + b": " if action == KEEP else lower)
        if len(self.names) < _KNOWN_HEADERS:
            self.names[name] = entry
        return entry

    def sweep(self, doors: Any, now_s: float) -> None:
        """End every phase of every door whose deadline has passed."""
        for door in [door for door in doors if door.deadline_s <= now_s]:
            door.expire()


class Request:
    """A request being received, or waiting its turn behind another on its connection."""

    __slots__ = ("forward", "headers", "hosts", "http10", "keep_alive", "length", "method", "notes", "pieces", "route", "size", "target")

    route: Route

    def __init__(self) -> None:
        self.target = b""
        self.method = b""
        self.notes: dict[bytes, bytes] = {}
        self.forward: list[bytes] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.hosts = 0
        self.size = 0
        self.length = -1
        self.http10 = False
        self.keep_alive = True


class Door(asyncio.Protocol):
    """One client connection.

    It parses every request with one strict parser. A hot request becomes an `Exchange` and goes straight to the data
    plane, whose `ClientSide` the door is; any other runs through the control app. Requests that arrive while one is
    being answered wait in order.
    """

    __slots__ = (
        "app_state", "chunked", "closing", "cold", "config", "deadline_s", "exchange", "expect", "hall", "head_bytes", "in_head", "keep_alive", "lingering", "memo", "memo_head", "parser", "paused", "raw", "reading_paused", "receiving", "state",
        "transport", "waiting",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None, *, hall: Hall
    ) -> None:
        self.config = config
        self.state = server_state
        self.app_state = app_state
        self.hall = hall
        self.parser = httptools.HttpRequestParser(self)
        self.receiving: Request | None = None
        self.waiting: deque[Request] = deque()
        self.exchange: Exchange | None = None  # the hot request being answered
        self.cold: Cold | None = None  # or the other one
        self.memo: Request | None = None  # the last hot request, its body aside
        self.memo_head = b""  # its head, without the digits of the content length
        self.deadline_s = inf
        self.head_bytes = 0
        self.raw = 0
        self.in_head = False
        self.expect = False
        self.keep_alive = True
        self.chunked = False
        self.closing = False
        self.lingering = False
        self.paused = False
        self.reading_paused = False

    def __repr__(self) -> str:
        phase = "closing" if self.closing else "busy" if self.exchange or self.cold else "reading" if self.receiving else "idle"
        return f"<Door {phase} waiting={len(self.waiting)}>"

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.state.connections.add(self)  # type: ignore[arg-type]
        self.deadline_s = monotonic() + self.hall.head_s

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.connections.discard(self)
        self.closing = True
        self.deadline_s = inf
        self.waiting.clear()
        exchange, cold = self.exchange, self.cold
        self.exchange = self.cold = None
        if exchange is not None and exchange.owner is not None:
            exchange.owner.client_gone()
        if cold is not None:
            cold.disconnected()

    def eof_received(self) -> None:
        return None  # the client has gone, or wants nothing more: either way its request ends

    def data_received(self, data: bytes) -> None:
        if self.closing:
            return
        head = b""
        if self.receiving is None and self.exchange is None and self.cold is None and not self.waiting:
            # A client that keeps its connection sends the same head again, but for the length: what was parsed and
            # found good once need not be parsed again. Any other head, and any body not whole, takes the parser.
            end = data.find(b"\r\n\r\n")
            found = _length.search(data, 0, end + 2) if end > 0 else None
            if found is not None:
                first, last = found.span(1)
                head = data[:first] + data[last:end]
                if head == self.memo_head:
                    length = int(found.group(1))
                    if length == len(data) - end - 4 and length <= self.hall.max_body:
                        self._hot(self.memo, data[end + 4 :])  # type: ignore[arg-type]
                        return
        self.raw += len(data)
        if self.in_head or self.receiving is None:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data, upgrade)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, _Refused):
                self.refuse(cause.kind, str(cause))
            elif isinstance(error, httptools.HttpParserCallbackError):
                self.refuse(errors.INTERNAL, "the request could not be handled")
                raise
            else:
                self.refuse(errors.INVALID_HTTP, f"the request is not valid HTTP: {error}")
            return
        receiving = self.receiving
        if receiving is None:
            if head and self.memo is not None and not self.waiting:
                self.memo_head = head
        else:
            if self.in_head and self.head_bytes > self.hall.max_head:
                self.refuse(errors.HEAD_TOO_LARGE, f"the request head is larger than http.max_head_bytes ({self.hall.max_head})")
            elif self.raw > 65536 + self.hall.max_head + receiving.size * 8 and not self.in_head:
                # Chunk sizes, extensions and trailers are bounded by the body they frame.
                self.refuse(errors.INVALID_HTTP, "the chunked body is mostly framing")

    def pause_writing(self) -> None:
        self.paused = True
        exchange = self.exchange
        if exchange is not None:
            self.deadline_s = monotonic() + self.hall.stall_s
            if exchange.owner is not None:
                exchange.owner.pause()
        elif self.cold is not None:
            self.deadline_s = monotonic() + self.hall.stall_s
            self.cold.flow.pause_writing()

    def resume_writing(self) -> None:
        self.paused = False
        exchange = self.exchange
        if exchange is not None:
            self.deadline_s = inf
            if exchange.owner is not None:
                exchange.owner.resume()
        elif self.cold is not None:
            self.deadline_s = inf
            self.cold.flow.resume_writing()

    # uvicorn

    def shutdown(self) -> None:
        """Drain: close when idle, else after the answer under way."""
        if self.exchange is None and self.cold is None and self.receiving is None:
            self.closing = True
            self.transport.close()
        else:
            self.keep_alive = False
            if self.cold is not None:
                self.cold.cycle.keep_alive = False

    # The parser

    def on_message_begin(self) -> None:
        self.receiving = Request()
        self.in_head = True
        self.expect = False
        self.raw = 0
        if self.exchange is None and self.cold is None:
            self.deadline_s = monotonic() + self.hall.head_s

    def on_url(self, url: bytes) -> None:
        self.receiving.target += url  # type: ignore[union-attr]

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_head:
            return  # a trailer: nothing in it may change what the head said
        receiving: Any = self.receiving
        entry = self.hall.names.get(name)
        if entry is None:
            entry = self.hall.learn(name)
        action, lower = entry
        if action == KEEP:
            receiving.forward += (lower, value, b"\r\n")
        elif action == NOTE:
            if lower in receiving.notes:
                raise _Refused(errors.INVALID_HTTP, f"the header {lower.decode('latin-1')!r} may be sent only once")
            receiving.notes[lower] = value
        elif action == FRAMING:
            self._framing(lower, value)
        receiving.headers.append((name, value))

    def _framing(self, name: bytes, value: bytes) -> None:
        receiving = self.receiving
        assert receiving is not None
        if name == b"host":
            receiving.hosts += 1
        elif name == b"content-length":
            receiving.length = int(value)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise _Refused(errors.INVALID_HTTP, "the only expectation that can be met is 100-continue")
            self.expect = True
        elif name == b"connection":
            lowered = value.lower()
            if b"," in lowered or lowered not in (b"keep-alive", b"close", b"upgrade"):
                self._drop_named(lowered)
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            raise _Refused(errors.INVALID_HTTP, "the only transfer encoding understood is chunked")

    def _drop_named(self, value: bytes) -> None:
        """Headers that Connection names are for this hop only; they may come before or after it."""
        receiving = self.receiving
        assert receiving is not None
        receiving.notes[b"connection"] = value

    def on_headers_complete(self) -> None:
        receiving = self.receiving
        assert receiving is not None
        hall = self.hall
        if self.head_bytes > hall.max_head:
            size = len(receiving.target) + 16 + sum(len(name) + len(value) + 4 for name, value in receiving.headers)
            if size > hall.max_head:
                raise _Refused(errors.HEAD_TOO_LARGE, f"the request head is larger than http.max_head_bytes ({hall.max_head})")
        self.in_head = False
        self.head_bytes = 0
        parser = self.parser
        receiving.method = method = parser.get_method()
        if method not in _METHODS:
            raise _Refused(errors.METHOD_NOT_ALLOWED, "the method is not one this server knows")
        version = parser.get_http_version()
        if version == "1.1":
            if receiving.hosts != 1:
                raise _Refused(errors.INVALID_HTTP, "exactly one Host header is required")
        elif version == "1.0":
            receiving.http10 = True
            if receiving.hosts > 1 or any(name.lower() == b"transfer-encoding" for name, _ in receiving.headers):
                raise _Refused(errors.INVALID_HTTP, "HTTP/1.0 has one Host header at most and no transfer encoding")
        else:
            raise _Refused(errors.INVALID_HTTP, f"HTTP version {version} is not spoken here")
        if not parser.should_keep_alive() or receiving.http10:
            receiving.keep_alive = False
        named = receiving.notes.pop(b"connection", None)
        if named is not None:
            self._without(receiving, {token.strip() for token in named.split(b",")})
        length = receiving.length
        if length > hall.max_body:
            raise _Refused(errors.TOO_LARGE, f"the body is larger than http.max_body_bytes ({hall.max_body})")
        if length > 0 or (length < 0 and receiving.method not in (b"GET", b"HEAD")):
            if self.exchange is None and self.cold is None:
                self.deadline_s = monotonic() + hall.body_s
                if self.expect and not receiving.http10:
                    self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _without(self, receiving: Request, names: set[bytes]) -> None:
        lines = receiving.forward
        receiving.forward = [
            piece
            for start in range(0, len(lines), 3)
            if lines[start][:-2] not in names
            for piece in lines[start : start + 3]
        ]

    def on_body(self, body: bytes) -> None:
        receiving = self.receiving
        assert receiving is not None
        receiving.pieces.append(body)
        receiving.size += len(body)
        if receiving.size > self.hall.max_body:
            raise _Refused(errors.TOO_LARGE, f"the body is larger than http.max_body_bytes ({self.hall.max_body})")

    def on_message_complete(self) -> None:
        receiving = self.receiving
        assert receiving is not None
        self.receiving = None
        if self.exchange is not None or self.cold is not None or self.waiting:
            self.waiting.append(receiving)
            if not self.reading_paused:
                self.reading_paused = True
                self.transport.pause_reading()
        else:
            self._serve(receiving)

    def _upgraded(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """An upgrade is offered, never taken: the request is served as it is, and what follows is HTTP as before."""
        self.parser = httptools.HttpRequestParser(self)
        rest = data[upgrade.args[0] :]
        if self.receiving is not None:
            receiving, self.receiving = self.receiving, None
            self.refuse(errors.INVALID_HTTP, f"{receiving.method.decode('latin-1')} with an upgrade is not served")
        elif rest:
            self.data_received(rest)

    # Serving

    def _serve(self, request: Request) -> None:
        self.keep_alive = self.keep_alive and request.keep_alive
        self.deadline_s = inf
        route = HOT.get(request.target) if request.method == b"POST" else None
        if route is None:
            self.memo = None
            self.memo_head = b""
            self.cold = Cold(self, request, self._cold_done)
            return
        self.chunked = not request.http10
        pieces = request.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        request.pieces = []
        request.forward = [b"".join(request.forward)]
        request.route = route
        plain = request.keep_alive and request.length > 0 and not self.expect
        self.memo = request if plain else None
        self.memo_head = b""
        self._hot(request, body)

    def _hot(self, request: Request, body: bytes) -> None:
        """Hand a hot request to the data plane."""
        self.deadline_s = inf
        hall = self.hall
        self.exchange = exchange = Exchange(
            hall.ids(), request.route, b"POST", request.target, request.notes, request.forward, body, self, monotonic()
        )
        hall.dispatch(exchange)

    def _cold_done(self) -> None:
        cold = self.cold
        self.cold = None
        if cold is not None and not cold.cycle.keep_alive:
            self.keep_alive = False
        self._next()

    def _next(self) -> None:
        """The answer under way is complete: close, or turn to the next request."""
        self.state.total_requests += 1
        if not self.keep_alive:
            self.closing = True
            self.transport.close()
        elif self.waiting:
            asyncio.get_running_loop().call_soon(self._serve_waiting)
        else:
            hall = self.hall
            self.deadline_s = monotonic() + (hall.idle_s if self.receiving is None else hall.body_s)

    def _serve_waiting(self) -> None:
        if self.waiting and not self.closing and self.exchange is None and self.cold is None:
            request = self.waiting.popleft()
            if not self.waiting and self.reading_paused:
                self.reading_paused = False
                self.transport.resume_reading()
            self._serve(request)

    # The client side of the data plane

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        if self.exchange is not exchange:
            return  # the connection is gone
        self.exchange = None
        head = b"".join((
            _STATUS[status] if status in _STATUS else b"HTTP/1.1 %d \r\n" % status,
            self.hall.date,
            headers,
            b"" if self.keep_alive and self.hall.cors is None else self._extra(exchange),
            b"content-length: %d\r\n\r\n" % len(body),
        ))  # fmt: skip
        if len(body) < _BIG:
            self.transport.write(head + body)
        else:
            self.transport.writelines((head, body))
        self._next()

    def _extra(self, exchange: Exchange) -> bytes:
        extra = b"" if self.keep_alive else b"connection: close\r\n"
        cors = self.hall.cors
        if cors is not None:
            origin = exchange.notes.get(b"origin")
            if origin is not None:
                extra += cors.response_lines(origin)
        return extra

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        if self.exchange is not exchange:
            return
        if not self.chunked:
            self.keep_alive = False  # to HTTP/1.0 the end of the connection is the end of the body
        framing = b"transfer-encoding: chunked\r\n\r\n" if self.chunked else b"\r\n"
        self.transport.write(b"".join((_STATUS[status], self.hall.date, headers, self._extra(exchange), framing)))

    def write(self, data: bytes) -> None:
        if self.exchange is None:
            return
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def end(self, data: bytes = b"") -> None:
        if self.exchange is None:
            return
        self.exchange = None
        if self.chunked:
            self.transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        elif data:
            self.transport.write(data)
        self._next()

    def abort(self) -> None:
        self.exchange = None
        self.closing = True
        self.transport.abort()

    # Refusals and deadlines

    def refuse(self, kind: ErrorKind, message: str) -> None:
        """Answer a request that cannot be read, and close: nothing after it can be trusted to be a request."""
        self.receiving = None
        self.waiting.clear()
        if self.exchange is not None or self.cold is not None:
            # An earlier request is still being answered; its answer is the last on this connection.
            self.shutdown()
            self.keep_alive = False
            self.closing = True
            return
        body = error_body(kind, message)
        status = _STATUS[kind.status]
        head = b"%b%bcontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (status, self.hall.date, len(body))
        self.closing = True
        self.transport.write(head + body)
        # Closing with unread bytes would reset the connection and might take our answer with it: linger a little.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.lingering = True
            self.deadline_s = monotonic() + _LINGER_S
        else:
            self.transport.close()

    def expire(self) -> None:
        """The deadline of the current phase has passed."""
        self.deadline_s = inf
        if self.lingering or self.closing or self.paused:
            self.closing = True
            self.transport.abort()
        elif self.receiving is not None:
            what = "head" if self.in_head else "body"
            self.refuse(errors.SLOW_CLIENT, f"the request {what} was not received in time (http.{what}_timeout_seconds)")
        else:
            self.closing = True
            self.transport.close()


class _Refused(Exception):
    """A request that breaks a rule; raised through the parser."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


