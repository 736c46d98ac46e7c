"""What processes of one machine share memory by: a file or memory without a name, and record locks that die with their holder."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

_RECORD = struct.Struct("hhqqi4x")  # struct flock


def shared_memory() -> int:
    """A file descriptor of memory that forked children can open as a `Table`; -1 where the system has none."""
    return os.memfd_create("limits") if hasattr(os, "memfd_create") else -1


def opened(path: Path | None, inherited: int) -> int:
    """A file descriptor of a file, of `shared_memory` that came along from the parent, or of memory of one's own."""
    if path is not None:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    if inherited >= 0:
        # Opened again: locks belong to what was opened, and one that came along from the parent would be everybody's.
        return os.open(f"/proc/self/fd/{inherited}", os.O_RDWR | os.O_CLOEXEC)
    made = shared_memory()
    if made >= 0:
        return made
    handle, name = tempfile.mkstemp()
    os.unlink(name)
    return handle


def boot() -> bytes:
    """16 bytes that change when the machine starts anew, and with it the monotonic clock."""
    try:
        return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return b"%16d" % ((time.time() - time.monotonic()) // 3600)


def record(fd: int, place: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """What takes the record lock of one byte, or raises OSError, and what gives it back.

    The lock is of what was opened, not of the process: another table on the same file in this process is kept out, too, and
    closing it does not give ours back. Where the system has only those of a process, they do for one gateway in each.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return partial(fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place), partial(fcntl.lockf, fd, fcntl.LOCK_UN, 1, place)
    taken, given = (_RECORD.pack(kind, 0, place, 1, 0) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
    return partial(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, taken), partial(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, given)
