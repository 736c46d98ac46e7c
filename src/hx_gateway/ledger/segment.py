"""One file of the journal: its head, and the frames in which records lie so that a torn one is known for what it is.

A segment is made at its full size and filled from the front, through a memory map, by one process that holds a lock on
it as long as it writes: a segment nobody holds is finished, whether its writer closed it or was killed. A frame is::

    length of the payload, 4 bytes | payload | CRC-32 of both, 4 bytes | zeros to the next multiple of 8

The CRC starts from the segment's random salt and the frame's place, so that bytes that look like a frame, in a text that
a client sent or after a copy gone wrong, are none.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import NamedTuple
from zlib import crc32

MAGIC = b"HXJ1"
SUFFIX = ".seg"
START = 64
"""Offset of the first frame."""
LARGEST = 1 << 16
"""Most bytes of a payload."""
_IDENTITY = Struct("<4sIQ")  # magic, salt, created in milliseconds of Unix time; then a CRC-32 of them
_CRC = Struct("<I")
_WRITTEN = Struct("<QQ")  # bytes and records as of the last look, for reports only
_SHIPPED = Struct("<QQ")
_WRITTEN_AT, _SHIPPED_AT = 24, 40
_ZEROS = bytes(1 << 18)
_GET_FLAGS, _SET_FLAGS, _IN_PLACE = 0x80086601, 0x40086602, 0x00800000  # Linux: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL


class Head(NamedTuple):
    """What a segment says of itself; the counts may be a second old."""

    salt: int
    created_ms: int
    used: int
    records: int
    shipped: int
    shipped_records: int


def read_head(data: bytes) -> Head | None:
    """The head in the first `START` bytes of a segment; None where it is no segment, or damaged."""
    if len(data) < START or data[:4] != MAGIC:
        return None
    identity = data[: _IDENTITY.size]
    if crc32(identity) != _CRC.unpack_from(data, _IDENTITY.size)[0]:
        return None
    _, salt, created_ms = _IDENTITY.unpack(identity)
    return Head(salt, created_ms, *_WRITTEN.unpack_from(data, _WRITTEN_AT), *_SHIPPED.unpack_from(data, _SHIPPED_AT))


def payload_at(data: bytes | memoryview, at: int, place: int, salt: int) -> bytes | None:
    """The payload of the frame that begins at ``data[at]``; None where no whole frame does.

    Args:
        data: Bytes of a segment.
        at: Index into them, a multiple of 8.
        place: Offset of that byte in the segment.
        salt: The segment's.
    """
    if at + 8 > len(data):
        return None
    size = int.from_bytes(data[at : at + 4], "little")
    end = at + 4 + size
    if not 0 < size <= LARGEST or end + 4 > len(data):
        return None
    framed = data[at:end]
    if crc32(framed, salt ^ place) != int.from_bytes(data[end : end + 4], "little"):
        return None
    return bytes(framed[4:])


def after(place: int, size: int) -> int:
    """Offset of the frame that follows one with a payload of ``size`` bytes."""
    return (place + size + 15) & -8


class Segment:
    """A segment being written, by the one process that holds its lock.

    Args:
        path: Where it is to be; appears there only when it is ready and locked.
        size: Bytes it takes on disk, at once and for good: writing to it later cannot fail for want of room.
        created_ms: Unix time.

    Raises:
        OSError: No room, or no right to write there.
    """

    __slots__ = ("created_ms", "descriptor", "map", "offset", "path", "records", "salt", "size", "synced")

    def __init__(self, path: Path, size: int, created_ms: int) -> None:
        self.path = path
        self.size = size
        self.salt = int.from_bytes(os.urandom(4), "little")
        self.created_ms = created_ms
        self.records = 0
        self.offset = self.synced = START
        unready = path.with_suffix(".new")
        self.descriptor = os.open(unready, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
            _in_place(self.descriptor)
            os.posix_fallocate(self.descriptor, 0, size)
            for start in range(0, size, len(_ZEROS)):  # pages that were written once need no work of the file system again
                os.pwrite(self.descriptor, _ZEROS[: size - start], start)
            identity = _IDENTITY.pack(MAGIC, self.salt, created_ms)
            os.pwrite(self.descriptor, identity + _CRC.pack(crc32(identity)), 0)
            self.map = mmap.mmap(self.descriptor, size)
            unready.rename(path)
        except BaseException:
            os.close(self.descriptor)
            unready.unlink(missing_ok=True)
            raise

    def note(self) -> None:
        """Write down how far it is filled, for reports."""
        self.map[_WRITTEN_AT : _WRITTEN_AT + 16] = _WRITTEN.pack(self.offset, self.records)

    def sync(self) -> None:
        """Have the disk hold what is written; blocks."""
        if self.offset > self.synced:
            offset = self.offset
            os.fdatasync(self.descriptor)
            self.synced = offset

    def close(self) -> None:
        """Give back what it did not fill, and let go of it: whoever reads it knows it as finished. Blocks."""
        self.note()
        self.map.close()
        try:
            if self.records:
                os.ftruncate(self.descriptor, self.offset)
                self.sync()
            else:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(self.descriptor)

    def __repr__(self) -> str:
        return f"<Segment {self.path.name} records={self.records} {self.offset}/{self.size}>"


def _in_place(descriptor: int) -> None:
    """Have btrfs overwrite an empty file in place: with a copy for each change, a full disk would end the process with a signal."""
    with suppress(OSError):  # other file systems do so anyway, or cannot
        flags = bytearray(8)
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        flags[:4] = (int.from_bytes(flags[:4], "little") | _IN_PLACE).to_bytes(4, "little")
        fcntl.ioctl(descriptor, _SET_FLAGS, flags)


def grasp(path: Path) -> int:
    """Lock a finished segment for reading or moving it; returns its descriptor, to be closed; -1 where it is gone or held by another."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # else it went between opening and locking
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return -1


def note_shipped(descriptor: int, offset: int, records: int) -> None:
    """Write into a segment's head how far it was read, for reports."""
    os.pwrite(descriptor, _SHIPPED.pack(offset, records), _SHIPPED_AT)
