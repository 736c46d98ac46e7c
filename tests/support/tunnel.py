"""TLS in front of a server of the tests that was built without it, with a certificate of an authority of one's own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import trustme
from tests.support.background import Background

_ASK = bytes.fromhex("0000000804d2162f")
"""What a Postgres client sends to ask for TLS."""


class Authority:
    """A certificate for localhost and 127.0.0.1, and the file of the authority that signed it.

    Args:
        folder: Where the file goes.
    """

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.file = folder / "authority.pem"
        authority.cert_pem.write_to_path(self.file)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self.server)


class Tunnel:
    """A port that speaks TLS and passes everything on to another on 127.0.0.1.

    Attributes:
        port: Its TCP port.
        secured: Connections that spoke TLS.
    """

    def __init__(self, target: int, authority: Authority, postgres: bool) -> None:
        self.port = 0
        self.secured = 0
        self._target, self._authority, self._postgres = target, authority, postgres

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        onward: asyncio.StreamWriter | None = None
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            if self._postgres:
                if await reader.readexactly(8) != _ASK:
                    writer.close()
                    return
                writer.write(b"S")
            await writer.start_tls(self._authority.server)
            self.secured += 1
            answers, onward = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(_pass(reader, onward), _pass(answers, writer))
        for one in (writer, onward):
            if one is not None:
                one.close()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(OSError, RuntimeError):
        sink.close()


def tunnel(target: int, authority: Authority, postgres: bool = False) -> Background[Tunnel]:
    """TLS in front of a port of 127.0.0.1, for the length of a ``with``.

    Args:
        target: The port.
        authority: Whose certificate is shown.
        postgres: Whether clients ask for TLS in the way of Postgres.
    """

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[Tunnel]:
        made = Tunnel(target, authority, postgres)
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        yield made
        server.close()

    return Background(running)
