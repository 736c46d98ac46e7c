"""Good requests, and ways to make them bad: each from a seed, so that every one can be had again."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

from tests.integration.protocol.wire import chunked
from tests.support.gateway import KEY

NASTY = (
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x0c", b"\x1b", b"\x7f", b"\x80", b"\xff", b"\xc3\xa9", b"\\", b'"', b"{", b"}",
    b"[", b"0\r\n\r\n", b"HTTP/1.1", b"\r\n ", b"%00", b"..", b"\xef\xbb\xbf", b"\\u0000", b"\\ud800",
)  # fmt: skip
LINES = (
    b"content-length: 0", b"Content-Length: 7", b"content-length: +9", b"content-length: 1e1", b"transfer-encoding: chunked", b"Transfer-Encoding: identity",
    b"transfer-encoding: chunked, chunked", b"Transfer-Encoding : chunked", b"transfer-encoding:\tchunked", b"TRANSFER-ENCODING: Chunked", b"host: other", b"Host:",
    b"connection: close", b"connection: keep-alive, x-case", b"Connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"upgrade: websocket", b"expect: 100-continue",
    b"expect: 200-ok", b"te: trailers", b"trailer: content-length", b"authorization: Bearer nobody", b"x-api-key: nobody", b"x-request-id: \xc3\xa9", b"x-request-id: mine",
    b"x-hx-model-group: nothing", b"content-encoding: gzip", b"accept-encoding: br", b"cookie: a=b", b"x-long: " + b"l" * 3000, b" folded: 1", b"\tfolded", b"x-empty:",
    b": nameless", b"no colon", b"x-\x01: control", b"x-a: \x01", b"proxy-authorization: Basic eA==", b"via: 1.1 me", b"x-forwarded-for: ::1", b"content-type: text/plain",
    b"keep-alive: timeout=1", b"http2-settings: AA", b"range: bytes=0-1", b"x-hx-timeout-ms: 60000",
)  # fmt: skip
TARGETS = (
    b"/", b"*", b"/v1/chat/completions?a=b", b"/v1/chat/completions/", b"//v1/chat/completions", b"http://x.test/v1/chat/completions", b"/v1/embeddings", b"/v1/models",
    b"/v1/things/%2e%2e/admin", b"/v1/\xff", b"/chat/completions", b"x:1", b"/v1/chat/completions#f", b"/healthz", b"/metrics", b"/docs", b"/v1/models/a/b:c", b"",
)  # fmt: skip
METHODS = (
    b"GET",
    b"HEAD",
    b"PUT",
    b"OPTIONS",
    b"DELETE",
    b"PATCH",
    b"CONNECT",
    b"TRACE",
    b"post",
    b"PRI",
    b"POST ",
    b"G\0T",
    b"M-SEARCH",
    b"SOURCE",
)
VERSIONS = (b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.1 ", b"http/1.1", b"HTTP/11", b"ICE/1.1", b"RTSP/1.0", b"")
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e308, 2**70, "", "tiny", [], {}, [[]], {"a": {}}, "\ud800", "\0", "é" * 40)
SIZES = (b"0", b"-1", b"0x4", b"ffffffffffffffff", b"1;", b"5;a=b", b" 4", b"4 ", b"", b"g", b"00000000000000000004", b"4\n")
_LENGTH = re.compile(rb"content-length: (\d+)")


def mark(case: int) -> bytes:
    """A case's number, such that no few mutations make another's of it."""
    return b"%d-%d" % (case, case * 7919 % 99_991)


def case_of(mark_of_it: bytes) -> int | None:
    """The number behind a mark; None for what is no mark."""
    number = mark_of_it.partition(b"-")[0]
    return int(number) if number.isdigit() and mark(int(number)) == mark_of_it else None


class Seed:
    """A good request."""

    def __init__(self, method: bytes, target: bytes, body: bytes, *lines: bytes) -> None:
        self.method = method
        self.target = target
        self.body = body
        self.lines = lines

    def head(self, case: int, *more: bytes) -> bytes:
        """Its head, marked with a number."""
        lines = (b"host: fuzz.test", b"authorization: Bearer " + KEY.encode(), b"x-case: " + mark(case), *self.lines, *more)
        return b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (self.method, self.target, b"\r\n".join(lines))

    def plain(self, case: int) -> bytes:
        """Its bytes with a length."""
        return self.head(case, b"content-length: %d" % len(self.body)) + self.body

    def chunked(self, case: int, dice: random.Random) -> bytes:
        """Its bytes in chunks."""
        cuts = sorted(dice.sample(range(1, max(2, len(self.body))), min(3, max(1, len(self.body) - 1))))
        pieces = [self.body[start:end] for start, end in zip([0, *cuts], [*cuts, len(self.body)], strict=True)]
        return self.head(case, b"transfer-encoding: chunked") + chunked(*[piece for piece in pieces if piece])


def _chat(**more: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "ping é"}], **more}, separators=(",", ":")).encode()


SEEDS = (
    Seed(b"POST", b"/v1/chat/completions", _chat()),
    Seed(b"POST", b"/v1/chat/completions", _chat(stream=True), b"Accept: text/event-stream"),
    Seed(b"POST", b"/v1/chat/completions", _chat(stream=True, stream_options={"include_usage": True})),
    Seed(b"POST", b"/v1/chat/completions", _chat(temperature=0.5, tools=[{"type": "function", "function": {"name": "model"}}], user="u"), b"User-Agent: fuzz/1"),
    Seed(b"POST", b"/v1/completions", b'{"prompt": "x", "model": "tiny", "stream": false}'),
    Seed(b"POST", b"/v1/embeddings", b'{"input":["a","b"],"model":"tiny","encoding_format":"float"}'),
    Seed(b"POST", b"/v1/chat/completions?query=1", _chat()),
    Seed(b"POST", b"/v1/things", b'{"any":"thing"}', b"content-type: application/json"),
    Seed(b"GET", b"/v1/models", b""),
    Seed(b"GET", b"/healthz", b"", b"origin: http://page.test"),
)  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, dice: random.Random) -> bytes:
    """One byte changed."""
    at = dice.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << dice.randrange(8)),)) + data[at + 1 :]


def insert(data: bytes, dice: random.Random) -> bytes:
    """Something nasty put in."""
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice(NASTY) + data[at:]


def delete(data: bytes, dice: random.Random) -> bytes:
    """A few bytes left out."""
    at = dice.randrange(len(data))
    return data[:at] + data[at + dice.choice((1, 1, 2, 5, 40)) :]


def repeat(data: bytes, dice: random.Random) -> bytes:
    """A few bytes said twice."""
    at = dice.randrange(len(data))
    piece = data[at : at + dice.choice((1, 2, 10, 60))]
    return data[:at] + piece + data[at:]


def cut(data: bytes, dice: random.Random) -> bytes:
    """The end missing."""
    return data[: dice.randrange(1, len(data) + 1)]


def _in_head(data: bytes, dice: random.Random, change: Callable[[list[bytes]], None]) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    change(lines)
    return b"\r\n".join(lines) + end + body


def add_line(data: bytes, dice: random.Random) -> bytes:
    """A header line more."""
    return _in_head(data, dice, lambda lines: lines.insert(dice.randrange(1, len(lines) + 1), dice.choice(LINES)))


def drop_line(data: bytes, dice: random.Random) -> bytes:
    """A header line less."""
    return _in_head(data, dice, lambda lines: lines.pop(dice.randrange(len(lines))) and None)


def double_line(data: bytes, dice: random.Random) -> bytes:
    """A header line twice."""
    return _in_head(data, dice, lambda lines: lines.insert(dice.randrange(1, len(lines) + 1), dice.choice(lines)))


def swap_lines(data: bytes, dice: random.Random) -> bytes:
    """The header lines in another order, names in another case."""

    def change(lines: list[bytes]) -> None:
        rest = lines[1:]
        dice.shuffle(rest)
        lines[1:] = [line.upper() if dice.random() < 0.2 and b"earer" not in line else line for line in rest]

    return _in_head(data, dice, change)


def first_line(data: bytes, dice: random.Random) -> bytes:
    """Another method, target or version."""

    def change(lines: list[bytes]) -> None:
        parts = [*lines[0].split(b" "), b"", b""][:3]
        which = dice.randrange(3)
        parts[which] = dice.choice((METHODS, TARGETS, VERSIONS)[which])
        lines[0] = b" ".join(parts)

    return _in_head(data, dice, change)


def length(data: bytes, dice: random.Random) -> bytes:
    """Another length."""

    def change(found: re.Match[bytes]) -> bytes:
        value = int(found[1])
        return b"content-length: " + dice.choice(
            (b"%d" % (value + 1), b"%d" % max(0, value - 1), b"0", b"%d" % (value * 10), b"0%d" % value, b"+%d" % value, b"%d " % value, b"-%d" % value, b"99999999999")
        )  # fmt: skip

    return _LENGTH.sub(change, data, count=1)


def chunk_size(data: bytes, dice: random.Random) -> bytes:
    """A chunk size that is wrong, where there are chunks."""
    head, end, body = data.partition(b"\r\n\r\n")
    lines = body.split(b"\r\n")
    lines[dice.randrange(len(lines))] = dice.choice(SIZES)
    return head + end + b"\r\n".join(lines)


def line_end(data: bytes, dice: random.Random) -> bytes:
    """A line end of another kind."""
    places = [found.start() for found in re.finditer(rb"\r\n", data)]
    if not places:
        return data
    at = dice.choice(places)
    return data[:at] + dice.choice((b"\n", b"\r", b"\r\r\n", b"\n\n", b" \r\n", b"\r\n\t")) + data[at + 2 :]


def value(data: bytes, dice: random.Random) -> bytes:
    """A body with another value in it, its length right again."""
    head, end, body = data.partition(b"\r\n\r\n")
    try:
        whole = json.loads(body)
        name = dice.choice(
            ["model", "messages", "stream", "stream_options", "user", "input", "prompt", "encoding_format", "dimensions", "n", "seed"]
        )
        whole[name] = dice.choice(VALUES)
        body = json.dumps(whole, ensure_ascii=dice.random() < 0.7).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError):
        return data
    if dice.random() < 0.3 and body.startswith(b"{"):
        body = (
            b'{"%b":"%b",' % (dice.choice((b"model", b"\\u006dodel", b"stream", b"messages")), dice.choice((b"tiny", b"other"))) + body[1:]
        )
    return _LENGTH.sub(b"content-length: %d" % len(body), head, count=1) + end + body


MUTATIONS: tuple[Mutation, ...] = (
    flip, insert, delete, repeat, cut, add_line, add_line, drop_line, double_line, swap_lines, first_line, length, length, chunk_size, line_end, value, value,
)  # fmt: skip


def mutant(case: int, dice: random.Random) -> bytes:
    """A request with one to four things wrong, or none."""
    seed = dice.choice(SEEDS)
    data = seed.chunked(case, dice) if dice.random() < 0.3 and len(seed.body) > 4 else seed.plain(case)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        if data:
            data = dice.choice(MUTATIONS)(data, dice)
    return data or b"\r\n"


def pieces(data: bytes, dice: random.Random) -> list[bytes]:
    """The bytes in one to five writes."""
    count = dice.choice((1, 1, 1, 2, 3, 5))
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(count - 1))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if start < end]
