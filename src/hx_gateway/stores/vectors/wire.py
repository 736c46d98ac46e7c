"""What a worker and the owner of the embedded vectors say to each other: frames of MessagePack over a Unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.rag.filters import Filter
from hx_gateway.rag.points import Collection, Hit, Point, Terms

PROTOCOL = 1
LARGEST = 256 << 20  # bytes of a frame
DONE, UNFIT, UNAVAILABLE = 0, 1, 2
BUSY = 0  # number of a reply to no call: the owner will not answer for some seconds, and lives

_CALLS: dict[str, tuple[Any, Any]] = {
    "hello": (tuple[int], int),
    "ping": (tuple[()], None),
    "collections": (tuple[()], list[Collection]),
    "create": (tuple[Collection], Collection),
    "drop": (tuple[str], bool),
    "upsert": (tuple[str, list[Point]], None),
    "delete": (tuple[str, str, list[str] | Filter], int),
    "dense": (tuple[str, str, bytes, int, Filter, float | None], list[Hit]),
    "sparse": (tuple[str, str, Terms, int, Filter], list[Hit]),
    "fetch": (tuple[str, str, list[str], bool], list[Point]),
    "count": (tuple[str, str, Filter], int),
    "documents": (tuple[str, str, list[str]], dict[str, list[Point]]),
    "namespaces": (tuple[str], dict[str, int]),
    "scroll": (tuple[str, str, int], list[Point]),
}


class Request(msgspec.Struct, array_like=True):
    """A call: its number on the connection, its name, its arguments still encoded."""

    number: int
    name: str
    arguments: msgspec.Raw


class Reply(msgspec.Struct, array_like=True):
    """An answer: the call's number, `DONE` with the result still encoded, or `UNFIT` and `UNAVAILABLE` with words."""

    number: int
    outcome: int
    body: msgspec.Raw


class Codec:
    """Encoders and decoders, made once for a process."""

    def __init__(self) -> None:
        self.encode = msgspec.msgpack.Encoder().encode
        self.request = msgspec.msgpack.Decoder(Request).decode
        self.reply = msgspec.msgpack.Decoder(Reply).decode
        self.words = msgspec.msgpack.Decoder(tuple[str, str]).decode
        self.arguments = {name: msgspec.msgpack.Decoder(types[0]).decode for name, types in _CALLS.items()}
        self.result = {name: msgspec.msgpack.Decoder(types[1]).decode for name, types in _CALLS.items()}

    def frame(self, *parts: object) -> bytes:
        """A frame of these parts; the last, where it is `msgspec.Raw`, as it is."""
        body = self.encode(parts)
        return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame.

    Raises:
        asyncio.IncompleteReadError, OSError: The other side is gone.
        ValueError: It is larger than any that is sent.
    """
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > LARGEST:
        raise ValueError(f"a frame of {size} bytes")
    return await reader.readexactly(size)


def socket_path(folder: Path) -> Path:
    """Where the owner of a folder listens: there, or, where that name is too long for a socket, in a private folder for such names."""
    path = folder / "owner.sock"
    if len(os.fsencode(path)) <= (100 if sys.platform == "linux" else 96):
        return path
    return Path(tempfile.gettempdir()) / f"hx-{os.getuid()}" / f"{sha256(os.fsencode(folder.resolve())).hexdigest()[:24]}.sock"


def listening(path: Path) -> socket.socket:
    """A listening socket that only this user can reach; whoever calls holds the lock, so that what is there is left over.

    Raises:
        OSError: It cannot be made, or its folder belongs to somebody else.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid() or path.parent.stat().st_mode & 0o022:
        raise PermissionError(f"others may write to {path.parent}")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener
