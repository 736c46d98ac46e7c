"""Segments of the journal back to records: never a wrong one, never one twice, and a torn end is simply the end."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import after, payload_at

_decode = msgspec.msgpack.Decoder(UsageRecord).decode


class Reading(NamedTuple):
    """What was found from an offset on.

    Args:
        records: Each with the offset behind it, in the order written.
        end: Offset to go on from.
        damaged: Places where something stood that is no whole record, with whole records behind it.
    """

    records: list[tuple[UsageRecord, int]]
    end: int
    damaged: int


def read(data: bytes, base: int, start: int, salt: int, most: int, finished: bool) -> Reading:
    """Read records.

    Args:
        data: The segment's bytes from offset ``base`` to its end.
        base: A multiple of 8.
        start: Offset of the first record to read.
        salt: The segment's.
        most: Records after which to stop.
        finished: Whether nobody writes to it any more. In a segment being written, what is no whole record may be one in a
            moment: reading stops there. In a finished one, damage is skipped up to the next whole record.
    """
    records: list[tuple[UsageRecord, int]] = []
    at = start - base
    damaged = 0
    while len(records) < most:
        payload = payload_at(data, at, base + at, salt)
        if payload is None:
            following = _resume(data, at, base, salt) if finished else -1
            if following < 0:
                break
            damaged += 1
            at = following
            continue
        at = after(base + at, len(payload)) - base
        try:
            records.append((_decode(payload), base + at))
        except (msgspec.DecodeError, UnicodeDecodeError):
            damaged += 1  # whole, but of a kind this release cannot read
    return Reading(records, base + at, damaged)


def _resume(data: bytes, at: int, base: int, salt: int) -> int:
    """Index of the next whole frame behind ``at``; -1 for none."""
    end = len(data.rstrip(b"\0"))
    for index in range(at + 8, end, 8):
        if payload_at(data, index, base + index, salt) is not None:
            return index
    return -1
