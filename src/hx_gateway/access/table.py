"""`limits.map`: counters that every worker of a machine shares through one memory-mapped file, exact and with no server in between."""

from __future__ import annotations

import logging
import mmap
import os
import secrets
import struct
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

from hx_gateway.access.sharing import boot, opened, record

_MAGIC = b"HXLIMIT1"
_HEAD = 4096  # bytes in front of the slots
_COPY = 128  # bytes of each of a slot's two copies of its state
_COLUMNS = 256  # processes; for each and slot two bytes (requests) and twice eight (tokens, money) of what is under way
_COUNTS, _TOKENS, _COSTS = 2 * _COPY, 2 * _COPY + 2 * _COLUMNS, 2 * _COPY + 10 * _COLUMNS  # where they stand in a slot
_SLOT = 2 * _COPY + 18 * _COLUMNS
SLOTS = 2048
SIZE = _HEAD + SLOTS * _SLOT
_RESERVED = 2  # slots for limits of the gateway itself
_PROBES = 512  # slots looked at for one key
_STALE_DAYS = 63  # a key that has not called for this long has no budget to remember
_SPIN_S = 0.001
_PATIENCE_S = 1.0  # for the lock of the table, taken at start and at the first call of a key
_HIGH = 64 // 2  # where the head counts the columns ever taken, in units of two bytes
_COLUMN_LOCKS = 1 << 30  # locks of columns: bytes behind the end of the file
_FIELDS = struct.Struct("<Q16sddIIqqqq")
_CHECK = struct.Struct("<I")
_FREED = b"\x00" * 15 + b"\x01"  # the key of a slot that was reset: not empty, so that what was put behind it is still found
_log = logging.getLogger(__name__)


class TableError(Exception):
    """The file cannot be used; the message says why."""


class State:
    """What is kept for one key.

    Attributes:
        key: Which key, 16 bytes.
        requests: Monotonic second until which the rate of requests is used (GCRA's theoretical arrival time).
        tokens: The same for the tokens that were used.
        day: Days since the epoch (UTC) that the day's sums are of.
        month: Year x 12 + month - 1 that the month's sums are of.
        day_tokens, month_tokens: Tokens used.
        day_cost, month_cost: Money used, in 1e-9 of the operator's currency.
    """

    __slots__ = ("day", "day_cost", "day_tokens", "key", "month", "month_cost", "month_tokens", "number", "place", "requests", "tokens")

    def __init__(self, key: bytes = b"") -> None:
        self.key = key
        self.number = self.place = 0
        self.requests = self.tokens = 0.0
        self.day = self.month = 0
        self.day_tokens = self.month_tokens = self.day_cost = self.month_cost = 0


class Table:
    """Fixed slots in a mapped file, found by a key's hash; the first two are the gateway's own.

    A slot has two copies of its state with number and checksum, written in turn: a process killed while it writes leaves
    the other. Whoever decides holds the slot's record lock, which the kernel takes back from the dead. What is under way
    (requests, and tokens and money reserved for them) has one column for each process, written by it alone; a process
    shows that it lives by a lock on its column, and the others clear the columns of the dead.

    Args:
        path: The file, made if it is missing; None for memory that no other process sees.
        inherited: Instead of a path: file descriptor of `shared_memory` that came along from the parent.
        counts: Whether this process may have requests under way.

    Raises:
        TableError: The file cannot be used.
    """

    def __init__(self, path: Path | None = None, inherited: int = -1, counts: bool = True) -> None:
        self.path = path
        self._records: dict[int, tuple[Callable[[], object], Callable[[], object]]] = {}
        try:
            self._fd = opened(path, inherited)
            if not self._prepare() and path is not None:
                os.close(self._fd)
                os.replace(path, path.with_name(f"{path.name}.unusable"))
                _log.warning(
                    "%s was not written by this release or is damaged; it is kept as %s.unusable, limits start anew", path, path.name
                )
                self._records = {}
                self._fd = opened(path, -1)
                self._prepare()
            self._map = mmap.mmap(self._fd, SIZE)
        except OSError as error:
            raise TableError(f"{path or 'shared memory'}: {error.strerror or error}") from None
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("H")
        self._longs = self._bytes.cast("Q")
        self.id = bytes(self._bytes[40:56]).hex()
        self.column = self._take_column() if counts else -1
        self._looked_s = 0.0

    def __repr__(self) -> str:
        return f"<Table {self.path or 'in memory'} column={self.column} of {self._words[_HIGH]}>"

    def close(self) -> None:
        """Give everything back; counts of this process are cleared."""
        if self.column >= 0:
            self._clear(self.column)
        for view in (self._longs, self._words, self._bytes):
            view.release()
        self._map.close()
        os.close(self._fd)

    def _prepare(self) -> bool:
        """Make a new file ready, or check one that is there; whether it can be used."""
        if not self._acquire_within(0, _PATIENCE_S):
            raise OSError("another process holds it")
        try:
            size = os.fstat(self._fd).st_size
            booted = boot()
            head = _MAGIC + struct.pack("<IIII", SLOTS, _SLOT, _COLUMNS, 0)
            if not size:
                if self.path is not None and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._fd, 0, SIZE)  # writing to a hole of a full disk would be the end of the process
                else:
                    os.ftruncate(self._fd, SIZE)
                os.pwrite(self._fd, head + booted + secrets.token_bytes(16), 0)
                return True
            known = os.pread(self._fd, 56, 0)
            if size != SIZE or known[:24] != head:
                return False
            if known[24:40] != booted:  # monotonic times of before mean nothing now
                self._forget_times()
                os.pwrite(self._fd, booted, 24)
            return True
        finally:
            self._release(0)

    def _forget_times(self) -> None:
        with mmap.mmap(self._fd, SIZE) as whole:
            for place in range(_HEAD, SIZE, _SLOT):
                for copy in (place, place + _COPY):
                    fields = _FIELDS.unpack_from(whole, copy + 8)
                    if fields[0] and _CHECK.unpack_from(whole, copy)[0] == crc32(whole[copy + 8 : copy + 8 + _FIELDS.size]):
                        _FIELDS.pack_into(whole, copy + 8, *fields[:2], 0.0, 0.0, *fields[4:])
                        _CHECK.pack_into(whole, copy, crc32(whole[copy + 8 : copy + 8 + _FIELDS.size]))

    # Locks

    def acquire(self, index: int) -> bool:
        """Take the lock of a slot, waiting a millisecond at most; whether it was had."""
        place = _HEAD + index * _SLOT
        return self._lock(place) or self._acquire_within(place, _SPIN_S)

    def release(self, index: int) -> None:
        """Give the lock of a slot back."""
        self._release(_HEAD + index * _SLOT)

    def _acquire_within(self, place: int, patience_s: float) -> bool:
        give_up_s = time.monotonic() + patience_s
        while not self._lock(place):
            if time.monotonic() > give_up_s:
                return False
            os.sched_yield()
        return True

    def _lock(self, place: int) -> bool:
        words = self._records.get(place) or self._record(place)
        try:
            words[0]()
        except OSError:
            return False
        return True

    def _release(self, place: int) -> None:
        self._records[place][1]()

    def _record(self, place: int) -> tuple[Callable[[], object], Callable[[], object]]:
        words = self._records[place] = record(self._fd, place)
        return words

    # Slots

    def read(self, index: int, state: State) -> bool:
        """Fill ``state`` from the newer good copy of a slot; whether there is one. Needs no lock, but is exact only with it.

        A state that was read or written here last, and by nobody since, is taken to be as it was.
        """
        first = _HEAD + index * _SLOT
        second = first + _COPY
        longs = self._longs
        newer, older = longs[first + 8 >> 3], longs[second + 8 >> 3]
        if older > newer:
            newer, first, second = older, second, first
        if newer == state.number and first == state.place:
            return True
        for place in (first, second):
            if _CHECK.unpack_from(self._map, place)[0] == crc32(self._bytes[place + 8 : place + 8 + _FIELDS.size]):
                (
                    state.number, state.key, state.requests, state.tokens, state.day, state.month,
                    state.day_tokens, state.month_tokens, state.day_cost, state.month_cost,
                ) = _FIELDS.unpack_from(self._map, place + 8)  # fmt: skip
                state.place = place
                return True
        return False

    def write(self, index: int, state: State) -> None:
        """Write the state over the older copy of a slot; the caller holds its lock and has read it."""
        first = _HEAD + index * _SLOT
        place = first + _COPY if state.place == first else first
        state.number += 1
        _FIELDS.pack_into(
            self._map, place + 8, state.number, state.key, state.requests, state.tokens, state.day, state.month,
            state.day_tokens, state.month_tokens, state.day_cost, state.month_cost,
        )  # fmt: skip
        _CHECK.pack_into(self._map, place, crc32(self._bytes[place + 8 : place + 8 + _FIELDS.size]))
        state.place = place

    def find(self, key: bytes, day: int, fixed: int = -1, make: bool = True) -> int:
        """The slot of a key, taken now if it has none and ``make`` says so; -1 where there is none to be had.

        Args:
            key: 16 bytes.
            day: Days since the epoch; decides which slots are stale.
            fixed: The slot it must have.
        """
        start = int.from_bytes(key[:8], "little")
        places = [fixed] if fixed >= 0 else [_RESERVED + (start + step) % (SLOTS - _RESERVED) for step in range(_PROBES)]
        state = State()
        for index in places:
            if self._vacant(index):
                break
            if self.read(index, state) and state.key == key:
                return index
        if not make or not self._acquire_within(0, _PATIENCE_S):
            return -1
        try:
            return self._insert(key, day, places)
        finally:
            self._release(0)

    def _vacant(self, index: int) -> bool:
        place = (_HEAD + index * _SLOT + 8) >> 3
        return not self._longs[place] and not self._longs[place + (_COPY >> 3)]

    def _insert(self, key: bytes, day: int, places: list[int]) -> int:
        taken = -1
        state = State()
        for index in places:
            if self._vacant(index):
                taken = index if taken < 0 else taken
                break
            if not self.sound(index, state):
                return -1
            if state.key == key:
                return index
            if taken < 0 and (state.key == _FREED or state.day + _STALE_DAYS < day) and not self.requests(index):
                taken = index
        if taken >= 0 and self.acquire(taken):
            fresh = State(key)
            fresh.day = day
            if self.read(taken, state):
                fresh.number, fresh.place = state.number, state.place
            self.write(taken, fresh)
            self.release(taken)
            return taken
        return -1

    def sound(self, index: int, state: State) -> bool:
        """Read a slot as `read` does, but reset it where both copies are damaged; False where its lock cannot be had."""
        if self.read(index, state):
            return True
        if not self.acquire(index):
            return False
        if not self.read(index, state):
            state.__init__(_FREED)  # type: ignore[misc]
            self.reset(index, state)
        self.release(index)
        return True

    def reset(self, index: int, state: State) -> None:
        """Put a fresh state into a slot of which both copies are damaged; the caller holds its lock."""
        _log.error("slot %d of %s is damaged; what it counted starts at zero", index, self.path or "the shared limits")
        start = _HEAD + index * _SLOT
        self._bytes[start : start + 2 * _COPY] = bytes(2 * _COPY)
        self.write(index, state)

    # Columns: what is under way

    def add(self, index: int, requests: int, tokens: int = 0, cost: int = 0) -> None:
        """Change what this process has under way in a slot."""
        column, place = self.column, _HEAD + index * _SLOT
        if column >= 0:
            words, longs = self._words, self._longs
            at = (place + _COUNTS >> 1) + column
            words[at] = min(max(0, words[at] + requests), 65535)
            if tokens or cost:
                at = (place + _TOKENS >> 3) + column
                longs[at] = max(0, longs[at] + tokens)
                at += _COLUMNS
                longs[at] = max(0, longs[at] + cost)

    def requests(self, index: int) -> int:
        """Requests under way in a slot, of all processes."""
        start = _HEAD + index * _SLOT + _COUNTS >> 1
        return sum(self._words[start : start + self._words[_HIGH]])

    def reserved(self, index: int) -> tuple[int, int]:
        """Tokens and money reserved in a slot, by all processes."""
        start = _HEAD + index * _SLOT + _TOKENS >> 3
        count, longs = self._words[_HIGH], self._longs
        return sum(longs[start : start + count]), sum(longs[start + _COLUMNS : start + _COLUMNS + count])

    def mine(self, index: int) -> tuple[int, int, int]:
        """Requests, tokens and money that this process has under way in a slot."""
        column, place = self.column, _HEAD + index * _SLOT
        if column < 0:
            return 0, 0, 0
        at = (place + _TOKENS >> 3) + column
        return int(self._words[(place + _COUNTS >> 1) + column]), int(self._longs[at]), int(self._longs[at + _COLUMNS])

    def processes(self) -> int:
        """How many processes share the table at most."""
        return max(1, int(self._words[_HIGH]))

    def take_back(self, now_s: float) -> bool:
        """Clear the columns of processes that are gone, at most ten times a second; whether it was looked."""
        if now_s - self._looked_s < 0.1:
            return False
        self._looked_s = now_s
        for column in range(self._words[_HIGH]):
            if column != self.column and self._lock(_COLUMN_LOCKS + column):
                self._clear(column)
                self._release(_COLUMN_LOCKS + column)
        return True

    def _take_column(self) -> int:
        for column in range(_COLUMNS):
            if self._lock(_COLUMN_LOCKS + column):
                self._clear(column)
                if self._acquire_within(0, _PATIENCE_S):
                    self._words[_HIGH] = max(self._words[_HIGH], column + 1)
                    self._release(0)
                    return column
                break
        _log.warning("more than %d processes share %s: concurrent requests of this one are not counted", _COLUMNS, self.path)
        return -1

    def _clear(self, column: int) -> None:
        for view, start, step in (
            (self._words, (_HEAD + _COUNTS >> 1) + column, _SLOT >> 1),
            (self._longs, (_HEAD + _TOKENS >> 3) + column, _SLOT >> 3),
            (self._longs, (_HEAD + _COSTS >> 3) + column, _SLOT >> 3),
        ):
            for number, count in enumerate(view[start::step].tolist()):
                if count:
                    view[start + number * step] = 0
