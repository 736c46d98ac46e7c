"""One kept-alive connection to a model server: writes a request, parses its answer, and never lets stray bytes through."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import httptools

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.core.heads import Pattern, learn, worthwhile
from hx_gateway.core.interfaces import CallHandler, Headers, Outgoing

if TYPE_CHECKING:
    from hx_gateway.upstream.pool import Pool

IDLE, WAITING, READING, CLOSED = "idle", "waiting", "reading", "closed"
REST_S = 0.002  # seconds; pieces of a stream that come faster than this are taken together
_JSON = b"content-type: application/json\r\n"
MAX_HEAD = 1 << 18  # bytes of an answer's head, read in one go with at most one network read more


class Connection(asyncio.Protocol):
    """A connection of a pool. It is also the `Call` of the request it carries.

    The phases are ``idle`` (in the pool), ``waiting`` (for the first byte), ``reading`` (the answer) and ``closed``.
    ``deadline_s`` is the monotonic time at which the coarse sweep of the pool ends the current phase.
    """

    __slots__ = (
        "between_s", "body_size", "complete", "deadline_s", "delimited", "dirty", "handler", "headers", "ignoring",
        "memo_headers", "misses", "outgoing", "parser", "pattern", "paused", "phase", "pieces", "pool", "read_s", "rests", "reused", "status", "stream", "streaming", "total_at_s", "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.phase = IDLE
        self.handler: CallHandler | None = None
        self.outgoing: Outgoing | None = None
        self.headers: Headers = []
        self.pieces: list[bytes] = []
        self.deadline_s = inf
        self.total_at_s = inf
        self.between_s = inf
        self.status = 0
        self.body_size = 0
        self.reused = False
        self.stream = False
        self.streaming = False
        self.complete = False
        self.delimited = False  # the body's end is known from its head
        self.dirty = False
        self.ignoring = False  # an interim 1xx answer
        self.paused = False
        self.rests = False
        self.read_s = 0.0
        self.pattern: Pattern | None = None  # of the head of a whole answer
        self.misses = 0
        self.memo_headers: Headers = []
        self.parser = httptools.HttpResponseParser(self)

    def __repr__(self) -> str:
        return f"<Connection to {self.pool.endpoint.address} {self.phase}{' reused' if self.reused else ''}>"

    # The request

    def start(self, outgoing: Outgoing, handler: CallHandler, first_byte_s: float, total_at_s: float) -> None:
        """Send ``outgoing`` and give what comes of it to ``handler``.

        Args:
            outgoing: The request.
            handler: Told of the answer; its ``call`` becomes this connection.
            first_byte_s: Seconds to wait for the answer's head.
            total_at_s: Monotonic time at which the call ends whatever it is doing; ``inf`` for none.
        """
        self.outgoing = outgoing
        self.handler = handler
        handler.call = self
        self.stream = outgoing.stream
        self.streaming = self.complete = self.delimited = False
        self.status = self.body_size = 0
        if self.headers:
            self.headers = []
        self.phase = WAITING
        self.total_at_s = total_at_s
        deadline_s = monotonic() + first_byte_s
        self.deadline_s = deadline_s if deadline_s < total_at_s else total_at_s
        body = outgoing.body
        kind = outgoing.content_type
        size = len(body)
        pieces = (
            outgoing.method, b" ", outgoing.path, b" HTTP/1.1\r\n", self.pool.endpoint.head, outgoing.headers,
            _JSON if kind == b"application/json" else b"content-type: %b\r\n" % kind if kind else b"",
            b"content-length: %d\r\n\r\n" % size, body,
        )  # fmt: skip
        if size < 16384:
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines((b"".join(pieces[:-1]), body))

    def cancel(self) -> None:
        self.handler = None
        self._close()

    def pause(self) -> None:
        if not self.paused and self.phase is not CLOSED:
            self.paused = True
            if not self.rests:
                self.transport.pause_reading()
            self.deadline_s = self.total_at_s  # it is the client who is slow, not the server

    def resume(self) -> None:
        if self.paused and self.phase is not CLOSED:
            self.paused = False
            if not self.rests:
                self.transport.resume_reading()
            self.deadline_s = min(monotonic() + self.between_s, self.total_at_s)

    def expire(self) -> None:
        """The deadline of the current phase has passed."""
        phase = self.phase
        if phase is IDLE:
            self._close()
            return
        if monotonic() >= self.total_at_s:
            self._fail(errors.TOTAL_TIMEOUT, "the request's total deadline passed")
        elif phase is WAITING:
            self._fail(errors.FIRST_BYTE_TIMEOUT, "the model server sent no answer in time")
        elif self.streaming:
            self._fail(errors.STREAM_STALLED, "the model server stopped sending in the middle of its answer")
        else:
            self._fail(errors.FIRST_BYTE_TIMEOUT, "the model server stopped in the middle of its answer")

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        phase = self.phase
        self.phase = CLOSED
        self.pool.lost(self)
        self.parser = None  # type: ignore[assignment]  # it holds our callbacks: without this only the collector frees us
        handler = self.handler
        if handler is None:
            return
        if phase is WAITING:
            outgoing = self.outgoing
            if self.reused and outgoing is not None:
                # The server closed an idle connection while we wrote to it: nothing was answered, so ask again on a new one.
                self.handler = None
                self.pool.again(outgoing, handler, self.total_at_s)
            else:
                self._fail(errors.CONNECTION_RESET, "the model server closed the connection without an answer")
        elif self.status and not self.delimited and exc is None:
            self.dirty = True
            self._finish()
        elif self.streaming:
            self._fail(errors.STREAM_BROKEN, "the model server closed the connection in the middle of its answer")
        else:
            self._fail(errors.CONNECTION_RESET, "the model server closed the connection in the middle of its answer")

    def data_received(self, data: bytes) -> None:
        if self.handler is None:
            self._close()  # nobody asked for these bytes
            return
        fresh = False
        if self.phase is WAITING:
            if not self.body_size and not self.stream:
                # A server sends nearly the same head again: what was parsed and found good once need not be parsed again.
                # Any other head, and any body not whole, takes the parser.
                fresh = True
                pattern = self.pattern
                if pattern is not None:
                    body = pattern.match(data)
                    if body is not None and len(body) <= self.pool.max_body:
                        headers = self.memo_headers
                        if pattern.free:
                            headers = headers.copy()
                            values = iter(pattern.values)
                            for number in pattern.free:
                                headers[number] = (headers[number][0], next(values))
                        if self.misses:
                            self.misses -= 1
                        self._release().answered(200, headers, body)
                        return
            self.reused = False  # an answer has begun: a loss from here on is the server's failure
            self.body_size += len(data)
            if self.body_size > MAX_HEAD:
                self._fail(errors.BAD_RESPONSE, "the head of the model server's answer is too large")
                return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.dirty = True
        except httptools.HttpParserError as error:
            self.dirty = True
            if not self.complete:
                cause = error.__context__
                if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, _Refused):
                    self._fail(errors.BAD_RESPONSE, "the answer could not be handled")
                    raise
                self._fail(errors.BAD_RESPONSE, str(cause) if isinstance(cause, _Refused) else f"the answer is not valid HTTP: {error}")
                return
        handler = self.handler
        if handler is None:
            return
        if self.streaming:
            pieces = self.pieces
            if pieces:
                self.pieces = []
                handler.received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
                if self.handler is None:
                    return
        if self.complete:
            if fresh and not self.dirty and self.status == 200:  # some others have no body, whatever their head says
                self._remember(data)
            self._finish()
        elif not self.paused:
            now_s = monotonic()
            deadline_s = now_s + self.between_s
            self.deadline_s = deadline_s if deadline_s < self.total_at_s else self.total_at_s
            if self.streaming:
                if now_s - self.read_s < REST_S:
                    # A burst: let it gather in the kernel for a moment, so that many pieces cost one read and one write.
                    self.rests = True
                    self.transport.pause_reading()
                    self.pool.rest(self)
                self.read_s = now_s

    def _remember(self, data: bytes) -> None:
        """Keep the head of an answer that came in one piece, with room for what may differ."""
        self.misses += 1
        pattern = learn(data, self.headers, self.pattern) if worthwhile(self.misses) else None
        if pattern is not None:
            self.pattern = pattern
            self.memo_headers = self.headers

    def wake(self) -> None:
        """The rest is over: read on, unless the client has been told to wait meanwhile."""
        if self.rests:
            self.rests = False
            if not self.paused and self.phase is not CLOSED:
                self.transport.resume_reading()

    def eof_received(self) -> None:
        return None

    # The parser

    def on_message_begin(self) -> None:
        if self.complete:
            self.dirty = True  # bytes after the end: they belong to nobody and must reach nobody

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete or self.phase is READING:
            return  # of a stray second message, or a trailer
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-length" or name == b"transfer-encoding":
            self.delimited = True
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise _Refused("the model server sent a compressed answer although none was asked for")

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self.parser.get_status_code()
        if status < 200:
            self.headers = []
            self.delimited = False
            self.ignoring = True
            return
        self.status = status
        self.body_size = 0
        self.phase = READING
        if status == 204 or status == 304:
            self.delimited = True
        if self.stream:
            handler = self.handler
            outgoing = self.outgoing
            if outgoing is not None and outgoing.method == b"HEAD":
                self.complete = self.dirty = True  # whatever length its head gives, no body follows
            self.streaming = handler is not None and handler.began(status, self.headers)

    def on_body(self, body: bytes) -> None:
        if self.complete:
            self.dirty = True
            return
        if not self.streaming:
            self.body_size += len(body)
            if self.body_size > self.pool.max_body:
                raise _Refused("the answer is larger than http.max_response_bytes")
        self.pieces.append(body)

    def on_message_complete(self) -> None:
        if self.ignoring:
            self.ignoring = False
        elif not self.complete:
            self.complete = True
            if not self.parser.should_keep_alive():
                self.dirty = True

    # Ends

    def _release(self) -> CallHandler:
        """The answer is complete: part with its handler and, if all is well, go back to the pool."""
        handler = self.handler
        assert handler is not None
        self.handler = self.outgoing = None
        if self.dirty or self.paused:
            self._close()
        else:
            self.phase = IDLE
            self.reused = True
            self.pool.release(self)
        handler.call = None  # this connection may carry another request before the handler returns
        return handler

    def _finish(self) -> None:
        status, headers, pieces, streaming = self.status, self.headers, self.pieces, self.streaming
        if pieces:
            self.pieces = []
        handler = self._release()
        if streaming:
            if pieces:
                handler.received(b"".join(pieces))
            handler.ended()
        else:
            handler.answered(status, headers, pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _fail(self, kind: ErrorKind, message: str) -> None:
        handler = self.handler
        self.handler = None
        self._close()
        if handler is not None:
            handler.failed(kind, message)

    def _close(self) -> None:
        self.outgoing = None
        if self.phase is not CLOSED:
            self.phase = CLOSED
            self.transport.abort()


class _Refused(Exception):
    """The answer breaks a limit or asks for what was not offered; raised through the parser."""
