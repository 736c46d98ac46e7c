"""A connection to a model server without a socket: whatever way an answer is cut, the handler hears the same, and nothing else."""

from __future__ import annotations

import itertools
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.fakes import FakeTransport

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind
from hx_gateway.core.interfaces import Headers, Outgoing
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.upstream.connection import CLOSED, IDLE, Connection
from hx_gateway.upstream.pool import Pool


class Recorder:
    """A call's handler that writes down what it is told (`core.interfaces.CallHandler`)."""

    def __init__(self, streams: bool = True) -> None:
        self.call: Any = None
        self.streams = streams
        self.told: list[Any] = []

    def answered(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        # Where a head comes again, its length is the body's; the header itself is not read again, and nobody reads it.
        self.told.append(("answered", status, tuple(pair for pair in headers if pair[0] != b"content-length"), body))

    def began(self, status: int, headers: Headers) -> bool:
        """A head."""
        self.told.append(("began", status, tuple(headers)))
        return self.streams and status == 200

    def received(self, data: bytes) -> None:
        """A piece; pieces are joined, their cuts mean nothing."""
        assert data
        if self.told[-1][0] == "received":
            data = self.told.pop()[1] + data
        self.told.append(("received", data))

    def ended(self) -> None:
        """The end."""
        self.told.append(("ended",))

    def failed(self, kind: ErrorKind, message: str) -> None:
        """A failure."""
        assert message
        self.told.append(("failed", kind.code))


class LonelyPool(Pool):
    """A pool that makes no connections, but remembers who would have needed one."""

    def __init__(self) -> None:
        super().__init__(Endpoint("test", Address.parse("http://127.0.0.1:9")))
        self.wanted: list[tuple[Outgoing, Any]] = []

    def again(self, outgoing: Outgoing, handler: Any, total_at_s: float, first_byte_s: float = 0.0) -> None:
        """Remember it."""
        self.wanted.append((outgoing, handler))

    def rest(self, connection: Connection) -> None:
        """Remember it; the test wakes it."""
        self.resting.append(connection)


def connected() -> tuple[LonelyPool, Connection, FakeTransport]:
    pool = LonelyPool()
    connection = Connection(pool)
    transport = FakeTransport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    pool.connections.add(connection)
    return pool, connection, transport


def asked(connection: Connection, stream: bool = False, total_at_s: float = inf, method: bytes = b"POST") -> Recorder:
    handler = Recorder()
    connection.start(Outgoing(b"/v1/chat/completions", b"{}", stream, method), handler, 30.0, total_at_s)
    return handler


def head(*lines: str, status: str = "200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, "")).encode()


WHOLE = head("content-type: application/json", "content-length: 5") + b"hello"
OTHER = head("content-type: application/json", "content-length: 3") + b"abc"
CHUNKS = head("transfer-encoding: chunked", "content-type: text/event-stream") + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\ntrailer: x\r\n\r\n"
INTERIM = head(status="100 Continue") + head("link: <x>", status="103 Early Hints")
EMPTY = head(status="204 No Content")
ERROR = head("content-length: 2", "retry-after: 1", status="503 Service Unavailable") + b"no"

MARKED = [
    head("date: Sat, 21 Nov 2026", f"X-Request-Id: {mark}", "content-length: 5", f"content-type: {kind}") + b"hello"
    for mark, kind in (
        ("1", "a/b"),
        ("2", "a/b"),
        ("33", "text/plain; charset=utf-8"),
        ("4 4", "a/b"),
        (" 5", "a/b"),
        ("", "a/b"),
        ("\xe9", "a/b"),
    )
]
UNCHANGED = head("content-length: 0", status="304 Not Modified")

ANSWERS = st.sampled_from(
    [*MARKED, *MARKED[:4], WHOLE, WHOLE, OTHER, CHUNKS, UNCHANGED, INTERIM + WHOLE, EMPTY, ERROR, head("Content-Length: 0")]
)


def settle(pool: LonelyPool) -> None:
    """End all rests."""
    resting, pool.resting = pool.resting, []
    for connection in resting:
        connection.wake()


def hear(answers: list[bytes], streams: list[bool], cuts: list[float] | None) -> list[Any]:
    """What handlers are told of these answers, one after the other on one connection."""
    pool, connection, transport = connected()
    told: list[Any] = []
    for answer, stream in zip(answers, streams, strict=True):
        handler = asked(connection, stream)
        at = [0, *sorted(round(cut * len(answer)) for cut in cuts or ()), len(answer)]
        for start, end in itertools.pairwise(at):
            if start < end:
                settle(pool)
                assert transport.reading
                connection.data_received(answer[start:end])
        assert handler.call is None
        assert connection.phase is IDLE and pool.idle.pop() is connection
        told.append(handler.told)
    assert not transport.closing
    return told


@settings(max_examples=200)
@given(st.lists(st.tuples(ANSWERS, st.booleans()), min_size=1, max_size=6), st.lists(st.floats(0, 1), max_size=8))
def test_cuts_mean_nothing(answers: list[tuple[bytes, bool]], cuts: list[float]) -> None:
    said, streams = [answer for answer, _ in answers], [stream for _, stream in answers]
    whole = hear(said, streams, None)
    assert hear(said, streams, cuts) == whole
    assert hear(said, streams, [at / 200 for at in range(200)]) == whole


def test_the_short_way_for_heads_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, connection, _ = connected()
    asked(connection)
    connection.data_received(WHOLE)
    pool.idle.pop()
    handler = asked(connection)
    parser, connection.parser = connection.parser, None
    connection.data_received(OTHER)
    connection.parser = parser
    assert handler.told == [("answered", 200, ((b"content-type", b"application/json"),), b"abc")]
    for answer in MARKED[:2]:
        asked(connection)
        connection.data_received(answer)
        pool.idle.pop()
    connection.parser = None  # type: ignore[assignment]
    handler = asked(connection)
    connection.data_received(MARKED[1].replace(b"d: 2", b"d: 3 3"))
    assert handler.told == [
        ("answered", 200, ((b"date", b"Sat, 21 Nov 2026"), (b"x-request-id", b"3 3"), (b"content-type", b"a/b")), b"hello")
    ]


def test_an_answer_without_a_body_leaves_nothing_behind_that_would_take_one() -> None:
    """An answer 304 has no body, whatever its head says: bytes behind it belong to nobody."""
    pool, connection, transport = connected()
    asked(connection)
    connection.data_received(UNCHANGED)
    pool.idle.pop()
    handler = asked(connection)
    connection.data_received(UNCHANGED.replace(b": 0", b": 5") + b"hello")
    assert handler.told == [("answered", 304, (), b"")] and transport.closing


@pytest.mark.parametrize("extra", [WHOLE, b"x", b"\r\n", b"HTTP/1.1 ", head("content-length: 5") + b"he", b"\0\0"])
@pytest.mark.parametrize("answer", [WHOLE, CHUNKS, ERROR])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("primed", [False, True])
def test_extra_bytes_reach_nobody_and_the_connection_is_not_kept(answer: bytes, extra: bytes, stream: bool, primed: bool) -> None:
    pool, connection, transport = connected()
    if primed:
        asked(connection)
        connection.data_received(WHOLE)
        pool.idle.pop()
    handler = asked(connection, stream)
    connection.data_received(answer + extra)
    body = b"no" if answer is ERROR else b"hello"
    assert handler.told[-1] == ("ended",) or handler.told[-1][0] == "answered"
    assert handler.told[-1][-1] == body or handler.told[-2] == ("received", body)
    if extra != b"\r\n":  # which every parser skips before a message
        assert connection.phase is CLOSED and transport.aborted and not pool.idle


def test_bytes_that_come_while_nobody_asks_close_the_connection() -> None:
    pool, connection, transport = connected()
    handler = asked(connection)
    connection.data_received(WHOLE)
    before = list(handler.told)
    connection.data_received(WHOLE)
    assert handler.told == before
    assert connection.phase is CLOSED and transport.aborted
    late = Recorder()
    pool.send(Outgoing(b"/", b""), late)
    assert [handler for _, handler in pool.wanted] == [late], "a closed connection was used again"


def test_an_answer_that_says_close_is_the_last() -> None:
    pool, connection, _transport = connected()
    asked(connection)
    connection.data_received(head("content-length: 5", "connection: close") + b"hello")
    assert connection.phase is CLOSED and not pool.idle


def test_a_connection_lost_with_no_word_is_tried_once_more_if_it_was_kept() -> None:
    pool, connection, _ = connected()
    asked(connection)
    connection.data_received(WHOLE)
    pool.idle.pop()
    handler = asked(connection)
    connection.connection_lost(ConnectionResetError())
    assert handler.told == []
    assert [(outgoing.body, who) for outgoing, who in pool.wanted] == [(b"{}", handler)]


def test_a_new_connection_lost_with_no_word_is_a_failure() -> None:
    pool, connection, _ = connected()
    handler = asked(connection)
    connection.connection_lost(None)
    assert handler.told == [("failed", "upstream_reset")] and not pool.wanted


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 200 OK\r\n", WHOLE[:-1], INTERIM])
def test_once_a_byte_came_nothing_is_asked_twice(said: bytes) -> None:
    pool, connection, _ = connected()
    asked(connection)
    connection.data_received(WHOLE)
    pool.idle.pop()
    handler = asked(connection)
    connection.data_received(said)
    connection.connection_lost(None)
    assert handler.told == [("failed", "upstream_reset")] and not pool.wanted


def test_a_body_that_ends_with_the_connection() -> None:
    _, connection, _ = connected()
    handler = asked(connection)
    connection.data_received(head("content-type: text/plain") + b"hel")
    connection.data_received(b"lo")
    connection.connection_lost(None)
    assert handler.told == [("answered", 200, ((b"content-type", b"text/plain"),), b"hello")]
    _, connection, _ = connected()
    handler = asked(connection)
    connection.data_received(head("content-type: text/plain") + b"hel")
    connection.connection_lost(ConnectionResetError())
    assert handler.told == [("failed", "upstream_reset")]


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01garbage\r\n\r\n", head("content-length: 5", "content-length: 6") + b"hello", head("content-length: 5", "transfer-encoding: chunked"),
        head("transfer-encoding: chunked") + b"zz\r\n", head("content-length: -1"), head("content-encoding: gzip", "content-length: 1") + b"x",
        b"HTTP/1.1 200 OK\r\nx: y\nz: 1\r\n\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_fails_and_closes(said: bytes, stream: bool) -> None:
    pool, connection, transport = connected()
    handler = asked(connection, stream)
    connection.data_received(said)
    assert handler.told[-1] == ("failed", "bad_upstream_response")
    assert transport.aborted and not pool.idle


def test_an_answer_to_head_has_no_body() -> None:
    _, connection, _ = connected()
    handler = asked(connection, stream=True, method=b"HEAD")
    connection.data_received(head("content-length: 5"))
    assert handler.told[-1] == ("ended",)


def test_heads_and_bodies_have_a_limit() -> None:
    pool, connection, _ = connected()
    handler = asked(connection)
    for _ in range(400):
        if handler.told:
            break
        connection.data_received(b"HTTP/1.1 200 OK\r\n" if not connection.body_size else b"x: " + b"y" * 1000 + b"\r\n")
    assert handler.told == [("failed", "bad_upstream_response")]
    pool, connection, _ = connected()
    pool.max_body = 100
    for answer in (head("content-length: 101") + b"x" * 101, head("transfer-encoding: chunked") + b"65\r\n" + b"x" * 101):
        pool, connection, _ = connected()
        pool.max_body = 100
        handler = asked(connection)
        connection.data_received(answer)
        assert handler.told == [("failed", "bad_upstream_response")]


def test_the_remembered_head_does_not_lift_the_limit_of_bodies() -> None:
    pool, connection, _ = connected()
    pool.max_body = 10
    asked(connection)
    connection.data_received(WHOLE)
    pool.idle.pop()
    handler = asked(connection)
    connection.data_received(WHOLE.replace(b"5", b"11").replace(b"hello", b"hello world"))
    assert handler.told == [("failed", "bad_upstream_response")]


def test_deadlines_name_the_phase() -> None:
    for said, stream, total, code in (
        (b"", False, False, "first_token_timeout"),
        (b"", True, False, "first_token_timeout"),
        (WHOLE[:-2], False, False, "first_token_timeout"),
        (CHUNKS[:-20], True, False, "stream_stalled"),
        (b"", False, True, "upstream_timeout"),
        (CHUNKS[:-20], True, True, "upstream_timeout"),
    ):
        pool, connection, transport = connected()
        connection.between_s = 5.0
        handler = asked(connection, stream, total_at_s=0.0 if total else inf)
        if said:
            connection.data_received(said)
        assert connection.deadline_s < inf
        pool.sweep(connection.deadline_s - 0.01)
        assert not handler.told or handler.told[-1][0] != "failed"
        pool.sweep(connection.deadline_s)
        assert handler.told[-1] == ("failed", code)
        assert transport.aborted


def test_an_idle_connection_is_closed_after_its_time_and_nobody_is_told() -> None:
    pool, connection, transport = connected()
    handler = asked(connection)
    connection.data_received(WHOLE)
    pool.sweep(connection.deadline_s)
    assert transport.aborted and len(handler.told) == 1
    pool.sweep(0.0)
    assert pool.idle == []


def test_only_so_many_are_kept() -> None:
    pool, _, _ = connected()
    pool.max_idle = 2
    transports = []
    for _ in range(4):
        connection = Connection(pool)
        transports.append(FakeTransport())
        connection.connection_made(transports[-1])  # type: ignore[arg-type]
        asked(connection)
        connection.data_received(WHOLE)
    assert len(pool.idle) == 2
    assert [transport.aborted for transport in transports] == [False, False, True, True]


def test_cancel_tells_nobody_and_closes() -> None:
    for said in (b"", CHUNKS[:-20], WHOLE[:-1]):
        pool, connection, transport = connected()
        handler = asked(connection, stream=True)
        if said:
            connection.data_received(said)
        before = list(handler.told)
        handler.call.cancel()
        connection.data_received(b"2\r\nlo\r\n")
        connection.connection_lost(None)
        assert handler.told == before and transport.aborted and not pool.idle and not pool.wanted


def test_a_handler_that_cancels_in_the_middle_is_not_told_more() -> None:
    _, connection, _ = connected()
    handler = asked(connection, stream=True)
    handler.received = lambda data: handler.call.cancel()  # type: ignore[method-assign]
    connection.data_received(CHUNKS)
    assert handler.told[-1][0] == "began"


@given(st.lists(st.sampled_from(["pause", "resume", "data", "wake"]), max_size=30))
def test_reading_follows_the_client_and_the_rests(steps: list[str]) -> None:
    """Read exactly while the client keeps up and no rest is due; a slow client is never taken for a slow server."""
    pool, connection, transport = connected()
    connection.between_s = 5.0
    handler = asked(connection, stream=True)
    connection.data_received(head("transfer-encoding: chunked") + b"1\r\nx\r\n")
    received = 1
    for step in steps:
        if step == "data" and transport.reading:
            connection.data_received(b"1\r\nx\r\n")
            received += 1
        elif step == "wake":
            settle(pool)
        elif step != "data":
            getattr(handler.call, step)()
        assert transport.reading == (not connection.paused and not connection.rests)
        assert (connection.deadline_s == inf) == connection.paused
    assert handler.told[-1] == ("received", b"x" * received)
    settle(pool)
    handler.call.resume()
    assert transport.reading
    connection.data_received(b"0\r\n\r\n")
    assert handler.told[-1] == ("ended",)


def test_a_connection_that_fails_later_than_its_answer_is_skipped() -> None:
    pool, connection, _ = connected()
    asked(connection)
    connection.data_received(WHOLE)
    connection.connection_lost(None)
    late = Recorder()
    pool.send(Outgoing(b"/", b""), late)
    assert [who for _, who in pool.wanted] == [late]
    assert errors.CONNECTION_RESET.code not in str(late.told)
