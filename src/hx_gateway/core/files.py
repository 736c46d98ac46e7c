"""Small files that other processes read: written whole or not at all, and readable for their owner alone."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace(path: Path, data: bytes, durable: bool = False) -> None:
    """Give a file other content in one step: who reads it sees what was before, or this.

    Args:
        path: The file, in a folder that only its owner may write to; it need not exist.
        data: The content.
        durable: Whether it, and not what was before, must be there after a power cut; takes as long as the disk does.

    Raises:
        OSError: It cannot be written; what was before is left.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        with os.fdopen(os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600), "wb") as stream:
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
