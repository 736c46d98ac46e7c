"""A small HTTP/1.1 server for tests: whole requests in, exactly the bytes of the answer out, on a port that can go away."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from hx_gateway.testing.reply import Answer, Received

_LARGEST_HEAD = 1024 * 1024


Application = Callable[[Received, Answer], Awaitable[None]]
"""Answers one request; cancelled when the client goes away."""


class Connection(asyncio.Protocol):
    """One client connection: requests are answered one after the other.

    Args:
        listener: Told about everything.
        number: Which connection it is, from 1.
    """

    def __init__(self, listener: Listener, number: int) -> None:
        self._listener = listener
        self._number = number
        self._buffer = bytearray()
        self._needed = 0  # bytes without which there is no point in parsing
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._listener.connections.add(self)
        if self._listener.refusing:  # was waiting in the kernel's queue when the port closed
            self.close(reset=True)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= self._needed:
            self._next()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self._transport = None
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def send(self, data: bytes) -> None:
        """Hand bytes to the kernel, waiting while the client does not read."""
        await self._writable.wait()
        if self._transport is None or self._transport.is_closing():
            await asyncio.get_running_loop().create_future()  # the loss of the connection cancels this
        else:
            self._transport.write(data)

    def close(self, reset: bool = False) -> None:
        """End the connection, in order or with a reset."""
        if self._transport is None:
            return
        if not reset:
            self._transport.close()
            return
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _next(self) -> None:
        if self._task is not None:
            return
        try:
            received = self._parsed()
        except ValueError:
            if self._transport is not None:
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            self.close()
            return
        if received is not None:
            self._task = asyncio.get_running_loop().create_task(self._answer(received))

    def _parsed(self) -> Received | None:
        """The next whole request of the buffer.

        Raises:
            ValueError: The bytes are no request.
        """
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _LARGEST_HEAD:
                raise ValueError("the head does not end")
            return None
        head = bytes(self._buffer[:end])
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, version = first.split(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError(version)
        headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(line)
            headers[name.strip().lower()] = value.strip()
        if "chunked" in headers.get("transfer-encoding", "").lower():
            unframed = _unchunked(bytes(self._buffer[end + 4 :]))
            if unframed is None:
                return None
            body, rest = unframed
        else:
            length = int(headers.get("content-length", "0"))
            self._needed = end + 4 + length
            if len(self._buffer) < self._needed:
                if headers.get("expect", "").lower() == "100-continue" and len(self._buffer) == end + 4 and self._transport is not None:
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                return None
            body, rest = bytes(self._buffer[end + 4 : self._needed]), bytes(self._buffer[self._needed :])
        self._buffer = bytearray(rest)
        self._needed = 0
        path, _, query = target.partition("?")
        return Received(head, body, method, path, query, headers, self._number, asyncio.get_running_loop().time())

    async def _answer(self, received: Received) -> None:
        answer = Answer(self, received.method == "HEAD")
        try:
            await self._listener.application(received, answer)
        except BaseException:
            self.close(reset=True)  # cancelled, or a mistake in the application: the client must not wait for ever
            raise
        finally:
            self._task = None
        if received.headers.get("connection", "").lower() == "close":
            self.close()
        self._next()


def _unchunked(data: bytes) -> tuple[bytes, bytes] | None:
    """A chunked body at the start of ``data`` and what follows it; None while it is not complete.

    Raises:
        ValueError: A chunk size is no number.
    """
    body = b""
    while True:
        size, found, rest = data.partition(b"\r\n")
        if not found:
            return None
        length = int(size.partition(b";")[0], 16)
        if length == 0:
            trailer, found, rest = rest.partition(b"\r\n")
            return (body, rest) if found and not trailer else None
        if len(rest) < length + 2:
            return None
        body += rest[:length]
        data = rest[length + 2 :]


class Listener:
    """A port and its connections; can refuse and come back on the same port.

    Args:
        application: Answers the requests.
        host: Address to listen on.
        port: TCP port; 0 takes a free one, which it keeps.
    """

    def __init__(self, application: Application, host: str = "127.0.0.1", port: int = 0) -> None:
        self.application = application
        self.host = host
        self.port = port
        self.refusing = False
        self.connections: set[Connection] = set()
        self.accepted = 0
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The port is taken.
        """
        await self._open(self._bound())

    def refuse(self) -> None:
        """Close the port and reset all connections, at once."""
        self.refusing = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.close(reset=True)

    def accept(self) -> None:
        """Listen again on the same port; clients can connect as soon as this returns."""
        if self.refusing:
            self.refusing = False
            self._opening = asyncio.get_running_loop().create_task(self._open(self._bound()))

    async def stop(self) -> None:
        """Close everything."""
        if self._opening is not None:
            await self._opening
        self.refuse()
        while self.connections:
            await asyncio.sleep(0)

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio leaves Nagle on
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((self.host, self.port))
            listening.listen(1024)
        except OSError:
            listening.close()
            raise
        self.port = listening.getsockname()[1]
        return listening

    async def _open(self, listening: socket.socket) -> None:
        server = await asyncio.get_running_loop().create_server(self._connection, sock=listening)
        if self.refusing:
            server.close()
        else:
            self._server = server

    def _connection(self) -> Connection:
        self.accepted += 1
        return Connection(self, self.accepted)
