"""A head that matches a remembered one is a head the strict parser takes, and reads alike."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import httptools
import pytest
from tests.integration.protocol.mutation import LINES, mutant
from tests.integration.protocol.wire import PING, request

from hx_gateway.core.heads import LONGEST, Pattern, learn, worthwhile

TRACED = ("traceparent: 00-{0}", "Accept: text/html", "x-request-id: {0}", "Date: Sat, 21 Nov 2026 00:00:0{0} GMT")


class Oracle:
    """What the parser reads, callback by callback."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.url = b""
        self.count = 0
        self.whole = False

    def on_message_begin(self) -> None:
        """One more."""
        self.count += 1

    def on_url(self, url: bytes) -> None:
        """The target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self.body += body

    def on_message_complete(self) -> None:
        """The end."""
        self.whole = True


def parsed(message: bytes) -> tuple[Any, Oracle] | None:
    """The parser and what it read of one whole message; None when it refused, or did not read exactly one."""
    oracle = Oracle()
    parser = httptools.HttpRequestParser(oracle)
    try:
        parser.feed_data(message)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return (parser, oracle) if oracle.whole and oracle.count == 1 else None


def traced(mark: object, body: bytes = PING, *lines: str) -> bytes:
    """A request whose head has a value or two of its own."""
    return request(body, *(line.format(mark) for line in TRACED), *lines)


def headers_of(message: bytes) -> list[tuple[bytes, bytes]]:
    found = parsed(message)
    assert found is not None
    return found[1].headers


def learnt(messages: Sequence[bytes]) -> Pattern | None:
    pattern = None
    for message in messages:
        pattern = learn(message, headers_of(message), pattern)
    return pattern


def agrees(pattern: Pattern, message: bytes) -> bool:
    """Whether the pattern matches; if so, the parser has to read the same."""
    body = pattern.match(message)
    if body is None:
        return False
    found = parsed(message)
    assert found is not None, f"matched, but refused by the parser: {message!r}"
    parser, oracle = found
    assert (
        parser.get_method() == b"POST" and parser.get_http_version() == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
    )
    assert oracle.body == body, message
    assert pattern.lines[0] == b"POST %b HTTP/1.1" % oracle.url
    values = dict(zip(pattern.free, pattern.values, strict=True))
    assert len(oracle.headers) == len(pattern.lines) - 1
    for number, (name, value) in enumerate(oracle.headers):
        if name.lower() != b"content-length":
            expected = b"%b: %b" % (name, values[number]) if number in values else pattern.lines[number + 1]
            assert expected == b"%b: %b" % (name, value), message
    return True


def test_values_that_were_seen_to_differ_are_free_and_no_others() -> None:
    pattern = learnt([traced(1), traced(2)])
    assert pattern is not None
    names = [pattern.lines[number + 1].partition(b":")[0] for number in pattern.free]
    assert names == [b"traceparent", b"x-request-id", b"Date"]
    assert pattern.match(traced(3, PING + b" ")) == PING + b" "
    assert pattern.values == [b"00-3", b"3", b"Sat, 21 Nov 2026 00:00:03 GMT"]
    assert pattern.match(traced(3).replace(b"text/html", b"text/csv")) is None
    assert pattern.match(traced(3, PING, "x-more: 1")) is None
    once = learnt([traced(1)])
    assert once is not None and not once.free
    assert once.match(traced(1, b"{}")) == b"{}" and once.match(traced(2)) is None


def test_any_length_matches_with_just_that_many_bytes() -> None:
    pattern = learnt([request(PING)])
    assert pattern is not None and not pattern.free
    missed = 0
    for length in [*range(120), *range(985, 1015), 3, 10_003, 99_999, 100_000, 1, 1004, 0]:
        body = b"x" * length
        message = request(body)
        found = pattern.match(message)
        assert found is None or found == body
        missed += found is None
        for wrong in (message + b"x", message[:-1] if length else message + b"xx"):
            assert pattern.match(wrong) is None
        assert pattern.match(message.replace(b"th: %d\r" % length, b"th: 0%d\r" % length)) is None
        assert pattern.match(message.replace(b"th: %d\r" % length, b"th: -1\r")) is None
    assert missed < 5  # where the number of digits changes by several at once the parser may have to look


@pytest.mark.parametrize(
    "value", ["", " ", " a", "a ", "\ta", "a\t", "a\tb", "\0", "\x7f", "\x80", "a\nb", "a\rb", "a\r\nb: c", "a\r\n b", "a" * LONGEST]
)
def test_only_plain_values_match(value: str) -> None:
    pattern = learnt([request(PING, "x-request-id: 1"), request(PING, "x-request-id: 2")])
    assert pattern is not None and pattern.free
    assert pattern.match(request(PING, "x-request-id: a b")) == PING
    assert pattern.match(request(PING, f"x-request-id: {value}")) is None


@pytest.mark.parametrize(
    "name",
    ["host", "connection", "keep-alive", "Proxy-Connection", "TE", "trailer", "upgrade", "http2-settings", "content-encoding", "expect", "transfer-encoding"],
)  # fmt: skip
def test_what_decides_how_a_message_is_read_is_never_free(name: str) -> None:
    length = f"Content-Length: {len(PING)}"
    first, second = ([(b"Content-Length", str(len(PING)).encode()), (name.encode(), value)] for value in (b"a", b"b"))
    messages = [f"POST / HTTP/1.1\r\n{length}\r\n{name}: {value}\r\n\r\n".encode() + PING for value in "abc"]
    before = learn(messages[0], first, None)
    pattern = learn(messages[1], second, before)
    assert pattern is not None and not pattern.free
    assert pattern.match(messages[1]) == PING and pattern.match(messages[2]) is None


@pytest.mark.parametrize(
    "message",
    [
        request(PING).replace(b": ", b":"),
        request(PING, "x-a:  two blanks"),
        request(PING, "x-a:\ttab"),
        request(b"", "transfer-encoding: chunked", length=False) + b"0\r\n\r\n",
        request(b"", length=False),
    ],
)
def test_only_heads_written_line_by_line_with_a_length_are_learnt(message: bytes) -> None:
    assert learn(message, headers_of(message), None) is None


def test_nothing_is_learnt_of_bytes_that_are_not_one_whole_message() -> None:
    good = request(PING)
    headers = headers_of(good)
    assert learn(good, headers, None) is not None
    for message in (good + good, good[:-1], good + b"\r\n", b"\r\n" + good, b"\r\n", b"\0\x003\0", good.replace(b"\r\n", b"\n")):
        assert learn(message, headers, None) is None


def test_heads_that_are_never_alike_are_given_up_and_tried_again_now_and_then() -> None:
    assert [misses for misses in range(1, 100) if worthwhile(misses)] == [1, 2, 3, 32, 64, 96]


def test_no_mutant_matches_that_the_parser_would_read_otherwise() -> None:
    """Good heads first, so that one is remembered with values free, then bad ones that look like it."""
    dice = random.Random(3)
    pattern = learnt([traced(1), traced(2)])
    assert pattern is not None
    matched = 0
    for number in range(20_000):
        good = traced(dice.randrange(10), PING[: dice.randrange(len(PING))] if number % 3 == 0 else PING)
        matched += agrees(pattern, broken(good, dice))
        agrees(pattern, mutant(number, dice))
    assert 2_000 < matched < 15_000


_VALUE = re.compile(rb": ")


def broken(message: bytes, dice: random.Random) -> bytes:
    """A message with something odd in it, most often in a value."""
    kind = dice.randrange(6)
    if kind == 0:
        return message
    places = [found.end() for found in _VALUE.finditer(message)]
    at = dice.choice(places) + dice.choice((-2, -1, 0, 0, 0, 1, 2, 3)) if kind < 5 else dice.randrange(len(message))
    odd = dice.choice((b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b"a", b"7", b",", b"\x7f", b"\x80", b"\r\n ", b"\r\n" + dice.choice(LINES) + b"\r\n"))  # fmt: skip
    return message[:at] + odd + message[at + dice.choice((0, 0, 1, len(odd))) :]
