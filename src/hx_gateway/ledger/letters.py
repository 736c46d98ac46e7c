"""Dead letters: what could not be brought into the store is kept beside the journal, up to a bound, for people to look at."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import SUFFIX

FOLDER = "dead-letter"
"""Its name in the journal's folder. A segment moved back from there is shipped as if it had never left."""
ROWS = "rows.jsonl"
_log = logging.getLogger(__name__)


def segments(folder: Path) -> list[Path]:
    """The segments in a folder, oldest first."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def sized(folder: Path) -> list[tuple[Path, int]]:
    """The same with their sizes in bytes."""
    found: list[tuple[Path, int]] = []
    for path in segments(folder):
        with suppress(FileNotFoundError):
            found.append((path, path.stat().st_size))
    return found


def set_aside(path: Path, most_bytes: int) -> int:
    """Move a segment to the dead letters of its folder; blocks.

    Args:
        path: A finished segment, locked by the caller.
        most_bytes: Of all dead letters; beyond it the oldest are deleted.

    Returns:
        How many segments were deleted for it.

    Raises:
        OSError: It cannot be moved.
    """
    folder = path.parent / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    path.rename(folder / path.name)
    letters = sized(folder)
    excess = sum(size for _, size in letters) - most_bytes
    deleted = 0
    for letter, size in letters:
        if excess <= 0:
            break
        letter.unlink(missing_ok=True)
        excess -= size
        deleted += 1
        _log.error("the dead letters are full (ledger.dead_letter_max_bytes): %s is deleted", letter.name)
    return deleted


def set_row_aside(folder: Path, segment: str, record: UsageRecord, reason: str, most_bytes: int) -> None:
    """Write down a record that the store refuses, as a line of JSON; blocks.

    Args:
        folder: The journal's.
        segment: Where it stood.
        record: The record.
        reason: What the store said.
        most_bytes: Size at which the file is put by, in place of the one put by before.

    Raises:
        OSError: It cannot be written.
    """
    path = folder / FOLDER / ROWS
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        if path.stat().st_size > most_bytes:
            path.replace(path.with_suffix(".old.jsonl"))
    fields: dict[str, Any] = {name: getattr(record, name) for name in record.__struct_fields__}
    line = msgspec.json.encode({"reason": reason, "segment": segment, "record": fields}) + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
