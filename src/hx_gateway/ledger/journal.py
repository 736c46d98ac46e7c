"""The journal: records appended to memory-mapped segments, so that what a client was sent is on record even if the process is killed."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Any
from zlib import crc32

import msgspec

from hx_gateway.core.identifiers import RequestIds
from hx_gateway.ledger.letters import segments, set_aside, sized
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import LARGEST, START, SUFFIX, Segment, grasp, read_head

FOLDER = "journal"
"""Its name in the state directory."""
_WAITING = 4096  # records kept in memory while the next segment is being made
_OLDEST_S = 900.0  # a segment is closed after this time, so that what was shipped of it can go
_SAY_AGAIN_S = 60.0
_LOOK_S = 2.0
_UNREADY_S = 3600.0  # age at which a segment that was never finished being made is nobody's
_packed = Struct("<I").pack
_put = Struct("<I").pack_into
_encode = msgspec.msgpack.Encoder().encode
_log = logging.getLogger(__name__)


class Journal:
    """Where one process writes its records; `append` neither waits nor asks the system for anything.

    Segments are made ahead of need, in a thread. While none can be made, records wait in memory, up to a number; what comes
    then is lost, counted and said. All else that touches the disk happens in that thread, too, set off by `tick`.

    Args:
        folder: Folder of the segments of all processes; made where it is missing.
        segment_bytes: Size of each; less where several would not fit into ``max_bytes``.
        max_bytes: Most bytes of all of them; then the oldest finished ones go to the dead letters.
        dead_letter_max_bytes: Most bytes of those; then the oldest are deleted.
    """

    def __init__(self, folder: Path, segment_bytes: int, max_bytes: int, dead_letter_max_bytes: int) -> None:
        self.folder = folder
        self.segment_bytes = max(min(segment_bytes, max_bytes // 4), 2 * LARGEST) & -4096
        self.max_bytes = max_bytes
        self.dead_letter_max_bytes = dead_letter_max_bytes
        self.records = 0  # written
        self.lost = 0
        self.dead_lettered = 0  # records in segments that this process moved to the dead letters
        self.discarded = 0  # dead letters that this process deleted, in segments
        self.pending_bytes = 0  # not shipped yet, of all processes, as of the last look
        self.trouble = ""  # why no segment can be made
        self._names = RequestIds(time.time)
        self._current: Segment | None = None
        self._spare: Segment | None = None
        self._waiting: deque[bytes] = deque()
        self._making = False
        self._opened_s = self._looked_s = self._said_s = 0.0
        self._said_lost = 0
        self._thread: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Make the first segment; what fails is said, and tried again by `tick`. Blocks."""
        self._turn()
        self._thread = ThreadPoolExecutor(1, "journal")

    def append(self, record: UsageRecord | tuple[Any, ...]) -> None:
        """Write a record, or its values; on return it survives the death of this process, though not yet that of the machine."""
        if self._waiting:
            self._drain()
        try:
            payload = _encode(record)
        except (OverflowError, ValueError):  # a count beyond all bounds, text that is none
            self.lost += 1
            return
        size = len(payload)
        if size > LARGEST:
            self.lost += 1
            return
        framed = _packed(size) + payload
        if self._waiting or not self._write(framed):
            if len(self._waiting) < _WAITING:
                self._waiting.append(framed)
            else:
                self.lost += 1

    def _write(self, framed: bytes) -> bool:
        """Put a payload, behind its length, into the current segment or the next; False where there is no room."""
        size = len(framed)
        segment = self._current
        if segment is None or segment.offset + size + 4 > segment.size:
            self._turn()
            if segment is self._current:
                return False
            segment = self._current
            assert segment is not None
        offset = segment.offset
        end = offset + size
        segment.map[offset:end] = framed
        _put(segment.map, end, crc32(framed, segment.salt ^ offset))
        segment.offset = offset = (end + 11) & -8
        segment.records += 1
        self.records += 1
        if offset > segment.size >> 1 and self._spare is None and not self._making:
            self._make_soon()
        return True

    def _drain(self) -> None:
        while self._waiting and self._write(self._waiting[0]):
            self._waiting.popleft()

    def _turn(self) -> None:
        """Go on in the spare segment, where there is one."""
        if self._spare is None and not self._making:
            self._make_soon()
        if self._spare is None:
            return
        if self._current is not None:
            self._later(self._current.close)
        self._current, self._spare = self._spare, None
        self._opened_s = time.monotonic()

    def tick(self, now_s: float) -> None:
        """Once a second: have the disk brought up to date, old segments closed and new ones tried again; say what is wrong.

        Args:
            now_s: Monotonic time.
        """
        if self.trouble:
            self._making = False
        segment = self._current
        if segment is None or (segment.records and now_s - self._opened_s > _OLDEST_S):
            self._turn()
        self._drain()
        if segment is not None and segment is self._current and segment.offset > segment.synced:
            segment.note()
            self._later(segment.sync)
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._later(self._look)
        if self.lost > self._said_lost and now_s - self._said_s >= _SAY_AGAIN_S:
            _log.error(
                "usage records are being lost: %d so far; %s", self.lost, self.trouble or "they come faster than segments can be made"
            )
            self._said_lost, self._said_s = self.lost, now_s

    def stop(self) -> None:
        """Close the segment, with all that waits in it if there is room. Blocks."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._making = False
        self._drain()
        self.lost += len(self._waiting)
        if self._waiting:
            _log.error("%d usage records are lost: %s", len(self._waiting), self.trouble)
            self._waiting.clear()
        for segment in (self._current, self._spare):
            if segment is not None:
                self._later(segment.close)
        self._current = self._spare = None

    def _make_soon(self) -> None:
        self._making = True
        self._later(self._make)

    def _later(self, work: Callable[[], None]) -> None:
        """Do it in the thread; before `start` has ended and from `stop` on, at once."""
        if self._thread is not None:
            self._thread.submit(self._quietly, work)
        else:
            self._quietly(work)

    # In the thread

    def _make(self) -> None:
        if self._spare is not None:  # asked for once more while the disk was slow
            self._making = False
            return
        try:
            self._make_room()
            self._spare = Segment(self.folder / f"{self._names()}{SUFFIX}", self.segment_bytes, int(time.time() * 1000))
            if self.trouble:
                _log.warning("the journal has room again; %d usage records were lost", self.lost)
                self.trouble = ""
            self._making = False
        except OSError as error:  # `tick` has it tried again
            if not self.trouble:
                _log.error("the journal cannot grow: %s; usage records will be lost", error.strerror or error)
            self.trouble = error.strerror or str(error)

    def _make_room(self) -> None:
        """Keep within the bound: the oldest finished segments go to the dead letters.

        Raises:
            OSError: The bound cannot be kept.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = sized(self.folder)
        excess = sum(size for _, size in present) + self.segment_bytes - self.max_bytes
        for path, size in present:
            if excess <= 0:
                return
            if self._bury(path):
                excess -= size
        if excess > 0:
            raise OSError(errno.ENOSPC, "ledger.journal_max_bytes is reached by segments that are being written")

    def _bury(self, path: Path) -> bool:
        """Move a finished segment to the dead letters."""
        descriptor = grasp(path)
        if descriptor < 0:
            return False
        try:
            head = read_head(os.pread(descriptor, START, 0))
            records = max(0, head.records - head.shipped_records) if head is not None else 0
            self.discarded += set_aside(path, self.dead_letter_max_bytes)
            self.dead_lettered += records
            _log.error(
                "the journal is full (ledger.journal_max_bytes): %s with about %d usage records not yet in the store goes to the dead letters",
                path.name,
                records,
            )
        finally:
            os.close(descriptor)
        return True

    def _look(self) -> None:
        """Count what is not shipped yet, and clear away what was never finished being made."""
        pending = 0
        for path in segments(self.folder):
            with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                head = read_head(file.read(START))
                if head is not None:
                    pending += max(0, head.used - max(head.shipped, START))
        self.pending_bytes = pending
        for path in self.folder.glob("*.new"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNREADY_S:
                    with path.open("rb") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        path.unlink()

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            _log.warning("the journal's disk: %s", error)

    def __repr__(self) -> str:
        return f"<Journal {self._current!r} records={self.records} lost={self.lost}>"
