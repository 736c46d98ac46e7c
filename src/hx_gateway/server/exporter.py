"""The metrics on a port of their own, for a Prometheus that must not reach the API: one small answer a connection, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from importlib.metadata import version

from hx_gateway.core.errors import METHOD_NOT_ALLOWED, NOT_FOUND, ErrorKind, error_body
from hx_gateway.gateway import Gateway
from hx_gateway.housekeeping import read_state
from hx_gateway.telemetry.exposition import Report

_PATIENCE_S = 10.0  # for a request and its answer together
_MOST = 16  # connections at once
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed"}
_log = logging.getLogger(__name__)


class Exporter:
    """Serves the report of all workers on ``monitoring.prometheus_port``.

    Every worker listens, so that one that dies leaves it served.

    Args:
        gateway: The gateway.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._report = Report(gateway, version("hx-gateway"), lambda: read_state(gateway.backing.folder))
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> None:
        """Listen, if a port is configured; one that cannot be had is said, and the main port serves the metrics alone."""
        config = self._gateway.config
        port = config.monitoring.prometheus_port
        if port is None:
            return
        try:
            self._server = await asyncio.start_server(self._answer, config.service.host, port, limit=8192, reuse_port=True)
        except OSError as error:
            _log.error(
                "port %d (monitoring.prometheus_port) cannot be opened: %s; the metrics are at %s of the main port only. Choose another, or leave it out",
                port,
                error.strerror or error,
                config.monitoring.metrics_endpoint,
            )

    async def stop(self) -> None:
        """Listen no longer."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _MOST:
                async with asyncio.timeout(_PATIENCE_S):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    writer.write(await self._made(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # who asks this way gets nothing
        except Exception:  # blame: the gateway's own; the next scrape is another matter
            _log.exception("the metrics could not be told")
        finally:
            self._open -= 1
            with contextlib.suppress(OSError):
                writer.close()

    async def _made(self, head: str) -> bytes:
        """The whole answer to a request."""
        line, _, lines = head.partition("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if path != self._gateway.config.monitoring.metrics_endpoint:
            return _refusal(NOT_FOUND, f"only {self._gateway.config.monitoring.metrics_endpoint} is served on this port")
        if method not in ("GET", "HEAD"):
            return _refusal(METHOD_NOT_ALLOWED, "use GET")
        accept = next(
            (value.strip() for name, _, value in (one.partition(":") for one in lines.split("\r\n")) if name.lower() == "accept"), ""
        )
        body, kind = await self._report.served(accept)
        return _whole(200, kind, body if method == "GET" else b"", len(body))


def _refusal(kind: ErrorKind, message: str) -> bytes:
    body = error_body(kind, message)
    return _whole(kind.status, "application/json", body, len(body))


def _whole(status: int, kind: str, body: bytes, length: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n".encode()
        + body
    )
