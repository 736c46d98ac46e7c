"""Bodies of requests and answers, where they are kept at all: copied on their way, redacted and written to disk in a thread."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from zlib import crc32

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.identifiers import new_id
from hx_gateway.openai.replay import folded

if TYPE_CHECKING:
    from hx_gateway.config.ledger import BodiesSettings
    from hx_gateway.core.errors import Failure
    from hx_gateway.core.interfaces import ClientSide

FOLDER, SUFFIX = "bodies", ".bodies"
"""Its name in the state directory, and what names of files in it end with."""
REDACTED = b"[redacted]"
_SLACK = 1024  # bytes copied beyond the bound, so that what is redacted is seen whole where the rest is cut off
_TALK = 16  # bytes of events that a byte of a streamed answer may take
_MOST_WAITING = 16 << 20  # bytes in memory
_FULL, _OLDEST_S = 1 << 20, 0.5  # a file is closed, and may be shipped, at this size or age
_SAY_AGAIN_S = 60.0
_KNOWN = r"(?i)\bbearer\s+[a-z0-9._~+/=-]{8,}", r"\bsk-[A-Za-z0-9_-]{8,}"
_log = logging.getLogger(__name__)

Kept = tuple[str, int, bytes, bytes]
"""The request's id, when it ended in milliseconds of Unix time, its body and its answer's."""
_kept = msgspec.msgpack.Decoder(Kept).decode


class _Copy:
    """A client side that remembers the beginning of what passes."""

    __slots__ = ("_bodies", "_client", "_exchange", "_most", "_pieces", "_size")

    def __init__(self, bodies: Bodies, exchange: Exchange) -> None:
        self._bodies = bodies
        self._exchange = exchange
        self._client: ClientSide = exchange.client
        self._pieces: list[bytes] = []
        self._size, self._most = 0, bodies.room

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        self._add(body)
        self.done()
        self._client.respond(exchange, status, headers, body)

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        self._most *= _TALK
        self._client.begin(exchange, status, headers)

    def write(self, data: bytes) -> None:
        self._add(data)
        self._client.write(data)

    def end(self, data: bytes = b"") -> None:
        self._add(data)
        self.done()
        self._client.end(data)

    def abort(self) -> None:
        self.done()
        self._client.abort()

    def _add(self, data: bytes) -> None:
        room = self._most - self._size
        if room > 0 and data:
            self._pieces.append(data[:room])
        self._size += len(data)

    def done(self) -> None:
        """All has passed that will."""
        pieces, self._pieces = self._pieces, []
        self._bodies.take(self._exchange, pieces, self._size)


class Bodies:
    """A stage and an observer in the gateway, where bodies are wanted, and the thread that writes them down.

    Nobody waits for it: what comes faster than it can be written, or has no room on the disk, is lost and counted.
    """

    def __init__(self) -> None:
        self.on = False
        self.lost = self.kept = 0
        self.room = 0  # bytes of each body that are copied
        self._folder: Path | None = None
        self._settings: BodiesSettings | None = None
        self._redact: tuple[re.Pattern[bytes], ...] = ()
        self._queue: SimpleQueue[tuple[str, bytes, int, bytes, int] | None] = SimpleQueue()
        self._put = self._taken = 0  # bytes: the first is written by the loop, the second by the thread
        self._thread: threading.Thread | None = None
        self._said_s = 0.0

    def adopt(self, settings: BodiesSettings) -> None:
        """Take other settings into use."""
        self._settings, self.on = settings, settings.enabled
        self.room = settings.max_bytes + _SLACK
        self._redact = tuple(re.compile(one.encode()) for one in (*_KNOWN, *settings.redact))
        if self._folder is not None:
            self.start(self._folder)

    def start(self, folder: Path) -> None:
        """Begin to write, where bodies are wanted.

        Args:
            folder: The state directory.
        """
        self._folder = folder
        if self.on and self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(folder / FOLDER,), name="bodies", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Write what waits. Blocks."""
        thread, self._thread, self._folder = self._thread, None, None
        if thread is not None:
            self._queue.put(None)
            thread.join(5.0)

    # On the loop

    def __call__(self, exchange: Exchange) -> None:
        """As a stage: have a look at what its client will be sent."""
        exchange.client = _Copy(self, exchange)

    def attempted(self, exchange: Exchange, failure: Failure | None, /) -> None:
        """Nothing."""

    def finished(self, exchange: Exchange, /) -> None:
        """Where the client has left, nothing more comes."""
        if exchange.outcome is errors.CLIENT_CLOSED and type(exchange.client) is _Copy:
            exchange.client.done()

    def take(self, exchange: Exchange, pieces: list[bytes], size: int) -> None:
        """Hand the bodies of an exchange to the thread, if they are wanted.

        Args:
            exchange: The exchange, at its end.
            pieces: Of the answer, from its beginning.
            size: Bytes of the whole answer.
        """
        settings, identity, target = self._settings, exchange.identity, exchange.candidates
        if settings is None or not self.on or exchange.status == 401:
            return
        if settings.keys and (identity is None or identity.name not in settings.keys):
            return
        if settings.models:
            model = exchange.deployment.model if exchange.deployment is not None else ""
            if not {exchange.asked, model, target.name if target is not None else ""}.intersection(settings.models):
                return
        request = exchange.body[: self.room]
        answer = b"".join(pieces)
        weight = len(request) + len(answer)
        if self._thread is None or self._put - self._taken + weight > _MOST_WAITING:
            self.lost += 1
            return
        self._put += weight
        self._queue.put((exchange.id, request, len(exchange.body), answer, size))

    # In the thread

    def _run(self, folder: Path) -> None:
        file, size, opened_s, last = -1, 0, 0.0, False
        while not last:
            try:
                one = self._queue.get(timeout=_OLDEST_S)
                last = one is None
            except Empty:
                one = None
            try:
                if one is not None:
                    id, request, request_size, answer, answer_size = one
                    self._taken += len(request) + len(answer)
                    if file < 0:
                        file, size, opened_s = self._opened(folder), 0, time.monotonic()
                    kept: Kept = (id, int(time.time() * 1000), self.cleaned(request, request_size), self.cleaned(answer, answer_size))
                    size += _write(file, msgspec.msgpack.encode(kept))
                    self.kept += 1
            except OSError as error:
                self.lost += 1
                if time.monotonic() - self._said_s > _SAY_AGAIN_S:
                    self._said_s = time.monotonic()
                    _log.error("bodies cannot be written: %s; %d were lost so far", error.strerror or error, self.lost)
            except Exception:  # blame: the gateway's own; others must go on being written
                self.lost += 1
                _log.exception("the bodies of a request could not be written")
            if file >= 0 and (last or size >= _FULL or time.monotonic() - opened_s >= _OLDEST_S):
                os.close(file)  # lets go of its lock: it may be shipped now
                file = -1

    def _opened(self, folder: Path) -> int:
        """A new file, held by a lock of this process.

        Raises:
            OSError: There is no room, or no right to write there.
        """
        assert self._settings is not None
        folder.mkdir(mode=0o700, exist_ok=True)
        used = 0
        for path in folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                used += path.stat().st_size
        if used + _FULL > self._settings.waiting_max_bytes:
            raise OSError(0, "ledger.bodies.waiting_max_bytes is reached, since the store is away or slow")
        file = os.open(folder / f"{new_id(time.time())}{SUFFIX}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def cleaned(self, body: bytes, size: int) -> bytes:
        """A body as it is kept: events put together, secrets taken out, and cut where it is too long, which is said.

        Args:
            body: Its beginning.
            size: Bytes of the whole.
        """
        assert self._settings is not None
        most, cut = self._settings.max_bytes, size > len(body)
        if body[:6] == b"data: " or body[:1] == b":":
            with suppress(ValueError, TypeError, AttributeError, KeyError):  # no events of a completion: kept as it came
                body = folded(body[: body.rfind(b"\n\n") + 2])
                size = size if cut else len(body)
        elif cut:
            most = min(most, len(body) - _SLACK)
        for pattern in self._redact:
            body = pattern.sub(REDACTED, body)
        return b"%b\n[truncated: %d bytes in all]" % (body[:most], size) if cut or len(body) > most else body


def _write(file: int, payload: bytes) -> int:
    framed = b"%b%b%b" % (len(payload).to_bytes(4, "little"), crc32(payload).to_bytes(4, "little"), payload)
    done = os.write(file, framed)
    if done < len(framed):  # a torn end: nothing may come behind it
        os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR) - done)
        os.lseek(file, 0, os.SEEK_END)
        raise OSError(28, "no room on the disk")
    return done


def read(data: bytes) -> Iterator[Kept]:
    """What a file holds; a torn end is simply the end."""
    at = 0
    while at + 8 <= len(data):
        payload = data[at + 8 : at + 8 + int.from_bytes(data[at : at + 4], "little")]
        if crc32(payload) != int.from_bytes(data[at + 4 : at + 8], "little"):
            return
        at += 8 + len(payload)
        yield _kept(payload)


def waiting(folder: Path) -> list[Path]:
    """The files of a state directory, oldest first."""
    return sorted((folder / FOLDER).glob(f"*{SUFFIX}"))
