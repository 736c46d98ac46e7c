"""A model server that believes nothing: it checks every byte that reaches it, and writes down whatever is not as it must be."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9a-z-]+): ([\t\x20-\x7e\x80-\xff]*)\Z")
_START = re.compile(rb"(GET|POST|HEAD|PUT|PATCH|DELETE|OPTIONS) (/[\x21-\x7e\x80-\xff]*) HTTP/1\.1\Z")
_ENDS_HERE = {
    b"authorization", b"x-api-key", b"api-key", b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"transfer-encoding", b"expect",
    b"proxy-authorization", b"proxy-connection", b"cookie", b"accept-encoding", b"http2-settings",
}  # fmt: skip
HOT = (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings")
MODEL = "tiny:1b"

_CHAT = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [{"index": 0, "message": {"role": "assistant", "content": "pong"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
_TEXT = {**_CHAT, "object": "text_completion", "choices": [{"index": 0, "text": "pong", "finish_reason": "stop"}]}
_VECTORS = {"object": "list", "model": MODEL, "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}  # fmt: skip
_CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}


def _events() -> bytes:
    chunks: list[dict[str, Any]] = [
        {**_CHUNK, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "pong"}, "finish_reason": None}]},
        {**_CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {**_CHUNK, "choices": [], "usage": _CHAT["usage"]},
    ]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


_STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
    len(_events()), _events(),
)  # fmt: skip
_ANSWERS = {path: _whole(json.dumps(value).encode()) for path, value in zip(HOT, (_CHAT, _TEXT, _VECTORS), strict=True)}


class Seen:
    """One request that reached the witness."""

    __slots__ = ("body", "case", "method", "target")

    def __init__(self, method: bytes, target: bytes, case: bytes, body: bytes) -> None:
        self.method = method
        self.target = target
        self.case = case
        self.body = body


class Witness:
    """The server, as an asynchronous context manager.

    Attributes:
        seen: Requests that reached it; the probes of the gateway are left out.
        complaints: What was wrong with any of them, first hundred.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.complaints: list[str] = []
        self.url = ""
        self.authority = b""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Witness:
        self._server = await asyncio.get_running_loop().create_server(lambda: _Line(self), "127.0.0.1", 0)
        self.authority = b"127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self.authority.decode()}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()

    def complain(self, what: str, data: bytes) -> None:
        """Write down what is wrong."""
        if len(self.complaints) < 100:
            self.complaints.append(f"{what}: {data[:700]!r}")


class _Line(asyncio.Protocol):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = list(self._lines(head))
        lengths = [value for name, value in lines if name == b"content-length"]
        length = int(lengths[0]) if lengths else 0
        if len(rest) < length:
            return
        if len(rest) > length:
            # The gateway never asks twice on a connection before it has its answer: these bytes are somebody's smuggled request.
            self._witness.complain("bytes after the end of a request", self._buffer)
        self._buffer = b""
        self._check(head, lines, lengths, rest[:length])

    def _lines(self, head: bytes) -> Iterator[tuple[bytes, bytes]]:
        for line in head.split(b"\r\n")[1:]:
            found = _LINE.match(line)
            if found is None:
                self._witness.complain("a header line that is none", head)
            else:
                yield found[1], found[2]

    def _check(self, head: bytes, lines: list[tuple[bytes, bytes]], lengths: list[bytes], body: bytes) -> None:
        witness = self._witness
        start = _START.match(head.partition(b"\r\n")[0])
        if start is None:
            witness.complain("a request line that is none", head)
            self._transport.abort()
            return
        method, target = start[1], start[2]
        names = [name for name, _ in lines]
        values = dict(lines)
        case = values.get(b"x-case", b"")
        if method == b"GET" and b"x-request-id" not in values:
            self._transport.write(_whole(b'{"object":"list","data":[]}'))  # a probe
            return
        if len(lengths) != 1 or not lengths[0].isdigit():
            witness.complain("not exactly one length", head)
        if names.count(b"host") != 1 or values[b"host"] != witness.authority:
            witness.complain("not exactly our host", head)
        if names.count(b"x-request-id") != 1 or not values[b"x-request-id"]:
            witness.complain("not exactly one request id", head)
        if stray := _ENDS_HERE.intersection(names):
            witness.complain(f"{stray} should have ended at the gateway", head)
        hot = target.partition(b"?")[0] in HOT and method == b"POST"
        if hot:
            self._check_body(head, body)
        witness.seen.append(Seen(method, target, case, body))
        if hot and b"embeddings" not in target and (b'"stream": true' in body or b'"stream":true' in body):
            self._transport.write(_STREAM)
        elif hot:
            self._transport.write(_ANSWERS[target.partition(b"?")[0]])
        else:
            self._transport.write(_whole(b"" if method == b"HEAD" else b'{"forwarded": true}'))

    def _check_body(self, head: bytes, body: bytes) -> None:
        try:
            whole = json.loads(body, strict=False, object_pairs_hook=_once)
        except _Twice:
            self._witness.complain("a key that decides stands in the body twice", body)
            return
        except ValueError:
            whole = None
        if whole is None:
            # Strings that nobody needs to read are passed on unread; the structure around them was read.
            if body[:1] != b"{" or b'"model":"tiny:1b"' not in body.replace(b'": "', b'":"'):
                self._witness.complain("a body that is no JSON object with our model's name", body)
        elif not isinstance(whole, dict) or whole.get("model") != MODEL:
            self._witness.complain("a body without our model's name", body)


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name == "model" and name in found and "messages" in dict(pairs):
            raise _Twice
        found[name] = value
    return found
