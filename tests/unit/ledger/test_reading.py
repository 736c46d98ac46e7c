"""Reading segments back: whatever became of the bytes, never a wrong record, never one twice, never an exception."""

from __future__ import annotations

import struct
import tempfile
from functools import cache
from pathlib import Path
from zlib import crc32

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ledger.records import a_journal, a_record, encoded, reading

from hx_gateway.ledger.letters import segments
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import START, read_head

COUNT = 40


@cache
def written() -> tuple[bytes, tuple[bytes, ...]]:
    """A segment as a killed process leaves it, with the records in it."""
    with tempfile.TemporaryDirectory() as folder:
        journal = a_journal(Path(folder))
        journal.start()
        records = [a_record(number, user="u" * (number * 7 % 50)) for number in range(COUNT)]
        for record in records:
            journal.append(record)
        data = segments(Path(folder))[0].read_bytes()
        journal.stop()
    return data[: 64 << 10], tuple(encoded(records))


def ids(data: bytes, finished: bool) -> list[int]:
    """Which of the records are found; every one must be as it was written."""
    _, known = written()
    return [known.index(one) for one in encoded([record for record, _ in reading(data, finished).records])]


@given(st.integers(0, 16_000), st.booleans())
def test_a_truncated_segment_gives_a_beginning_of_what_was_written(size: int, finished: bool) -> None:
    found = ids(written()[0][:size], finished)
    assert found == list(range(len(found)))
    ends = [end for _, end in reading(written()[0]).records]
    assert len(found) >= sum(end <= size for end in ends)


@given(st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 255)), min_size=1, max_size=5), st.booleans())
def test_flipped_bits_cost_the_records_they_hit_and_no_other(flips: list[tuple[int, int]], finished: bool) -> None:
    data = bytearray(written()[0])
    for place, bits in flips:
        data[place] ^= bits
    found = ids(bytes(data), finished)
    assert found == sorted(set(found))
    ends = [START, *(end for _, end in reading(written()[0]).records)]
    touched = {number for number in range(COUNT) for place, _ in flips if ends[number] <= place < ends[number + 1]}
    untouched = set(range(COUNT)) - touched
    if all(place >= START for place, _ in flips):
        if finished:
            assert untouched <= set(found)
        else:
            assert set(range(min(touched, default=COUNT))) <= set(found)


@given(st.integers(0, COUNT - 1), st.integers(0, 300), st.binary(max_size=64))
def test_a_torn_write_at_the_end_is_the_end(last: int, kept: int, rest: bytes) -> None:
    data, _ = written()
    ends = [START, *(end for _, end in reading(data).records)]
    torn = min(ends[last] + kept, ends[last + 1] - 9)  # the CRC is not there yet
    found = ids(data[:torn] + bytes(len(data) - torn), True)
    assert found == list(range(last))
    assert ids(data[:torn] + rest, True)[:last] == list(range(last))


@given(st.binary(max_size=4096))
def test_bytes_that_never_were_a_segment_hold_nothing(data: bytes) -> None:
    assert reading(data).records == []
    assert reading(written()[0][:START] + data).records == []


def test_a_frame_inside_a_text_or_at_another_place_is_none() -> None:
    """What a client sends cannot forge a record, even where damage makes the reader look for the next one."""
    payload = msgspec.msgpack.encode(a_record(999))
    framed = struct.pack("<I", len(payload)) + payload
    data, _ = written()
    head = read_head(data)
    assert head is not None
    start = reading(data).end
    for salt in (0, start, head.salt):  # also one who knew the salt, but not the place
        forged = framed + struct.pack("<I", crc32(framed, salt))
        assert reading(data[:start] + bytes(8) + forged + bytes(64)).records == reading(data).records
    copied = data[START : reading(data).records[0][1]]
    assert len(reading(data[:start] + copied + bytes(64)).records) == COUNT


def test_damage_is_counted_where_records_follow_it() -> None:
    data = bytearray(written()[0])
    _, ends = zip(*reading(bytes(data)).records, strict=True)
    data[ends[4] + 20] ^= 1
    assert reading(bytes(data)).damaged == 1 and len(reading(bytes(data)).records) == COUNT - 1
    assert reading(written()[0][: ends[-1] - 3]).damaged == 0, "a torn end is no damage"


def test_reading_goes_on_where_it_stopped() -> None:
    data, known = written()
    first = reading(data, most=7)
    assert len(first.records) == 7
    head = read_head(data)
    assert head is not None
    from hx_gateway.ledger.reading import read

    rest = read(data[START:], START, first.end, head.salt, 1000, False)
    assert encoded([record for record, _ in [*first.records, *rest.records]]) == list(known)


def test_records_of_older_and_newer_releases_can_be_read() -> None:
    whole = msgspec.to_builtins(a_record(5))
    older = msgspec.msgpack.decode(msgspec.msgpack.encode(whole[:28]), type=UsageRecord)
    assert older.tags is None and older.engine_ms == 9.0
    newer = msgspec.msgpack.decode(msgspec.msgpack.encode([*whole, "more", {"to": "come"}]), type=UsageRecord)
    assert newer == a_record(5)
