"""A client that does not read is not read for: the model server is slowed down, and the gateway's memory stays small."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator

import pytest
from tests.integration.protocol.conftest import PLAIN
from tests.integration.protocol.wire import PING, Client, ask, request
from tests.support.background import Background
from tests.support.gateway import GatewayProcess
from tests.support.raw import RawServer

MB = 1 << 20
EVENT = b"data: " + json.dumps({"model": "tiny:1b", "choices": [{"index": 0, "delta": {"content": "x" * 32_000}}]}).encode() + b"\n\n"


class Firehose(RawServer):
    """A model server that streams for ever, as fast as it is read; counts the bytes it got rid of."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.streams = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"POST"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                writer.close()
                return
            self.streams += 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            try:
                while True:
                    writer.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
                    await writer.drain()
                    self.sent += len(EVENT)
            finally:
                self.streams -= 1
                writer.transport.abort()


@pytest.fixture
def hose() -> Iterator[tuple[Firehose, GatewayProcess]]:
    with Background(Firehose) as firehose, GatewayProcess(PLAIN.format(url=firehose.url)) as gateway:
        yield firehose, gateway


def memory(gateway: GatewayProcess) -> int:
    """Resident bytes of the gateway."""
    with open(f"/proc/{gateway.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def settled(firehose: Firehose, limit: int) -> int:
    """Bytes sent once no more are for a while."""
    before = -1
    while before != firehose.sent:
        before = firehose.sent
        assert before < limit, f"{before / MB:.0f} MB went to a client that reads nothing"
        time.sleep(0.5)
    return before


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions?cold", "/v1/forwarded"])
def test_a_stream_nobody_reads(path: str, hose: tuple[Firehose, GatewayProcess]) -> None:
    firehose, gateway = hose
    before = memory(gateway)
    with Client(gateway.port, receive_buffer=65536) as client:
        client.send(request(ask("go", stream=True), path=path))
        assert client.head()[0] == 200
        stopped = settled(firehose, 64 * MB)
        assert memory(gateway) - before < 24 * MB
        for _ in range(1500):  # about fifty megabytes: read, and it goes on
            assert client.chunk()
        assert firehose.sent > stopped + 30 * MB
        settled(firehose, firehose.sent + 64 * MB)
        assert memory(gateway) - before < 24 * MB
    give_up_s = time.monotonic() + 30
    while firehose.streams and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not firehose.streams, "the client left, and the model server was not told"


def test_answers_nobody_reads(hose: tuple[Firehose, GatewayProcess]) -> None:
    """Requests without end, answers never read: the gateway stops reading, too."""
    _, gateway = hose
    before = memory(gateway)
    flood = request(PING, key="") * 200
    limit = 48 * MB
    with Client(gateway.port, timeout_s=1.0, receive_buffer=4096) as client:
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < limit:
                sent += client.socket.send(flood)
        assert sent < limit
        assert memory(gateway) - before < 24 * MB
    with Client(gateway.port) as client:
        client.send(request(b"", method="GET", path="/healthz", length=False))
        assert client.answer().status == 200
