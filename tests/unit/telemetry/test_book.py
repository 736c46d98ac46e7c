"""Counts of several workers in shared memory: added up, kept over a worker's death, bounded."""

from __future__ import annotations

import os
import signal

import pytest

from hx_gateway.telemetry import book as rooms
from hx_gateway.telemetry.book import OTHER, Book, shared_pages


def totals(book: Book, name: str) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for entries, _ in book.pages():
        for entry in entries:
            if entry.name == name:
                found[entry.labels] = found.get(entry.labels, 0.0) + entry.cells[0]
    return found


def test_a_worker_reads_what_others_count() -> None:
    memory = shared_pages(2)
    one, two = Book(memory, 0), Book(memory, 1)
    one.cells("a", ("x", "ü"), 2)[0] += 3.0
    two.cells("a", ("x", "ü"), 2)[0] += 4.0
    two.cells("a", ("y", ""), 2)[0] += 1.0
    assert totals(one, "a") == totals(two, "a") == {("x", "ü"): 7.0, ("y", ""): 1.0}
    two.cells("b", (), 1)[0] = 2.0  # what is new since the last look is seen, too
    assert totals(one, "b") == {(): 2.0}


def test_a_killed_worker_loses_nothing_and_its_successor_goes_on() -> None:
    memory = shared_pages(2)
    mine = Book(memory, 0)
    for expected in (1000.0, 2000.0, 3000.0):
        pid = os.fork()
        if not pid:
            book = Book(memory, 1)
            cells = book.cells("requests", ("chat",), 1)
            for _ in range(1000):
                cells[0] += 1.0
            os.kill(os.getpid(), signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert totals(mine, "requests") == {("chat",): expected}


def test_an_entry_that_a_kill_left_unfinished_is_none() -> None:
    memory = shared_pages(1)
    book = Book(memory)
    book.cells("a", (), 1)[0] = 1.0
    used = book._longs[0]
    book.cells("b", (), 1)[0] = 9.0
    book._longs[0] = used  # as if it had been killed before it had entered it
    again = Book(memory)
    assert totals(again, "b") == {}
    assert again.cells("b", (), 1)[0] == 0.0


def test_a_full_page_counts_on_under_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "PAGE", 1 << 16)
    monkeypatch.setattr(rooms, "_SPARE", 1 << 12)
    book = Book(shared_pages(1))
    for number in range(3000):
        book.cells("requests", (f"model-{number}", "chat"), 5)[0] += 1.0
    found = totals(book, "requests")
    assert book.full and found[OTHER, OTHER] > 100
    assert sum(found.values()) == 3000
    for number in range(3000):  # even what cannot be seen any more does not fail
        book.cells(f"family-{number}", (), 5)[0] += 1.0


def test_gauges_of_a_worker_that_is_gone_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = shared_pages(2)
    one, two = Book(memory, 0), Book(memory, 1)
    now_s = 1000.0
    monkeypatch.setattr(rooms, "monotonic", lambda: now_s)
    one.beat(now_s)
    two.beat(now_s)
    assert [beat_s for _, beat_s in one.pages()] == [1000.0, 1000.0]
    now_s = 1009.0
    one.beat(now_s)
    assert [beat_s for _, beat_s in one.pages()] == [1009.0, 1000.0]
    now_s = 1011.0
    assert [beat_s for _, beat_s in one.pages()] == [1009.0, 0.0]
    one.beat(0.0)
    assert [beat_s for _, beat_s in one.pages()] == [0.0, 0.0]


def test_a_word_is_seen_by_all() -> None:
    memory = shared_pages(3)
    Book(memory, 2).word = 20.0
    assert Book(memory, 0).word == Book(memory, 1).word == 20.0
