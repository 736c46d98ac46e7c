"""The strict side of the door: bytes become whole, unambiguous requests, or are refused before anything acts on them."""

from __future__ import annotations

import asyncio
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

import httptools

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.core.headers import FRAMING, KEEP, NOTE

if TYPE_CHECKING:
    from hx_gateway.core.context import Route
    from hx_gateway.server.hall import Hall

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))


class Request:
    """A request being received, or waiting its turn behind another on its connection."""

    __slots__ = (
        "chunked",
        "dropped",
        "forward",
        "headers",
        "hosts",
        "http10",
        "keep_alive",
        "length",
        "method",
        "notes",
        "pieces",
        "route",
        "size",
        "target",
    )

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
        self.chunked = False
        self.http10 = False
        self.keep_alive = True
        self.dropped = False  # headers of it that its Connection named


class Refused(Exception):
    """A request that breaks a rule; raised through the parser."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Reader(asyncio.Protocol):
    """Parses requests with one strict parser (llhttp), and holds them to the rules that the parser leaves open.

    `arrived` gets each request whose body is complete; `refuse` ends the connection over one that breaks a rule.
    ``deadline_s`` is the monotonic time at which the coarse sweep ends the current phase.
    """

    __slots__ = ("deadline_s", "expect", "hall", "head_bytes", "in_head", "offered", "parser", "raw", "receiving", "transport")

    transport: asyncio.Transport

    def __init__(self, hall: Hall) -> None:
        self.hall = hall
        self.parser = httptools.HttpRequestParser(self)
        self.receiving: Request | None = None
        self.deadline_s = inf
        self.head_bytes = 0
        self.raw = 0
        self.in_head = False
        self.expect = False
        self.offered = False  # an upgrade, by the request being received

    def arrived(self, request: Request) -> None:
        """A request is complete."""
        raise NotImplementedError

    def refuse(self, kind: ErrorKind, message: str) -> None:
        """A request cannot be read: answer so, and close."""
        raise NotImplementedError

    def answering(self) -> bool:
        """Whether an earlier request is still being answered."""
        raise NotImplementedError

    def parse(self, data: bytes) -> bool:
        """Feed the parser; False when the bytes were refused."""
        self.raw += len(data)
        if self.in_head or self.receiving is None:
            self.head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data, upgrade)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Refused):
                self.refuse(cause.kind, str(cause))
            elif isinstance(error, httptools.HttpParserCallbackError):
                self.refuse(errors.INTERNAL, "the request could not be handled")
                raise
            else:
                self.refuse(errors.INVALID_HTTP, f"the request is not valid HTTP: {error}")
            return False
        receiving = self.receiving
        if receiving is not None:
            if self.in_head and self.head_bytes > self.hall.max_head:
                self.refuse(errors.HEAD_TOO_LARGE, f"the request head is larger than http.max_head_bytes ({self.hall.max_head})")
                return False
            if self.raw > 65536 + self.hall.max_head + receiving.size * 8 and not self.in_head:
                # Chunk sizes, extensions and trailers are bounded by the body they frame.
                self.refuse(errors.INVALID_HTTP, "the chunked body is mostly framing")
                return False
        return True

    def on_message_begin(self) -> None:
        self.receiving = Request()
        self.in_head = True
        self.expect = False
        self.offered = False
        self.raw = 0
        if not self.answering():
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
                raise Refused(errors.INVALID_HTTP, f"the header {lower.decode('latin-1')!r} may be sent only once")
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
                raise Refused(errors.INVALID_HTTP, "the only expectation that can be met is 100-continue")
            self.expect = True
        elif name == b"connection":
            lowered = value.lower()
            if b"upgrade" in lowered:
                self.offered = True
            if b"," in lowered or lowered not in (b"keep-alive", b"close", b"upgrade"):
                self._drop_named(lowered)
        elif name == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise Refused(errors.INVALID_HTTP, "the only transfer encoding understood is chunked")
            receiving.chunked = True

    def _drop_named(self, value: bytes) -> None:
        """Headers that Connection names are for this hop only; they may come before or after it."""
        receiving = self.receiving
        assert receiving is not None
        before = receiving.notes.get(b"connection")
        receiving.notes[b"connection"] = value if before is None else before + b"," + value

    def on_headers_complete(self) -> None:
        receiving = self.receiving
        assert receiving is not None
        hall = self.hall
        if self.head_bytes > hall.max_head:
            size = len(receiving.target) + 16 + sum(len(name) + len(value) + 4 for name, value in receiving.headers)
            if size > hall.max_head:
                raise Refused(errors.HEAD_TOO_LARGE, f"the request head is larger than http.max_head_bytes ({hall.max_head})")
        self.in_head = False
        self.head_bytes = 0
        parser = self.parser
        receiving.method = method = parser.get_method()
        if method not in _METHODS:
            raise Refused(errors.METHOD_NOT_ALLOWED, "the method is not one this server knows")
        version = parser.get_http_version()
        if version == "1.1":
            if receiving.hosts != 1:
                raise Refused(errors.INVALID_HTTP, "exactly one Host header is required")
        elif version == "1.0":
            receiving.http10 = True
            if receiving.hosts > 1 or receiving.chunked:
                raise Refused(errors.INVALID_HTTP, "HTTP/1.0 has one Host header at most and no transfer encoding")
        else:
            raise Refused(errors.INVALID_HTTP, f"HTTP version {version} is not spoken here")
        if not parser.should_keep_alive() or receiving.http10:
            receiving.keep_alive = False
        named = receiving.notes.pop(b"connection", None)
        if named is not None:
            receiving.dropped = True
            self._without(receiving, {token.strip() for token in named.split(b",")})
        length = receiving.length
        if length > hall.max_body:
            raise Refused(errors.TOO_LARGE, f"the body is larger than http.max_body_bytes ({hall.max_body})")
        if length > 0 or (length < 0 and receiving.method not in (b"GET", b"HEAD")):
            if not self.answering():
                self.deadline_s = monotonic() + hall.body_s
                if self.expect and not receiving.http10:
                    self.transport.write(CONTINUE)

    def _without(self, receiving: Request, names: set[bytes]) -> None:
        lines = receiving.forward
        receiving.forward = [
            piece for start in range(0, len(lines), 3) if lines[start][:-2] not in names for piece in lines[start : start + 3]
        ]

    def on_body(self, body: bytes) -> None:
        receiving = self.receiving
        assert receiving is not None
        receiving.pieces.append(body)
        receiving.size += len(body)
        if receiving.size > self.hall.max_body:
            raise Refused(errors.TOO_LARGE, f"the body is larger than http.max_body_bytes ({self.hall.max_body})")

    def on_message_complete(self) -> None:
        receiving = self.receiving
        assert receiving is not None
        if self.offered and self.parser.should_upgrade() and (receiving.length > 0 or receiving.chunked):
            return  # the parser takes the body for the other protocol: see `_upgraded`
        self.receiving = None
        self.arrived(receiving)

    def _upgraded(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """An upgrade is offered, never taken: the request is served as it is, and what follows is HTTP as before."""
        receiving = self.receiving
        if receiving is None:
            self.parser = httptools.HttpRequestParser(self)
        else:
            self.parser = httptools.HttpRequestParser(_Resumed(self))
            framing = b"transfer-encoding: chunked" if receiving.chunked else b"content-length: %d" % receiving.length
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
        rest = data[upgrade.args[0] :]
        if rest:
            self.data_received(rest)


class _Resumed:
    """Stands between a reader and a parser that is first told a head known already, so that it reads the body; then steps aside."""

    __slots__ = ("_reader", "_told", "on_body", "on_message_complete")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._told = False
        self.on_body = reader.on_body
        self.on_message_complete = reader.on_message_complete

    def on_message_begin(self) -> None:
        if self._told:
            self._reader.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._told:
            self._reader.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._told:
            self._reader.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._told:
            self._reader.on_headers_complete()
        self._told = True
