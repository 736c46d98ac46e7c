"""A tiny HTTP server for probes: says what it is told for each path, and remembers what it was asked and sent."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from typing import Any

from hx_gateway.fleet.endpoint import Address, Endpoint


class Canned:
    """Answers requests from a table of path -> (status, body); 404 for what is not in it. One answer a connection.

    Args:
        answers: By path. A body that is no bytes is sent as JSON. Instead of both, a function of what was posted that
            returns them.
        headers: Further header lines of every answer.
        raw: Sent as it is instead of any answer.
        greeting: Sent as soon as somebody connects, and then the end.
        silent: Accept, read, and never answer.
        tls: Server side context, for https.
    """

    def __init__(
        self,
        answers: dict[str, Any] | None = None,
        *,
        headers: bytes = b"",
        raw: bytes | None = None,
        greeting: bytes | None = None,
        silent: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = answers or {}
        self.headers = headers
        self.raw = raw
        self.greeting = greeting
        self.silent = silent
        self.tls = tls
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self.posted: list[tuple[str, Any]] = []
        self.port = 0

    async def __aenter__(self) -> Canned:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.greeting is not None:
                writer.write(self.greeting)
                return
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            path = head.split(b" ")[1].decode()
            self.asked.append(path)
            sent = await reader.readexactly(_length(head))
            if sent:
                self.posted.append((path, json.loads(sent)))
            if self.silent:
                await reader.read()
            elif self.raw is not None:
                writer.write(self.raw)
            else:
                answer = self.answers.get(path, (404, {"detail": "Not Found"}))
                status, body = answer(json.loads(sent or b"null")) if callable(answer) else answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                writer.write(b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n%b" % (status, self.headers, len(data), data))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @property
    def address(self) -> Address:
        return Address("https" if self.tls else "http", "127.0.0.1", self.port)

    def endpoint(self, name: str = "canned", **options: Any) -> Endpoint:
        return Endpoint(name, self.address, **options)


def _length(head: bytes) -> int:
    """The request's ``content-length``."""
    found = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
    return int(found[1]) if found else 0


def models(*names: str, owner: str = "somebody") -> dict[str, Any]:
    """A list of models in OpenAI's shape."""
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in names]}


OLLAMA = {
    "/api/version": (200, {"version": "0.13.5"}),
    "/api/tags": (200, {"models": [{"name": "llama3.2:3b", "size": 2}, {"name": "phi3:latest"}]}),
}
