"""Where counts live: a page of shared memory for each worker, so that one scrape shows all of them and none is lost with a worker."""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator
from time import monotonic
from typing import NamedTuple, TypeAlias

PAGE = 8 << 20
"""Bytes of one worker's page; memory is taken only for what is written to."""
OTHER = "other"
"""Value of every label once a page is full."""
_HEAD = 64  # of a page: bytes used, monotonic time of the last `beat`, and of the first page a word for all (see `word`)
_SPARE = 1 << 18  # of a page, for series that count all that found no place
_STALE_S = 10.0  # gauges of a worker that has been silent for so long are not shown
_LENGTHS = struct.Struct("<II")  # of an entry: bytes of the key, cells

Cells: TypeAlias = "memoryview[float]"
"""Numbers of one series, as doubles; exact up to 2**53."""


def shared_pages(count: int) -> mmap.mmap:
    """Memory for ``count`` workers that are forked after this."""
    return mmap.mmap(-1, count * PAGE)


class Entry(NamedTuple):
    """One series of one worker.

    Args:
        name: The family it belongs to.
        labels: Values of its labels.
        cells: Its numbers.
    """

    name: str
    labels: tuple[str, ...]
    cells: Cells


class Book:
    """The counts of one worker, written in place, and those of its siblings, to be read.

    A worker that takes the place of another goes on counting where that one ended, however it ended. What a request
    changes is one aligned double at a time: a reader in another process sees it whole, and a kill leaves it whole.

    Args:
        memory: Of `shared_pages`; None for a gateway of one process.
        number: Which page is ours.
    """

    __slots__ = ("_bytes", "_doubles", "_known", "_longs", "_places", "_read", "_reading", "_start", "full", "memory", "number")

    def __init__(self, memory: mmap.mmap | None = None, number: int = 0) -> None:
        self.memory = memory if memory is not None else shared_pages(1)
        self.number = number
        self.full = False
        self._reading = threading.Lock()  # reports are made in threads, beside the event loop
        self._bytes = memoryview(self.memory)
        self._doubles = self._bytes.cast("d")
        self._longs = self._bytes.cast("Q")
        self._start = number * PAGE
        self._places = [0] * (len(self.memory) // PAGE)  # bytes read of each page
        self._read: list[list[Entry]] = [[] for _ in self._places]
        self._known: dict[tuple[str, tuple[str, ...]], Cells] = {}
        if not self._longs[self._start >> 3]:
            self._longs[self._start >> 3] = _HEAD
        self._known = {(name, labels): cells for name, labels, cells in self.page(number)}

    def __repr__(self) -> str:
        return f"<Book page {self.number} of {len(self._places)}, {len(self._known)} series>"

    def cells(self, name: str, labels: tuple[str, ...], width: int) -> Cells:
        """The numbers of a series, all zero when it is new.

        Args:
            name: Of its family; all series of a family have the same number of labels and cells.
            labels: Values of its labels.
            width: How many numbers.
        """
        found = self._known.get((name, labels))
        if found is None:
            found = self._known[name, labels] = self._made(name, labels, width)
        return found

    def _made(self, name: str, labels: tuple[str, ...], width: int) -> Cells:
        key = "\0".join((name, *(label.replace("\0", " ") for label in labels))).encode("utf-8", "replace")
        padded = (len(key) + 7) & -8
        used = self._longs[self._start >> 3]
        size = 8 + padded + 8 * width
        others = (OTHER,) * len(labels)
        if used + size > (PAGE if labels == others else PAGE - _SPARE):
            self.full = True
            if labels != others:
                return self.cells(name, others, width)
            return memoryview(bytearray(8 * width)).cast("d")  # nobody will see them
        at = self._start + used
        _LENGTHS.pack_into(self._bytes, at, len(key), width)
        self._bytes[at + 8 : at + 8 + len(key)] = key
        first = (at + 8 + padded) >> 3
        cells = self._doubles[first : first + width]
        for number in range(width):  # a predecessor may have been killed before it had entered what it wrote
            cells[number] = 0.0
        self._longs[self._start >> 3] = used + size
        return cells

    def page(self, number: int) -> list[Entry]:
        """What a worker has counted, in the order it began to."""
        start, entries = number * PAGE, self._read[number]
        with self._reading:
            at, end = self._places[number] or _HEAD, self._longs[start >> 3]
            while at < end:
                length, width = _LENGTHS.unpack_from(self._bytes, start + at)
                name, *labels = bytes(self._bytes[start + at + 8 : start + at + 8 + length]).decode().split("\0")
                first = (start + at + 8 + ((length + 7) & -8)) >> 3
                entries.append(Entry(name, tuple(labels), self._doubles[first : first + width]))
                at = (first + width << 3) - start
            self._places[number] = at
        return entries

    def pages(self) -> Iterator[tuple[list[Entry], float]]:
        """Every worker's page, with the time of its last `beat`; 0.0 where it has ended or been silent for long."""
        for number in range(len(self._places)):
            beat_s = self._doubles[(number * PAGE >> 3) + 1]
            yield self.page(number), beat_s if monotonic() - beat_s < _STALE_S else 0.0

    def beat(self, now_s: float) -> None:
        """Say that every gauge that carries this time as its second number is of now; 0.0 when there will be none any more."""
        self._doubles[(self._start >> 3) + 1] = now_s

    @property
    def word(self) -> float:
        """A number that every worker sees, whoever set it."""
        return float(self._doubles[2])

    @word.setter
    def word(self, value: float) -> None:
        self._doubles[2] = value
