"""The journal: what was appended is there, whatever happens to its writer or to the disk."""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from pathlib import Path

import pytest
from tests.unit.ledger.records import MIB, a_journal, a_record, encoded, finished, found, reading

from hx_gateway.ledger import journal as room
from hx_gateway.ledger.journal import Journal
from hx_gateway.ledger.letters import FOLDER, segments
from hx_gateway.ledger.segment import START, grasp, note_shipped, read_head


def until(journal: Journal, condition: object) -> None:
    """Tick until the condition holds."""
    give_up_s = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up_s
        time.sleep(0.002)
        journal.tick(time.monotonic())


def fill(journal: Journal, numbers: range) -> None:
    """Append records as fast as segments can be made for them."""
    for number in numbers:
        journal.append(a_record(number))
        if journal._waiting:
            until(journal, lambda: not journal._waiting)


def test_what_was_appended_is_read_back_in_order_while_it_is_being_written(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    records = [a_record(number, user="ö" * (number % 40), trail=[("one", "upstream_reset", 1.5)]) for number in range(50)]
    for record in records:
        journal.append(record)
    assert encoded(found(tmp_path)) == encoded(records)
    assert not finished(segments(tmp_path)[0])
    journal.stop()
    assert encoded(found(tmp_path)) == encoded(records)
    assert journal.records == 50 and journal.lost == 0


def test_segments_follow_each_other_and_finished_ones_take_no_more_than_they_hold(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    fill(journal, range(6000))
    journal.stop()
    assert [record.prompt_tokens for record in found(tmp_path)] == list(range(6000))
    paths = segments(tmp_path)
    assert len(paths) > 2
    for path in paths:
        head = read_head(path.read_bytes())
        assert finished(path) and head is not None
        assert path.stat().st_size == head.used and head.records == len(reading(path.read_bytes()).records)


def test_a_segment_takes_its_room_before_it_is_needed(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    (path,) = segments(tmp_path)
    assert path.stat().st_blocks * 512 >= 256 << 10
    assert path.stat().st_mode & 0o077 == 0
    journal.stop()
    assert segments(tmp_path) == [], "an empty one is not left behind"


@pytest.mark.parametrize("pause_s", [0.0, 0.01, 0.03])
def test_a_killed_writer_leaves_everything_it_had_appended(tmp_path: Path, pause_s: float) -> None:
    reading_end, writing_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            journal = a_journal(tmp_path)
            journal.start()
            for number in range(1 << 30):
                journal.append(a_record(number))
                if not journal._waiting:
                    os.write(writing_end, number.to_bytes(4, "little"))
        finally:
            os._exit(1)
    os.close(writing_end)
    told = os.read(reading_end, 4)
    time.sleep(pause_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reading_end, 1 << 16):
        told += piece
    os.close(reading_end)
    last = int.from_bytes(told[len(told) // 4 * 4 - 4 : len(told) // 4 * 4], "little")
    numbers = [record.prompt_tokens for record in found(tmp_path)]
    assert numbers == list(range(len(numbers))) and len(numbers) >= last + 1
    assert all(finished(path) for path in segments(tmp_path))


def test_a_full_journal_moves_its_oldest_finished_segments_aside_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = a_journal(tmp_path, segment_bytes=256 << 10, max_bytes=MIB)
    journal.start()
    with caplog.at_level(logging.ERROR):
        fill(journal, range(12000))
    journal.stop()
    kept = [record.prompt_tokens for record in found(tmp_path)]
    aside = [record.prompt_tokens for record in found(tmp_path / FOLDER)]
    assert aside + kept == list(range(12000)) and aside and kept
    assert journal.dead_lettered == len(aside) and journal.lost == 0
    assert sum(path.stat().st_size for path in segments(tmp_path)) <= MIB
    assert "the journal is full" in caplog.text


def test_dead_letters_are_bounded_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = a_journal(tmp_path, max_bytes=MIB, dead_letter_max_bytes=600 << 10)
    journal.start()
    fill(journal, range(16000))
    journal.stop()
    assert sum(path.stat().st_size for path in segments(tmp_path / FOLDER)) <= 600 << 10
    assert journal.discarded > 0 and "is deleted" in caplog.text
    kept = [record.prompt_tokens for record in [*found(tmp_path / FOLDER), *found(tmp_path)]]
    assert kept == list(range(kept[0], 16000)), "the newest are kept"


def test_what_was_shipped_is_not_counted_as_dead(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, max_bytes=MIB)
    journal.start()
    fill(journal, range(4000))
    oldest = segments(tmp_path)[0]
    descriptor = grasp(oldest)
    inside = reading(oldest.read_bytes())
    note_shipped(descriptor, inside.end, len(inside.records) - 7)
    os.close(descriptor)
    while not journal.dead_lettered:
        fill(journal, range(4000, 4100))
    journal.stop()
    assert journal.dead_lettered == 7


def test_a_segment_that_is_being_read_is_not_moved(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, max_bytes=MIB)
    journal.start()
    fill(journal, range(4000))
    oldest = segments(tmp_path)[0]
    descriptor = grasp(oldest)
    fill(journal, range(4000, 12000))
    assert oldest.exists() and segments(tmp_path / FOLDER)
    os.close(descriptor)
    journal.stop()


def test_a_full_disk_costs_records_only_while_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    room_left = [0]

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        if not room_left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    monkeypatch.setattr(room, "_WAITING", 10)
    journal = a_journal(tmp_path)
    journal.start()
    for number in range(25):
        journal.append(a_record(number))
    journal.tick(1000.0)
    assert (journal.records, journal.lost) == (0, 15) and journal.trouble
    assert "usage records are being lost: 15" in caplog.text and "No space left" in caplog.text
    assert journal._thread is not None
    journal._thread.submit(int).result()  # what `tick` began is over
    assert list(tmp_path.iterdir()) == [], "no half-made segment is left"
    room_left[0] = 1
    until(journal, lambda: journal.records == 10)
    journal.append(a_record(25))
    journal._thread.submit(int).result()
    assert len(list(tmp_path.iterdir())) <= 2, "trying again and again makes one segment and its spare"
    journal.stop()
    assert [record.prompt_tokens for record in found(tmp_path)] == [*range(10), 25]
    assert "has room again; 15 usage records were lost" in caplog.text


def test_records_that_wait_when_the_process_ends_are_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refuse = os.posix_fallocate, [True]

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        if refuse[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    journal = a_journal(tmp_path)
    journal.start()
    for number in range(3000):
        journal.append(a_record(number))
    refuse[0] = False
    journal.stop()
    assert [record.prompt_tokens for record in found(tmp_path)] == list(range(3000)) and journal.lost == 0


@pytest.mark.parametrize("fields", [{"prompt_tokens": 1 << 70}, {"asked": "\ud800"}, {"asked": "x" * 70_000}])
def test_a_record_that_cannot_be_written_is_counted_and_no_more(tmp_path: Path, fields: dict[str, object]) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    journal.append(a_record(1))
    journal.append(a_record(2, **fields))
    journal.append(a_record(3))
    journal.stop()
    assert journal.lost == 1
    assert [record.prompt_tokens for record in found(tmp_path)] == [1, 3]


def test_old_segments_are_closed_so_that_they_can_go(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    (first,) = segments(tmp_path)
    journal.append(a_record(1))
    journal.tick(time.monotonic() + 10)
    assert not finished(first)
    until(journal, lambda: journal.tick(time.monotonic() + 3600) or finished(first))
    journal.append(a_record(2))
    assert [record.prompt_tokens for record in found(tmp_path)] == [1, 2]
    journal.stop()


def test_the_journal_tells_how_much_of_it_is_not_shipped(tmp_path: Path) -> None:
    journal = a_journal(tmp_path)
    journal.start()
    journal.append(a_record(1))
    until(journal, lambda: journal.tick(time.monotonic() + 10) or journal.pending_bytes > 0)
    (path,) = segments(tmp_path)
    head = read_head(path.read_bytes()[:START])
    assert head is not None and journal.pending_bytes == head.used - START
    journal.stop()
