"""The door: an HTTP/1.1 protocol for uvicorn that parses strictly and serves hot requests with no task and no framework."""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from hx_gateway.core import errors
from hx_gateway.core.context import HOT_ROUTES, Exchange
from hx_gateway.core.errors import ErrorKind, error_body
from hx_gateway.core.headers import DIGEST, KEEP, NOTE
from hx_gateway.core.heads import Pattern, learn, worthwhile
from hx_gateway.server.cold import Cold
from hx_gateway.server.reader import CONTINUE, Reader, Request

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from hx_gateway.server.hall import Hall

HOT = {prefix + route.path.encode(): route for route in HOT_ROUTES for prefix in (b"/v1", b"")}
_STATUS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_LINGER_S = 2.0
_BIG = 1 << 16  # bytes; a larger body is written beside its head instead of joined to it


class Door(Reader):
    """One client connection.

    It parses every request with one strict parser. A hot request becomes an `Exchange` and goes straight to the data
    plane, whose `ClientSide` the door is; any other runs through the control app. Requests that arrive while one is
    being answered wait in order.
    """

    __slots__ = (
        "app_state", "chunked", "closing", "cold", "config", "exchange", "keep_alive", "latest", "line_slots", "lingering", "memo", "misses",
        "note_slots", "pattern", "paused", "reading_paused", "state", "waiting",
    )  # fmt: skip

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None, *, hall: Hall) -> None:
        super().__init__(hall)
        self.config = config
        self.state = server_state
        self.app_state = app_state
        self.waiting: deque[Request] = deque()
        self.exchange: Exchange | None = None  # the hot request being answered
        self.cold: Cold | None = None  # or the other one
        self.latest: Request | None = None  # the last one parsed, where it was hot and may be remembered
        self.memo: Request | None = None  # the one that is, its body aside
        self.pattern: Pattern | None = None  # of its head, where that came whole
        self.misses = 0
        self.note_slots: list[tuple[bytes, int]] = []  # which note is which free value of the head
        self.line_slots: list[tuple[int, int]] = []  # which piece of `forward` is which
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
        self.parser = None  # type: ignore[assignment]  # it holds our callbacks: without this only the collector frees us
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
        pattern = self.pattern
        fresh = self.receiving is None and self.exchange is None and self.cold is None and not self.waiting and not self.paused
        if fresh and pattern is not None:
            # A client that keeps its connection sends nearly the same head again: what was parsed and found good once need
            # not be parsed again. Any other head, and any body not whole, takes the parser.
            body = pattern.match(data)
            if body is not None and len(body) <= self.hall.max_body and len(data) - len(body) <= self.hall.max_head:
                memo: Any = self.memo
                notes, forward = memo.notes, memo.forward
                if self.note_slots:
                    notes = notes.copy()
                    notes.pop(DIGEST, None)  # the key may be another
                    for name, number in self.note_slots:
                        notes[name] = pattern.values[number]
                if self.line_slots:
                    forward = forward.copy()
                    for at, number in self.line_slots:
                        forward[at] = pattern.values[number]
                if self.misses:
                    self.misses -= 1
                self._hot(memo, notes, forward, body)
                return
        self.latest = None
        if self.parse(data) and fresh and self.latest is not None and self.receiving is None:
            self.misses += 1
            if worthwhile(self.misses):
                self._remember(self.latest, data)

    def _remember(self, latest: Request, data: bytes) -> None:
        """Keep the head of a hot request that came in one piece, with room for what may differ."""
        pattern = learn(data, latest.headers, self.pattern)
        if pattern is None:
            return
        self.pattern, self.memo, self.note_slots, self.line_slots = pattern, latest, [], []
        if not pattern.free:
            return
        forward = [b""]
        for number, (name, value) in enumerate(latest.headers):
            action, lower = self.hall.learn(name)
            free = pattern.free.index(number) if number in pattern.free else -1
            if action == KEEP:
                forward[-1] += lower
                if free >= 0:
                    self.line_slots.append((len(forward), free))
                    forward += (value, b"\r\n")
                else:
                    forward[-1] += value + b"\r\n"
            elif action == NOTE and free >= 0:
                self.note_slots.append((lower, free))
        latest.forward = forward

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
        elif self.waiting:
            asyncio.get_running_loop().call_soon(self._serve_waiting)

    # uvicorn

    def shutdown(self) -> None:
        """Drain: close when idle, else after the answer under way."""
        if self.last():
            self.closing = True
            self.transport.close()

    def last(self) -> bool:
        """Have the next answer, or the one under way, be the last; True when there is none under way."""
        self.keep_alive = False
        if self.cold is not None:
            self.cold.cycle.keep_alive = False
        return self.exchange is None and self.cold is None and self.receiving is None

    # Serving

    def answering(self) -> bool:
        return self.exchange is not None or self.cold is not None

    def arrived(self, request: Request) -> None:
        if self.closing:
            return  # it came in one read with a request whose answer was the last
        # A client that does not read its answers is not read from, either.
        if self.exchange is not None or self.cold is not None or self.waiting or self.paused:
            self.waiting.append(request)
            if not self.reading_paused:
                self.reading_paused = True
                self.transport.pause_reading()
        else:
            self._serve(request)

    def _serve(self, request: Request) -> None:
        self.keep_alive = self.keep_alive and request.keep_alive
        self.deadline_s = inf
        route = HOT.get(request.target) if request.method == b"POST" else None
        if route is None:
            self.cold = Cold(self, request, self._cold_done)
            return
        self.chunked = not request.http10
        pieces = request.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        request.pieces = []
        request.forward = [b"".join(request.forward)]
        request.route = route
        if request.keep_alive and request.length > 0 and not self.expect and not request.dropped:
            self.latest = request
        self._hot(request, request.notes, request.forward, body)

    def _hot(self, request: Request, notes: dict[bytes, bytes], forward: list[bytes], body: bytes) -> None:
        """Hand a hot request to the data plane."""
        self.deadline_s = inf
        hall = self.hall
        ids, dispatch = hall.ids, hall.dispatch
        self.exchange = exchange = Exchange(ids(), request.route, b"POST", request.target, notes, forward, body, self, monotonic())
        dispatch(exchange)

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
            if self.closing:
                self._linger()
            else:
                self.closing = True
                self.transport.close()
        elif self.waiting:
            self.deadline_s = monotonic() + self.hall.stall_s
            if not self.paused:
                asyncio.get_running_loop().call_soon(self._serve_waiting)
        else:
            hall = self.hall
            receiving = self.receiving
            self.deadline_s = monotonic() + (hall.idle_s if receiving is None else hall.body_s)
            if receiving is not None and self.expect and not self.in_head and not receiving.size and not receiving.http10:
                self.transport.write(CONTINUE)  # it was not its turn when it asked

    def _serve_waiting(self) -> None:
        if self.waiting and not self.paused and self.exchange is None and self.cold is None and not self.transport.is_closing():
            request = self.waiting.popleft()
            if not self.waiting:
                if self.closing:
                    self.keep_alive = False  # what came after it was refused
                elif self.reading_paused:
                    self.reading_paused = False
                    self.transport.resume_reading()
            self._serve(request)

    # The client side of the data plane

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        if self.exchange is not exchange:
            return  # the connection is gone
        self.exchange = None
        hall, size = self.hall, len(body)
        pieces = (
            _STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status, hall.date, headers,
            b"" if self.keep_alive and hall.cors is None else self._extra(exchange), b"content-length: %d\r\n\r\n" % size, body,
        )  # fmt: skip
        if size < _BIG:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines(pieces)
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
        if self.exchange is not None or self.cold is not None or self.waiting:
            # Earlier requests were good; the answer to the last of them is the last on this connection.
            self.closing = True
            if not self.waiting:
                self.keep_alive = False
                if self.cold is not None:
                    self.cold.cycle.keep_alive = False
            return
        body = error_body(kind, message)
        status = _STATUS[kind.status]
        head = b"%b%bcontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (
            status,
            self.hall.date,
            len(body),
        )
        self.closing = True
        self.transport.write(head + body)
        self._linger()

    def _linger(self) -> None:
        """Close for writing, then wait a little: closing with unread bytes resets, and that might take our answer with it."""
        transport = self.transport
        if transport.can_write_eof() and not transport.is_closing():
            transport.write_eof()
            self.lingering = True
            self.deadline_s = monotonic() + _LINGER_S
            if self.reading_paused:
                self.reading_paused = False
                transport.resume_reading()
        else:
            transport.close()

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
