"""One small request to a model server, for probes and placement: its own connection, hard limits, no redirects."""

from __future__ import annotations

import asyncio
import socket
import ssl

import httptools

from hx_gateway.core.interfaces import Headers
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.health.probes import FetchResult, Unreachable

TIMEOUT_S = 3.0
BODY_LIMIT = 1 << 20
_HEAD_LIMIT = 1 << 16


class _Answer:
    """Collects what the parser finds."""

    __slots__ = ("body", "complete", "headers", "length_known", "parser", "ready", "status")

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.body = bytearray()
        self.ready = False
        self.complete = False
        self.length_known = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.ready:
            name = name.lower()
            self.headers.append((name, value))
            if name in (b"content-length", b"transfer-encoding"):
                self.length_known = True

    def on_headers_complete(self) -> None:
        if not self.ready:
            self.ready = True
            self.status = self.parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if not self.complete:  # what follows a complete answer is nobody's
            self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


async def fetch(
    endpoint: Endpoint, path: str, body: bytes | None = None, *, timeout_s: float = TIMEOUT_S, limit: int = BODY_LIMIT
) -> FetchResult:
    """GET ``path`` below the endpoint's base, or POST a JSON body there, with its own header lines and credentials.

    Args:
        endpoint: The server.
        path: Absolute path, e.g. ``/v1/models``.
        body: JSON to post; None to get.
        timeout_s: Seconds for all of it: connect, TLS, answer.
        limit: Largest body in bytes.

    Raises:
        Unreachable: No whole HTTP answer came, for the reason given.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(endpoint, path, body, limit)
    except TimeoutError:
        raise Unreachable(f"no answer within {timeout_s:g} s") from None
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(f"its certificate is not accepted: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise Unreachable(f"TLS failed: {error.reason or 'no reason given'}") from None
    except ConnectionRefusedError:
        raise Unreachable("the connection was refused; nothing listens there") from None
    except OSError as error:
        # The text of most OS errors holds the address, which not everyone who reads this may see.
        reason = "its name cannot be resolved" if isinstance(error, socket.gaierror) else type(error).__name__
        raise Unreachable(f"no connection: {reason}") from None
    except httptools.HttpParserError:
        raise Unreachable("the answer is not valid HTTP") from None


async def _ask(endpoint: Endpoint, path: str, body: bytes | None, limit: int) -> FetchResult:
    address = endpoint.address
    context = (endpoint.tls or ssl.create_default_context()) if address.scheme == "https" else None
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context, limit=_HEAD_LIMIT)
    try:
        target = (address.base + path).encode("latin-1", "replace")
        method, rest = b"GET", b""
        if body is not None:
            method, rest = b"POST", b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        lines = b"accept: application/json\r\nconnection: close\r\n"
        writer.write(b"%b %b HTTP/1.1\r\n%b%b%b\r\n%b" % (method, target, endpoint.head, lines, rest, body or b""))
        answer = _Answer()
        received = 0
        while not answer.complete:
            data = await reader.read(_HEAD_LIMIT)
            if not data:
                if answer.ready and not answer.length_known:
                    break  # the end of the connection is the end of the body
                raise Unreachable("the connection was closed before the answer was complete")
            received += len(data)
            if received > limit + _HEAD_LIMIT or len(answer.body) > limit:
                raise Unreachable(f"the answer is larger than {limit} bytes")
            try:
                answer.parser.feed_data(data)
            except httptools.HttpParserError:
                if not answer.complete:  # what follows a complete answer is nobody's
                    raise
        return FetchResult(answer.status, answer.headers, bytes(answer.body))
    finally:
        # abort: a close would wait for the farewell of a TLS peer that may never come
        writer.transport.abort()
