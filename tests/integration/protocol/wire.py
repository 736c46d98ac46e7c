"""A client that sends exactly the bytes it is given, and reads answers strictly."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tests.support.gateway import KEY

CHAT = "/v1/chat/completions"
PING = b'{"model":"tiny","messages":[{"role":"user","content":"ping"}]}'


class Closed(Exception):
    """The connection ended before a whole answer; ``rest`` is what came of it."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(f"closed after {rest[:200]!r}")
        self.rest = rest


@dataclass(frozen=True)
class Answer:
    """One answer: its body is without framing; ``whole`` says whether its end was marked."""

    status: int
    headers: list[tuple[str, str]] = field(repr=False)
    body: bytes
    whole: bool = True

    def header(self, name: str) -> str | None:
        """The value of a header that is there at most once."""
        found = [value for known, value in self.headers if known == name]
        assert len(found) < 2, f"{name} is there {len(found)} times"
        return found[0] if found else None

    @property
    def code(self) -> str:
        """``error.code`` of an error answer."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def content(self) -> str:
        """The text of a chat answer."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])

    @property
    def events(self) -> list[Any]:
        """The events of a stream: JSON decoded, and the text ``[DONE]``."""
        return events(self.body)


def events(body: bytes) -> list[Any]:
    """The data of server-sent events, decoded; every one must be one line of data between blank lines."""
    assert body.endswith(b"\n\n"), body[-100:]
    found: list[Any] = []
    for part in body[:-2].split(b"\n\n"):
        if part.startswith(b":"):
            continue
        assert part.startswith(b"data: ") and b"\n" not in part, part
        payload = part[6:]
        found.append("[DONE]" if payload == b"[DONE]" else json.loads(payload))
    return found


def texts(found: Iterable[Any]) -> str:
    """The content that streamed events add up to."""
    chunks = [event for event in found if isinstance(event, dict) and event.get("choices")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def request(
    body: bytes = PING, *lines: str, method: str = "POST", path: str = CHAT, key: str = KEY, version: str = "HTTP/1.1", length: bool = True
) -> bytes:
    """The bytes of a good request, with further header lines."""
    head = [f"{method} {path} {version}", "host: gateway.test"]
    if key:
        head.append(f"authorization: Bearer {key}")
    head += lines
    if length:
        head.append(f"content-length: {len(body)}")
    return "".join(f"{line}\r\n" for line in head).encode("latin-1") + b"\r\n" + body


def ask(content: str, stream: bool = False, model: str = "tiny", **more: Any) -> bytes:
    """The body of a chat request."""
    whole = {"model": model, "messages": [{"role": "user", "content": content}], **({"stream": True} if stream else {}), **more}
    return json.dumps(whole).encode()


def chunked(*pieces: bytes) -> bytes:
    """A chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Client:
    """A blocking connection to the gateway.

    Args:
        port: On 127.0.0.1.
        timeout_s: Seconds after which waiting fails the test.
        receive_buffer: Bytes the kernel keeps for us; 0 for its own choice.
    """

    def __init__(self, port: int, timeout_s: float = 20.0, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send; a connection that the gateway has closed already is no error."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(data)

    def drip(self, data: bytes, size: int = 1) -> None:
        """Send in writes of ``size`` bytes."""
        for at in range(0, len(data), size):
            self.send(data[at : at + size])

    def _more(self) -> None:
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed(self._buffer)
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Status and headers of the next answer.

        Raises:
            Closed: The connection ended.
        """
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        version, _, rest = self._line().partition(b" ")
        assert version == b"HTTP/1.1", version
        headers = []
        while line := self._line():
            name, colon, value = line.partition(b": ")
            assert colon and name == name.lower(), line
            headers.append((name.decode(), value.decode("latin-1")))
        return int(rest[:3]), headers

    def chunk(self) -> bytes:
        """The next chunk of a body; empty for the last."""
        size = int(self._line(), 16)
        data = self._exactly(size)
        assert self._exactly(2) == b"\r\n"
        return data

    def answer(self, bodiless: bool = False) -> Answer:
        """The next whole answer.

        Args:
            bodiless: Whether the request was HEAD.

        Raises:
            Closed: The connection ended before.
        """
        status, headers = self.head()
        names = dict(headers)
        if bodiless or status < 200 or status in (204, 304):
            return Answer(status, headers, b"")
        assert not ("content-length" in names and "transfer-encoding" in names)
        if "content-length" in names:
            return Answer(status, headers, self._exactly(int(names["content-length"])))
        if names.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                try:
                    piece = self.chunk()
                except Closed:
                    return Answer(status, headers, body, whole=False)
                if not piece:
                    return Answer(status, headers, body)
                body += piece
        try:
            while True:
                self._more()
        except Closed as closed:
            self._buffer = b""
            return Answer(status, headers, closed.rest)

    def end(self) -> bytes:
        """Wait for the end of the connection; what came before it."""
        try:
            while True:
                self._more()
        except Closed as closed:
            return closed.rest

    def leave(self) -> None:
        """Close at once."""
        self.socket.close()


def one(port: int, data: bytes) -> Answer:
    """Send bytes on a connection of its own and read one answer."""
    with Client(port) as client:
        client.send(data)
        return client.answer()
