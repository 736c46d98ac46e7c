"""A second opinion on what a request says: a slow, plain reader that takes only what every reader understands alike."""

from __future__ import annotations

import re

_START = re.compile(rb"([A-Z-]+) +([\x21-\x7e\x80-\xff]+) +(?:HTTP|RTSP)/1\.([01])\Z")  # llhttp takes RTSP for HTTP
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*\Z")
_SIZE = re.compile(rb"(0*[0-9A-Fa-f]{1,16})(;.*)?\Z", re.DOTALL)


class Unreadable(Exception):
    """Readers may differ on these bytes."""


class Incomplete(Exception):
    """More bytes must come."""


def read(data: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Method, target and body of the first request, and the bytes behind it.

    Raises:
        Unreadable: It is ambiguous, or no request.
        Incomplete: It has not ended.
    """
    head, found, rest = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not found:
        raise Incomplete
    first, *lines = head.split(b"\r\n")
    start = _START.match(first)
    if start is None:
        raise Unreadable(first)
    headers: dict[bytes, list[bytes]] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            raise Unreadable(line)
        headers.setdefault(match[1].lower(), []).append(match[2])
    lengths, encodings = headers.get(b"content-length", []), headers.get(b"transfer-encoding", [])
    if len(lengths) + len(encodings) > 1 or len(headers.get(b"host", [])) != 1 and start[3] == b"1":
        raise Unreadable(head)
    if encodings:
        if encodings[0].lower() != b"chunked" or start[3] == b"0":
            raise Unreadable(encodings[0])
        body, rest = _chunks(rest)
    elif lengths:
        if not lengths[0].isdigit():
            raise Unreadable(lengths[0])
        length = int(lengths[0])
        if len(rest) < length:
            raise Incomplete
        body, rest = rest[:length], rest[length:]
    else:
        body = b""
    return start[1], start[2], body, rest


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, found, data = data.partition(b"\r\n")
        if not found:
            raise Incomplete
        match = _SIZE.match(line)
        if match is None:
            raise Unreadable(line)
        size = int(match[1], 16)
        if size == 0:
            while True:
                line, found, data = data.partition(b"\r\n")
                if not found:
                    raise Incomplete
                if not line:
                    return body, data
                if _LINE.match(line) is None:
                    raise Unreadable(line)
        if len(data) < size + 2:
            raise Incomplete
        if data[size : size + 2] != b"\r\n":
            raise Unreadable(data[size : size + 2])
        body, data = body + data[:size], data[size + 2 :]
