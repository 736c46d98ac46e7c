"""The bridge between the data plane's callbacks and ASGI: order, back-pressure, clients that leave, answers that break."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.control.house import House, fleet

from hx_gateway.control.app import create_app
from hx_gateway.control.bridge import AsgiClientSide
from hx_gateway.core.context import FORWARD, Exchange

Message = dict[str, Any]


class Owner:
    """Whoever works on the exchange; writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gone = asyncio.Event()
        self.resumed = asyncio.Event()

    def client_gone(self) -> None:
        self.told.append("gone")
        self.gone.set()

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")
        self.resumed.set()


class Wire:
    """The server's side of ASGI: collects messages, may be slow, may be left by the client."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.open = asyncio.Event()
        self.open.set()
        self.left = asyncio.Event()
        self.request = True

    async def receive(self) -> Message:
        if self.request:
            self.request = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.open.wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def complete(self) -> bool:
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")


def exchange_for(client: AsgiClientSide, owner: Owner) -> Exchange:
    exchange = Exchange("01TEST", FORWARD, b"POST", b"/v1/x", {}, [], b"", client, 0.0)
    exchange.owner = owner
    return exchange


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


async def begin(client: AsgiClientSide, owner: Owner, wire: Wire) -> tuple[Exchange, asyncio.Task[None]]:
    exchange = exchange_for(client, owner)
    task = asyncio.create_task(client.run(exchange, lambda _: None, wire.receive, wire.send))
    await asyncio.sleep(0)
    return exchange, task


async def test_pieces_come_out_in_order_as_they_are_written() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    client.begin(exchange, 200, b"content-type: text/event-stream\r\nX-Two: a: b\r\n")
    client.write(b"data: 1\n\n")
    await until(lambda: wire.body == b"data: 1\n\n")
    assert not wire.complete  # sent at once, not collected
    assert wire.sent[0]["headers"] == [(b"content-type", b"text/event-stream"), (b"x-two", b"a: b")]
    client.write(b"")
    client.write(b"data: 2\n\n")
    client.end(b"data: [DONE]\n\n")
    await task
    assert wire.body == b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n" and wire.complete
    assert owner.told == []


async def test_a_whole_answer_carries_its_length() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    client.respond(exchange, 200, b"a: b\r\n", b"12345")
    await task
    assert (b"content-length", b"5") in wire.sent[0]["headers"] and wire.complete


async def test_a_slow_reader_pauses_the_owner_until_it_caught_up() -> None:
    client, owner, wire = AsgiClientSide(high_water=100, low_water=20), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    wire.open.clear()
    client.begin(exchange, 200, b"")
    for _ in range(10):
        client.write(b"x" * 10)
    assert owner.told == []
    client.write(b"x")
    client.write(b"x")
    assert owner.told == ["pause"]
    await asyncio.sleep(0)
    assert owner.told == ["pause"]
    wire.open.set()
    await owner.resumed.wait()
    assert len(wire.body) >= 82
    client.end()
    await task
    assert owner.told == ["pause", "resume"] and wire.body == b"x" * 102


@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_is_told_to_the_owner_at_once(begun: bool) -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    if begun:
        client.begin(exchange, 200, b"")
        client.write(b"x")
        await until(lambda: wire.body == b"x")
    wire.left.set()
    await owner.gone.wait()
    await task
    assert owner.told == ["gone"]
    client.write(b"late")
    client.end()
    assert b"late" not in wire.body


async def test_a_client_that_leaves_while_a_send_is_stuck_is_noticed() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    wire.open.clear()
    client.begin(exchange, 200, b"")
    client.write(b"x")
    await asyncio.sleep(0)
    wire.left.set()
    await owner.gone.wait()
    wire.open.set()
    await task
    assert owner.told == ["gone"]


async def test_a_client_that_leaves_after_the_last_word_is_nobodys_business() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    wire.open.clear()
    client.respond(exchange, 200, b"", b"whole")
    await asyncio.sleep(0)
    wire.left.set()
    wire.open.set()
    await task
    assert owner.told == []


async def test_a_send_that_fails_means_the_client_left() -> None:
    client, owner = AsgiClientSide(), Owner()

    async def send(message: Message) -> None:
        raise BrokenPipeError

    exchange = exchange_for(client, owner)
    task = asyncio.create_task(client.run(exchange, lambda _: None, Wire().receive, send))
    client.begin(exchange, 200, b"")
    await task
    assert owner.told == ["gone"]


async def test_a_server_that_shuts_down_ends_the_work() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    _, task = await begin(client, owner, wire)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert owner.told == ["gone"]


async def test_an_aborted_answer_is_never_completed() -> None:
    client, owner, wire = AsgiClientSide(), Owner(), Wire()
    exchange, task = await begin(client, owner, wire)
    client.begin(exchange, 200, b"")
    client.write(b"half")
    await until(lambda: wire.body == b"half")
    client.abort()
    await task
    assert not wire.complete and owner.told == []


async def run_app(house: House, wire: Wire, path: str = "/v1/stream") -> asyncio.Task[None]:
    app = create_app(house)
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "headers": [], "scheme": "http", "root_path": "", "server": ("gateway", 80), "client": ("127.0.0.1", 1),
    }  # fmt: skip
    task: asyncio.Task[None] = asyncio.ensure_future(app(scope, wire.receive, wire.send))  # type: ignore[arg-type]
    await until(lambda: bool(house.exchanges))
    return task


async def test_through_the_whole_app_a_stream_flows_and_breaks_visibly() -> None:
    house, wire = House(registry=fleet(forward=True), script=lambda exchange: None), Wire()
    task = await run_app(house, wire)
    exchange = house.exchanges[0]
    exchange.client.begin(exchange, 200, b"content-type: text/plain\r\n")
    exchange.client.write(b"a")
    await until(lambda: wire.body == b"a")
    exchange.client.abort()
    await task
    assert not wire.complete


async def test_through_the_whole_app_a_leaving_client_reaches_the_data_plane() -> None:
    owner = Owner()

    def own(exchange: Exchange) -> None:
        exchange.owner = owner

    house, wire = House(registry=fleet(forward=True), script=own), Wire()
    task = await run_app(house, wire)
    wire.left.set()
    await owner.gone.wait()
    await task
    assert wire.sent == []


async def test_an_answer_broken_off_before_it_began_becomes_an_error() -> None:
    house, wire = House(registry=fleet(forward=True), script=lambda exchange: exchange.client.abort()), Wire()
    await (await run_app(house, wire))
    assert wire.sent[0]["status"] == 500 and b"internal_error" in wire.body and wire.complete
