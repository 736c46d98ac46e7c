"""Bytes that follow the end of an answer reach nobody, however they come; and every client gets its own answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator

import pytest
from tests.faults.conftest import Fleet
from tests.integration.protocol.conftest import PLAIN
from tests.integration.protocol.wire import ask, events, request, texts
from tests.support.background import Background
from tests.support.gateway import GatewayProcess
from tests.support.raw import RawServer

FORGED = (
    b'{"id":"f","object":"chat.completion","model":"tiny:1b","choices":[{"index":0,"message":{"role":"assistant","content":"FORGED"}}]}'
)


def _answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Forger(RawServer):
    """A model server that answers, and then says more than it was asked, in the ways it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.way = ""
        self.asked = 0
        self.followed = 0  # answers after which more was said

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
                body = await reader.readexactly(length)
                if not head.startswith(b"POST"):
                    writer.write(_answer(b'{"data":[]}'))
                    continue
                self.asked += 1
                asked = json.loads(body)
                content = asked["messages"][0]["content"]
                writer.write(self._said(content, bool(asked.get("stream"))))
                if self.way == "later":
                    await asyncio.sleep(0.005)
                    writer.write(_answer(FORGED))
                    self.followed += 1
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def _said(self, content: str, stream: bool) -> bytes:
        base = {"id": "x", "model": "tiny:1b"}
        if stream:
            chunk = {
                **base,
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": "stop"}],
            }
            data = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode()
            whole = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
                len(data),
                data,
            )
        else:
            whole = _answer(
                json.dumps(
                    {**base, "object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
                ).encode()
            )
        if self.way == "at once":
            return whole + _answer(FORGED)
        if self.way == "half":
            return whole + _answer(FORGED)[:40]
        if self.way == "garbage":
            return whole + b"\r\n\r\n\0garbage"
        if self.way == "line end":
            return whole + b"\r\n"
        if self.way == "shorter than it says":
            return whole.replace(b"content-length: ", b"x-was: ").replace(b"\r\n\r\n", b"\r\ncontent-length: 3\r\n\r\n", 1)
        return whole


@pytest.fixture(scope="module")
def forged() -> Iterator[tuple[Forger, GatewayProcess]]:
    with Background(Forger) as forger, GatewayProcess(PLAIN.format(url=forger.url)) as gateway:
        yield forger, gateway


def said(status: bytes, body: bytes) -> str:
    """What an answer says: its text, or the status of a failure."""
    if status != b"200":
        return f"failed {status.decode()}"
    if body.startswith(b"data: "):
        found = events(body)
        return texts(found) if found[-1] == "[DONE]" else "failed later"
    return str(json.loads(body)["choices"][0]["message"]["content"])


async def many(port: int, model: str, clients: int, each: int, pause: Callable[[], Awaitable[None]] | None = None) -> list[tuple[str, str]]:
    """Clients that ask at the same time, each on one connection; pairs of what was asked and what was said.

    Between two requests each waits for ``pause``.
    """
    got: list[tuple[str, str]] = []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(each):
            asked = f"<{number}.{turn}>"
            stream = (number + turn) % 3 == 0
            writer.write(request(ask(asked, stream=stream, model=model)))
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"chunked" in head:
                body = b""
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readexactly(2)
            else:
                body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            got.append((asked, said(head[9:12], body)))
            if pause is not None:
                await pause()
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return got


@pytest.mark.parametrize("way", ["at once", "half", "garbage", "line end"])
def test_what_follows_an_answer_reaches_nobody(way: str, forged: tuple[Forger, GatewayProcess]) -> None:
    forger, gateway = forged
    forger.way = way
    got = asyncio.run(many(gateway.port, "tiny", 16, 25))
    assert len(got) == 400
    assert all(asked == answer for asked, answer in got)


def test_what_comes_while_nobody_asks_reaches_nobody(forged: tuple[Forger, GatewayProcess]) -> None:
    """A kept connection on which something arrives is closed, not used again."""
    forger, gateway = forged
    forger.way = "later"
    # One client: with two, the forged bytes can come just after the other's request went out, and then they are its answer.
    forger.asked = forger.followed = 0

    async def followed() -> None:
        """More has come on the kept connection: the gateway hears of it before it is asked again."""
        async with asyncio.timeout(30):
            while forger.followed < forger.asked:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)

    got = asyncio.run(many(gateway.port, "tiny", 1, 24, followed))
    assert len(got) == 24
    assert all(asked == answer for asked, answer in got)


def test_a_length_that_is_too_short_is_an_invalid_answer(forged: tuple[Forger, GatewayProcess]) -> None:
    forger, gateway = forged
    forger.way = "shorter than it says"
    got = asyncio.run(many(gateway.port, "tiny", 4, 6))
    assert all(answer == asked or answer in ("failed 502", "failed 503") for asked, answer in got)
    assert any(answer == "failed 502" for _, answer in got)


def test_every_client_gets_its_own_answer_among_all_faults(fleet: Fleet) -> None:
    """Faults that come and go under many clients: no answer is ever another's."""
    faults = [
        "extra_bytes",
        "close_body",
        "reset_head",
        "short_length",
        "garbage_http",
        "status status=500",
        "truncated",
        "close_after",
        "interim",
        "split",
    ]

    async def mix() -> list[tuple[str, str]]:
        asking = asyncio.gather(*(many(fleet.port, "pair", 8, 12) for _ in range(3)))
        while not asking.done():
            for fault in faults:
                await asyncio.to_thread(fleet.fail, "one", f"{fault} times=5")
                await asyncio.to_thread(fleet.fail, "two", "extra_bytes times=5")
                await asyncio.sleep(0.01)
        return [pair for pairs in asking.result() for pair in pairs]

    got = asyncio.run(mix())
    assert len(got) == 3 * 8 * 12
    assert all(answer == asked or answer.startswith("failed ") for asked, answer in got)
    assert sum(answer == asked for asked, answer in got) > len(got) / 2
