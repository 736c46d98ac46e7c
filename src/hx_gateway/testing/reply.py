"""One request as a scripted server received it, and the answer to it, byte by byte as wrong as a fault wants it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Protocol

from hx_gateway.testing.faults import WIRE_FAULTS, Fault

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests", 500: "Internal Server Error"}
_FORGED = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n{"forged": "yes"}'
_FILLER = b" " * 1024


class Line(Protocol):
    """The connection that an answer goes to."""

    async def send(self, data: bytes) -> None:
        """Hand bytes to the kernel, waiting while the client does not read."""
        ...

    def close(self, reset: bool = False) -> None:
        """End the connection, in order or with a reset."""
        ...


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came.

    Args:
        head: The request line and headers, exactly, without the blank line.
        body: The body without its framing.
        method: HTTP method.
        path: The target without its query.
        query: What stood after ``?``.
        headers: Lower-case names; the last of several wins.
        connection: Number of the connection it came on, from 1.
        at_s: When its last byte came, on the loop's clock.
    """

    head: bytes
    body: bytes
    method: str
    path: str
    query: str
    headers: dict[str, str]
    connection: int
    at_s: float

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: It is none.
        """
        return json.loads(self.body)


class Answer:
    """The answer to one request: whole, or piece by piece; breaks as its fault says.

    Args:
        connection: Where it goes.
        head_only: Whether the request was HEAD.
    """

    def __init__(self, connection: Line, head_only: bool) -> None:
        self.fault: Fault | None = None
        self.pieces = 0
        self.began = False
        self.complete = False
        self._connection = connection
        self._head_only = head_only
        self._framing = "length"

    @property
    def _kind(self) -> str:
        return self.fault.kind if self.fault is not None and self.fault.kind in WIRE_FAULTS else ""

    @property
    def _forged(self) -> bytes:
        """What follows the answer in the same write: later, it could not be told from the answer to the next request."""
        return _FORGED if self._kind == "extra_bytes" else b""

    async def whole(self, status: int, body: bytes, content_type: str = "application/json", headers: dict[str, str] | None = None) -> None:
        """Send a complete answer."""
        kind = self._kind
        framed = body
        lines = dict(headers or {})
        if kind == "endless":
            lines["transfer-encoding"] = "chunked"
            self._framing = "chunked"
            framed = b"%x\r\n%b\r\n" % (len(body), body)
        elif kind == "double_length":
            lines.update({"content-length": str(len(body)), "transfer-encoding": "chunked"})
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif kind == "bad_chunk":
            lines["transfer-encoding"] = "chunked"
            framed = b"zz\r\n%b\r\n0\r\n\r\n" % body
        elif kind != "close_delimited":
            wrong = {"long_length": 10, "short_length": -(len(body) // 2)}.get(kind, 0)
            lines["content-length"] = str(len(body) + wrong)
        await self._start(status, content_type, lines)
        if self._head_only:
            framed = b""
        if kind in ("black_hole", "reset_body", "close_body"):
            await self._send(framed[: len(framed) // 2])
            await self._strike()
        await self._send(framed + self._forged)
        await self._finish()

    async def begin(self, status: int, content_type: str, headers: dict[str, str] | None = None) -> None:
        """Send the head of a streamed answer."""
        self._framing = "close" if self._kind == "close_delimited" else "chunked"
        lines = dict(headers or {})
        if self._framing == "chunked":
            lines["transfer-encoding"] = "chunked"
        if self._kind == "double_length":
            lines["content-length"] = "5"
        await self._start(status, content_type, lines)

    async def piece(self, data: bytes) -> None:
        """Send a piece of a streamed answer in a write of its own."""
        fault = self.fault
        if fault is not None and self.pieces >= fault.after:
            if self._kind in ("black_hole", "reset_body", "close_body"):
                await self._strike()
            elif self._kind == "bad_chunk":
                await self._send(b"zz\r\n" + data)
                await self._stop_short()
        if data:
            await self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._framing == "chunked" else data)
            self.pieces += 1

    async def end(self) -> None:
        """Send the end of a streamed answer."""
        if self._kind in ("black_hole", "reset_body", "close_body"):
            await self._strike()  # the answer was shorter than ``after``
        if self._kind == "long_length":
            await self._stop_short()
        if self._framing == "chunked" and self._kind != "endless":
            await self._send(b"0\r\n\r\n" + self._forged)
        await self._finish()

    async def wait_for_client(self) -> None:
        """Do nothing until the client goes away, which cancels."""
        await asyncio.get_running_loop().create_future()

    async def _start(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        kind = self._kind
        if kind == "hang":
            await self.wait_for_client()
        if kind == "reset_head":
            await self._stop_short(reset=True)
        if kind == "close_head":
            await self._stop_short()
        if kind == "garbage_http":
            await self._send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            await self._stop_short()
        if kind == "interim":
            await self._send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n")
        if kind == "huge_headers":
            headers |= {f"x-filler-{number}": "f" * 8000 for number in range(25)}
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}", f"content-type: {content_type}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        await self._send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        self.began = True

    async def _finish(self) -> None:
        if self._kind == "endless":
            while True:
                await self._send(b"%x\r\n%b\r\n" % (len(_FILLER), _FILLER) if self._framing == "chunked" else _FILLER)
                await asyncio.sleep(0.001)
        self.complete = True
        if self._kind in ("close_delimited", "long_length", "short_length", "bad_chunk", "double_length", "close_after"):
            self._connection.close()

    async def _strike(self) -> None:
        if self._kind == "black_hole":
            await self.wait_for_client()
        await self._stop_short(reset=self._kind == "reset_body")

    async def _stop_short(self, reset: bool = False) -> None:
        """End the connection here; what should follow is never reached."""
        self.complete = True  # by our own will: the client did not leave
        self._connection.close(reset)
        await self.wait_for_client()

    async def _send(self, data: bytes) -> None:
        if self._kind in ("slow", "split") and self.fault is not None:
            for index in range(len(data)):
                await self._connection.send(data[index : index + 1])
                await asyncio.sleep(self.fault.delay_s if self._kind == "slow" else 0)
        else:
            await self._connection.send(data)
