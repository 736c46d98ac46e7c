"""Making connections: who is told what when none can be made, in time or at all."""

from __future__ import annotations

import asyncio
import time
from math import inf
from typing import Any

import pytest
from tests.support.gateway import free_port
from tests.unit.upstream.test_connection import Recorder

from hx_gateway.core.interfaces import Outgoing
from hx_gateway.fleet.endpoint import Address, Deadlines, Endpoint
from hx_gateway.upstream.pool import Pool


def pool_to(url: str, **deadlines: float) -> Pool:
    return Pool(Endpoint("test", Address.parse(url), deadlines=Deadlines(**deadlines)))


async def told(handler: Recorder) -> list[Any]:
    while not handler.told:
        await asyncio.sleep(0.005)
    return handler.told


async def test_nobody_listens() -> None:
    pool = pool_to(f"http://127.0.0.1:{free_port()}")
    handler = Recorder()
    pool.send(Outgoing(b"/", b"{}"), handler)
    assert handler.call is not None
    assert await told(handler) == [("failed", "upstream_connect_failed")]
    assert not pool.tasks and not pool.connections


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".test", "name-that-does-not-exist.invalid"])
async def test_a_name_that_cannot_be_found(host: str) -> None:
    pool = pool_to(f"http://{host}:1")
    handler = Recorder()
    pool.send(Outgoing(b"/", b"{}"), handler)
    assert await told(handler) == [("failed", "upstream_connect_failed")]


@pytest.fixture
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are never made, as with a host that drops every packet."""

    async def never(self: Any, *args: Any, **kwargs: Any) -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", never)


async def test_the_connect_timeout(nobody_answers: None) -> None:
    pool = pool_to("http://127.0.0.1:1", connect_s=0.05)
    handler = Recorder()
    pool.send(Outgoing(b"/", b"{}"), handler)
    assert await told(handler) == [("failed", "connect_timeout")]


async def test_the_requests_own_deadline_is_not_the_servers_failure(nobody_answers: None) -> None:
    pool = pool_to("http://127.0.0.1:1", connect_s=30.0)
    for total_at_s in (time.monotonic() + 0.05, time.monotonic() - 1):
        handler = Recorder()
        pool.send(Outgoing(b"/", b"{}"), handler, total_at_s)
        assert await told(handler) == [("failed", "upstream_timeout")]


async def test_cancelled_while_connecting(nobody_answers: None) -> None:
    pool = pool_to("http://127.0.0.1:1")
    handler = Recorder()
    pool.send(Outgoing(b"/", b"{}"), handler)
    handler.call.pause()
    handler.call.resume()
    handler.call.cancel()
    while pool.tasks:
        await asyncio.sleep(0)
    assert handler.told == []


async def test_connections_are_kept_and_used_again() -> None:
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        while (await reader.readline()) != b"\r\n":
            pass
        while True:
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            while (line := await reader.readline()) != b"\r\n":
                if not line:
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        pool = pool_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        for _ in range(5):
            handler = Recorder()
            pool.send(Outgoing(b"/x", b"{}"), handler)
            assert (await told(handler))[0][0] == "answered"
        assert accepted == 1 and len(pool.idle) == 1
        both = [Recorder(), Recorder()]
        for handler in both:
            pool.send(Outgoing(b"/x", b"{}"), handler)
        for handler in both:
            await told(handler)
        assert accepted == 2 and len(pool.idle) == 2
        waiting = Recorder()
        pool.send(Outgoing(b"/x", b"{}"), waiting, inf)
        pool.close()
        assert (await told(waiting))[-1][0] in ("failed", "answered")


@pytest.mark.parametrize("begun", [False, True])
async def test_who_waits_for_a_connection_is_told_when_the_pool_closes(nobody_answers: None, begun: bool) -> None:
    pool = pool_to("http://127.0.0.1:1")
    handler, gone = Recorder(), Recorder()
    for one in (handler, gone):
        pool.send(Outgoing(b"/", b"{}"), one)
    if begun:
        await asyncio.sleep(0.01)
    gone.call.cancel()
    pool.close()
    assert await told(handler) == [("failed", "upstream_connect_failed")]
    assert not pool.tasks and gone.told == [], "who left is told nothing"
