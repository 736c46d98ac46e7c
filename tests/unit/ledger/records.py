"""Records and segments that tests are made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.ledger.journal import Journal
from hx_gateway.ledger.letters import segments
from hx_gateway.ledger.reading import Reading, read
from hx_gateway.ledger.record import VERSION, UsageRecord
from hx_gateway.ledger.segment import START, grasp, read_head

MIB = 1 << 20


def a_record(number: int = 0, **fields: Any) -> UsageRecord:
    """A record; the same for the same number."""
    whole: dict[str, Any] = {
        "version": VERSION,
        "id": f"01{number:024d}",
        "at_ms": 1_700_000_000_000 + number,
        "duration_ms": 12.5,
        "ttft_ms": 3.25,
        "queued_ms": 0.0,
        "load_ms": 0.0,
        "route": "chat",
        "key_id": "",
        "key_name": "someone",
        "team": "a team",
        "user": "",
        "asked": "chat",
        "model": "tiny",
        "group": "",
        "endpoint": "one",
        "attempts": 1,
        "trail": None,
        "status": 200,
        "outcome": "ok",
        "stream": False,
        "cached": "",
        "prompt_tokens": number,
        "completion_tokens": 2,
        "cached_tokens": None,
        "estimated": False,
        "cost": 0.5,
        "engine_ms": 9.0,
        "tags": None,
    }
    return UsageRecord(**{**whole, **fields})


def a_journal(folder: Path, **settings: int) -> Journal:
    """A journal that has not started."""
    return Journal(folder, **{"segment_bytes": 256 << 10, "max_bytes": 4 * MIB, "dead_letter_max_bytes": MIB, **settings})


def reading(data: bytes, finished: bool = True, most: int = 1 << 30) -> Reading:
    """What the bytes of a whole segment give."""
    head = read_head(data)
    return read(data[START:], START, START, head.salt, most, finished) if head is not None else Reading([], START, 0)


def found(folder: Path) -> list[UsageRecord]:
    """All records of all segments of a folder, in order."""
    return [record for path in segments(folder) for record, _ in reading(path.read_bytes(), False).records]


def finished(path: Path) -> bool:
    """Whether nobody writes to a segment."""
    descriptor = grasp(path)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def encoded(records: list[UsageRecord]) -> list[bytes]:
    """To compare records by."""
    return [msgspec.msgpack.encode(record) for record in records]
