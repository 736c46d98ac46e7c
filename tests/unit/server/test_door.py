"""The door without sockets: what it remembers of heads changes nothing, splits change nothing, deadlines and pauses do their work."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.integration.protocol.mutation import mutant
from tests.integration.protocol.wire import PING, request
from tests.unit.server.fakes import FakeTransport

from hx_gateway.core.context import Exchange
from hx_gateway.server import door as door_module
from hx_gateway.server.door import Door
from hx_gateway.server.hall import Hall


class FakeCold:
    """Stands for the control app: answers a moment later."""

    seen: list[Any]

    def __init__(self, door: Any, request: Any, done: Any) -> None:
        door.hall.log.append((request.method, request.target, tuple(request.headers), b"".join(request.pieces)))
        self.cycle = SimpleNamespace(keep_alive=request.keep_alive)
        self.flow = SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None)
        asyncio.get_running_loop().call_soon(self._answer, door, done)

    def _answer(self, door: Any, done: Any) -> None:
        if not door.transport.is_closing():
            door.transport.write(b"<cold>")
            done()

    def disconnected(self) -> None:
        """Nothing waits for that."""


class LoggingHall(Hall):
    """A hall that writes down every exchange and answers it at once, or keeps it."""

    def __init__(self, keep: bool = False, **limits: Any) -> None:
        numbers = iter(range(1 << 30))
        super().__init__(self.take, lambda: str(next(numbers)), **limits)
        self.log: list[Any] = []
        self.kept: list[Exchange] = []
        self.keep = keep
        self.date = b""

    def take(self, exchange: Exchange) -> None:
        """Note what the data plane would get."""
        notes = tuple(sorted(exchange.notes.items()))
        self.log.append((exchange.route.name, exchange.target, notes, b"".join(exchange.forward), exchange.body))
        if self.keep:
            self.kept.append(exchange)
        else:
            exchange.client.respond(exchange, 200, b"", b"ok")


def opened(hall: Hall) -> tuple[Any, FakeTransport]:
    transport = FakeTransport()
    state = SimpleNamespace(connections=set(), tasks=set(), total_requests=0, default_headers=[])
    door: Any = Door(SimpleNamespace(), state, {}, hall=hall)  # type: ignore[arg-type]
    door.connection_made(transport)
    return door, transport


async def play(pieces: list[bytes]) -> list[Any]:
    """What reaches the data plane and the control app of these reads on one connection."""
    hall = LoggingHall()
    door, transport = opened(hall)
    for piece in pieces:
        if piece and not transport.closing and not transport.ended:
            door.data_received(piece)
            await settled(door)
    return hall.log


async def settled(door: Any) -> None:
    """Let everything happen that is due."""
    while door.cold is not None or door.waiting:
        await asyncio.sleep(0)


_token = st.sampled_from(
    ["x-a", "X-B", "user-agent", "Accept", "traceparent", "x-request-id", "x-hx-tags", "cookie", "connection", "content-type"]
)
_value = st.sampled_from(["1", "keep-alive", "a b", "text/html; q=0.5", "", "x-a", "\xe9"])
_heads = st.lists(st.tuples(_token, _value), max_size=4, unique_by=lambda pair: pair[0].lower())
_bodies = st.one_of(st.just(PING), st.binary(max_size=40), st.just(b""))
_requests = st.tuples(
    st.sampled_from(["/v1/chat/completions", "/v1/embeddings", "/chat/completions"]),
    _heads,
    _bodies,
    st.sampled_from(["content-length", "Content-Length", "CONTENT-LENGTH", "chunked"]),
    st.sampled_from(["HTTP/1.1"] * 9 + ["HTTP/1.0"]),
)


def written(parts: tuple[str, list[tuple[str, str]], bytes, str, str]) -> bytes:
    path, head, body, framing, version = parts
    lines = [f"{name}: {value}" for name, value in head]
    if framing == "chunked":
        lines.insert(len(lines) // 2, "transfer-encoding: chunked")
        framed = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        lines.insert(len(lines) // 2, f"{framing}: {len(body)}")
        framed = body
    return "".join(f"{line}\r\n" for line in (f"POST {path} {version}", "Host: a", *lines)).encode("latin-1") + b"\r\n" + framed


@settings(max_examples=300)
@given(st.lists(_requests, min_size=1, max_size=4), st.data())
def test_what_is_remembered_of_heads_changes_nothing(made: list[Any], data: st.DataObject) -> None:
    """Heads that come again, whole, take a short way; cut anywhere, they take the parser: the data plane sees the same."""
    chosen = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=8))
    sent = [written(parts) for parts in chosen]
    stream = b"".join(sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    async def compare() -> None:
        whole = await play(sent)
        assert whole == await play(pieces)
        assert whole == await play([stream])
        assert whole == await play([stream[at : at + 1] for at in range(len(stream))])

    original, door_module.Cold = door_module.Cold, FakeCold  # type: ignore[misc,assignment]
    try:
        asyncio.run(compare())
    finally:
        door_module.Cold = original  # type: ignore[misc]


_values = st.sampled_from(["1", "22", "a b", "0" * 40, " a", "b ", "\xe9", "", "keep-alive", "keep-alive, x-a"])


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["x-a", "traceparent", "x-request-id", "cookie", "authorization", "proxy-connection", "connection"]), min_size=1, max_size=4, unique=True),
    st.data(),
)  # fmt: skip
def test_values_that_differ_arrive_as_they_came(names: list[str], data: st.DataObject) -> None:
    """Heads of one shape, whose values differ from request to request: the short way is taken, and the data plane sees the same."""
    sent = [
        written(("/v1/embeddings", [(name, data.draw(_values)) for name in names], data.draw(_bodies), "content-length", "HTTP/1.1"))
        for _ in range(data.draw(st.integers(3, 8)))
    ]
    stream = b"".join(sent)

    async def compare() -> None:
        whole = await play(sent)
        assert whole == await play([stream[at : at + 1] for at in range(len(stream))])
        assert whole == await play([stream])

    asyncio.run(compare())


def test_mutated_requests_mean_the_same_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Good heads first, so that one is remembered, then bad ones that look like it."""
    monkeypatch.setattr(door_module, "Cold", FakeCold)

    async def compare(seed: int) -> None:
        dice = random.Random(seed)
        good, again = request(PING, "x-case: 1"), request(PING[:-1] + b" }", "x-case: 2")
        bad = mutant(seed, dice) if seed % 2 else bytes(good[:-1]) + mutant(seed, dice)
        sent = [good, good, again, request(PING, "x-case: 3"), bad, good]
        stream = b"".join(sent)
        one_by_one = await play([stream[at : at + 1] for at in range(len(stream))])
        cut = sorted(dice.randrange(len(stream)) for _ in range(6))
        assert await play([stream[start:end] for start, end in zip([0, *cut], [*cut, len(stream)], strict=True)]) == one_by_one
        assert await play(sent) == one_by_one
        assert await play([stream]) == one_by_one

    async def all_of_them() -> None:
        for seed in range(600):
            await compare(seed)

    asyncio.run(all_of_them())


async def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would prove nothing of it."""
    hall = LoggingHall()
    door, _ = opened(hall)
    for number in "12":
        door.data_received(request(PING, f"x-a: {number}", f"x-request-id: id-{number}", "cookie: x"))
    monkeypatch.setattr(Door, "parse", None)
    door.data_received(request(PING + b"  ", "x-a: 3", "x-request-id: id-3", "cookie: x"))
    door.data_received(request(PING, "x-a: 4", "x-request-id: id-3", "cookie: x"))
    assert [entry[4] for entry in hall.log] == [PING, PING, PING + b"  ", PING]
    assert [dict(entry[2])[b"x-request-id"] for entry in hall.log] == [b"id-1", b"id-2", b"id-3", b"id-3"]
    assert [entry[3][-8:] for entry in hall.log] == [b"x-a: %d\r\n" % number for number in (1, 2, 3, 4)]


async def test_a_head_is_remembered_over_requests_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "Cold", FakeCold)
    hall = LoggingHall()
    door, _ = opened(hall)
    door.data_received(request())
    door.data_received(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    await settled(door)
    monkeypatch.setattr(Door, "parse", None)
    door.data_received(request(b"{}"))
    assert [entry[-1] for entry in hall.log] == [PING, b"", b"{}"]


async def test_a_remembered_head_does_not_lift_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = LoggingHall(max_head=600, max_body=100)
    for last, answer in (
        (request(b"x" * 101, "x-a: 3"), b"413"),
        (request(b"{}", "x-a: " + "3" * 600), b"431"),
        (request(b"{}", "x-a: 3"), b"200"),
    ):
        door, transport = opened(hall)
        door.data_received(request(b"{}", "x-a: 1"))
        door.data_received(request(b"{}", "x-a: 2"))
        transport.written = b""
        door.data_received(last)
        assert transport.written[9:12] == answer


async def test_pipelined_requests_wait_their_turn_and_the_client_is_not_read_meanwhile() -> None:
    hall = LoggingHall(keep=True)
    door, transport = opened(hall)
    door.data_received(request() * 3)
    assert len(hall.kept) == 1 and not transport.reading
    for number in range(3):
        exchange = hall.kept[number]
        exchange.client.respond(exchange, 200, b"", b"ok")
        await asyncio.sleep(0)
    assert len(hall.kept) == 3 and transport.reading
    assert transport.written.count(b"HTTP/1.1 200") == 3


async def test_nothing_is_asked_for_a_client_that_was_told_goodbye() -> None:
    """What stands behind a last request in the same read is not worked on: its answer could reach nobody."""
    hall = LoggingHall()
    door, transport = opened(hall)
    door.data_received(request(PING, "connection: keep-alive", version="HTTP/1.0") + request())
    assert len(hall.log) == 1 and transport.closing
    assert transport.written.count(b"HTTP/1.1 200") == 1


async def test_a_client_that_does_not_read_gets_nothing_more() -> None:
    hall = LoggingHall()
    door, transport = opened(hall)
    door.pause_writing()
    door.data_received(request())
    door.data_received(request() + request()[:30])
    await asyncio.sleep(0)
    assert hall.log == [] and not transport.reading
    door.resume_writing()
    for _ in range(8):
        await asyncio.sleep(0)
    assert len(hall.log) == 2 and transport.reading


async def test_a_pause_reaches_the_owner_and_a_stall_ends_the_connection() -> None:
    hall = LoggingHall(keep=True)
    door, transport = opened(hall)
    door.data_received(request())
    told: list[str] = []
    exchange = hall.kept[0]
    exchange.owner = SimpleNamespace(
        pause=lambda: told.append("pause"), resume=lambda: told.append("resume"), client_gone=lambda: told.append("gone")
    )  # type: ignore[assignment]
    exchange.client.begin(exchange, 200, b"")
    door.pause_writing()
    door.resume_writing()
    door.pause_writing()
    assert told == ["pause", "resume", "pause"]
    hall.sweep([door], door.deadline_s)
    assert transport.aborted
    door.connection_lost(None)
    assert told[-1] == "gone"


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        (b"", b""),
        (b"POST /v1/chat", b"408"),
        (request()[:-1], b"408"),
        (request(b"", "content-length: 99999999", length=False), b"413"),
        (b"x", b"400"),
    ],
)
async def test_deadlines(first: bytes, answer: bytes) -> None:
    hall = LoggingHall()
    door, transport = opened(hall)
    if first:
        door.data_received(first)
    assert door.deadline_s < float("inf")
    hall.sweep([door], door.deadline_s - 0.001)
    assert not transport.closing
    hall.sweep([door], door.deadline_s)
    assert transport.written[9:12] == answer
    assert transport.closing if not answer else transport.ended or transport.closing
    if not transport.closing:
        hall.sweep([door], door.deadline_s)
        assert transport.aborted, "a client that never closes is not waited for"


async def test_a_client_that_leaves_is_reported_once_and_later_words_are_dropped() -> None:
    hall = LoggingHall(keep=True)
    door, transport = opened(hall)
    door.data_received(request())
    exchange = hall.kept[0]
    told: list[str] = []
    exchange.owner = SimpleNamespace(client_gone=lambda: told.append("gone"))  # type: ignore[assignment]
    door.connection_lost(None)
    assert told == ["gone"]
    exchange.client.respond(exchange, 200, b"", b"late")
    exchange.client.write(b"late")
    exchange.client.end(b"late")
    assert transport.written == b""


async def test_a_large_answer_and_an_empty_one() -> None:
    hall = LoggingHall(keep=True)
    door, transport = opened(hall)
    for body in (b"", b"x" * 200_000):
        door.data_received(request())
        exchange = hall.kept[-1]
        exchange.client.respond(exchange, 200, b"x-a: b\r\n", body)
        assert transport.written.endswith(b"x-a: b\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


async def test_an_answer_with_a_status_nobody_has_named() -> None:
    hall = LoggingHall(keep=True)
    door, transport = opened(hall)
    door.data_received(request())
    exchange = hall.kept[-1]
    exchange.client.respond(exchange, 599, b"", b"")
    assert transport.written.startswith(b"HTTP/1.1 599 \r\n")


async def test_drain() -> None:
    hall = LoggingHall(keep=True)
    idle, idle_transport = opened(hall)
    idle.shutdown()
    assert idle_transport.closing
    busy, transport = opened(hall)
    busy.data_received(request())
    busy.shutdown()
    assert not transport.closing
    exchange = hall.kept[0]
    exchange.client.respond(exchange, 200, b"", b"last")
    assert b"connection: close" in transport.written and transport.closing


def test_header_names_are_remembered_up_to_a_bound() -> None:
    hall = LoggingHall()
    for number in range(10_000):
        hall.learn(b"x-%d" % number)
    assert len(hall.names) <= 4096
