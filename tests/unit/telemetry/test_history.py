"""The last hour: what workers counted, step by step, added up, bounded, and outlasting the worker that counted it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.telemetry.test_metrics import Observed, desk, exchange, shown

from hx_gateway.core import errors
from hx_gateway.core.clock import ManualClock
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Registry
from hx_gateway.telemetry.book import Book, shared_pages
from hx_gateway.telemetry.exposition import Report
from hx_gateway.telemetry.families import SECONDS
from hx_gateway.telemetry.history import EVERY_S, FILE, SETTLED_S, STEPS, Recorder, keep, quantile
from hx_gateway.telemetry.history import course as settled
from hx_gateway.telemetry.metrics import Metrics

START_S = 1_700_000_000


def course(book: Book, wall_s: float, steps: int = STEPS) -> dict[str, Any]:
    """As soon as every worker has written the step that ended at ``wall_s``."""
    return settled(book, wall_s + SETTLED_S, steps)


class Worker:
    """Metrics and history of one worker."""

    def __init__(self, book: Book) -> None:
        self.metrics = Metrics(ManualClock(100.2), book)
        self.observed = Observed(desk(self.metrics))
        self.recorder = Recorder(book)

    def serve(self, count: int, **changes: Any) -> None:
        for _ in range(count):
            self.metrics.finished(exchange(**changes))
        self.metrics.flush()

    def tick(self, wall_s: float) -> None:
        self.recorder.tick(wall_s, self.observed)


def test_steps_of_all_workers_are_added_up_and_each_of_them_tells_all() -> None:
    pages = shared_pages(2)
    one, two = Worker(Book(pages, 0)), Worker(Book(pages, 1))
    for worker in (one, two):
        worker.tick(START_S)
    one.serve(10, completion_tokens=5)
    two.serve(20, completion_tokens=5)
    two.serve(5, outcome=errors.CONNECT_FAILED)
    one.observed.proxy.in_flight = 3
    for worker in (one, two):
        worker.tick(START_S + EVERY_S)
    for book in (one.metrics.book, two.metrics.book):
        found = course(book, START_S + EVERY_S + 1)
        assert found["times"] == [START_S + EVERY_S]
        assert found["all"]["requests_per_s"] == [3.5]
        assert found["all"]["errors_per_s"] == [0.5]
        assert found["all"]["completion_tokens_per_s"] == [15.0]
        assert found["all"]["in_flight"] == [3.0]
        assert found["all"]["response_p50_s"] == [pytest.approx(0.175, abs=0.01)], "within the bucket from 0.1 to 0.25 s"
        assert found["endpoints"]["llm-01"]["requests_per_s"] == [3.5]
    assert course(one.metrics.book, START_S + EVERY_S - 1)["times"] == [], "the step under way is left out"


def test_what_a_worker_wrote_outlasts_it_and_its_successor_goes_on() -> None:
    pages = shared_pages(1)
    first = Worker(Book(pages, 0))
    first.tick(START_S)
    first.serve(10)
    first.tick(START_S + EVERY_S)
    second = Worker(Book(pages, 0))
    second.tick(START_S + 3 * EVERY_S)
    second.serve(20)
    second.tick(START_S + 4 * EVERY_S)
    assert course(second.metrics.book, START_S + 4 * EVERY_S)["all"]["requests_per_s"] == [1.0, None, None, 2.0]


def test_an_hour_is_kept_and_no_more() -> None:
    worker = Worker(Book())
    for step in range(STEPS + 50):
        worker.tick(START_S + step * EVERY_S)
        worker.serve(step % 7)
    now_s = START_S + (STEPS + 49) * EVERY_S
    found = course(worker.metrics.book, now_s)
    assert len(found["times"]) == STEPS
    assert found["times"][-1] == now_s
    assert found["all"]["requests_per_s"] == [step % 7 / 10 for step in range(49, STEPS + 49)]
    assert course(worker.metrics.book, now_s, 3)["times"] == found["times"][-3:]
    assert course(worker.metrics.book, now_s + 2 * STEPS * EVERY_S)["times"] == []


def test_the_hour_of_all_workers_is_taken_up_after_a_restart_once(tmp_path: Path) -> None:
    pages = shared_pages(2)
    one, two = Worker(Book(pages, 0)), Worker(Book(pages, 1))
    one.observed.registry = Registry({}, {name: Endpoint(name, Address("http", "192.0.2.1", 1)) for name in ("llm-01", "gone")})
    for worker in (one, two):
        worker.tick(START_S)
        worker.serve(10)
        worker.tick(START_S + EVERY_S)
    before = course(one.metrics.book, START_S + EVERY_S)
    two.observed.backing.folder = tmp_path
    two.observed.telemetry.stop(two.observed)
    assert not (tmp_path / FILE).exists(), "of this minute by the clock nothing was written"
    keep(two.metrics.book, tmp_path, START_S + EVERY_S)

    pages = shared_pages(2)
    for again in (False, True):  # the second time in the place of one that was killed
        one, two = Worker(Book(pages, 0)), Worker(Book(pages, 1))
        for worker in (one, two):
            worker.observed.backing.folder = tmp_path
            worker.tick(START_S + (4 + again) * EVERY_S)
        after = course(two.metrics.book, START_S + 4 * EVERY_S)
        assert after["times"] == [START_S + step * EVERY_S for step in range(1, 5)]
        assert after["all"]["requests_per_s"] == [2.0, None, None, None]
        assert after["endpoints"].keys() == {"llm-01"}, "the other one is no longer there"
        assert {figure: values[:1] for figure, values in after["all"].items()} == before["all"]
        assert {figure: values[:1] for figure, values in after["endpoints"]["llm-01"].items()} == before["endpoints"]["llm-01"]
    two.serve(20)
    two.tick(START_S + 6 * EVERY_S)
    assert course(one.metrics.book, START_S + 6 * EVERY_S)["all"]["requests_per_s"] == [2.0, None, None, None, None, 2.0]


def test_what_is_kept_is_written_beside_the_requests_and_passed_over_where_it_is_old_or_damaged(tmp_path: Path) -> None:
    worker = Worker(Book())
    worker.observed.backing.folder = tmp_path
    give_up_s = time.monotonic() + 30
    for step in range(32):
        worker.tick(START_S + step * EVERY_S)
        worker.serve(10)
    while not (tmp_path / FILE).exists():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)
    good = (tmp_path / FILE).read_bytes()
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600

    def begun(data: bytes, wall_s: float) -> int:
        (tmp_path / FILE).write_bytes(data)
        fresh = Worker(Book())
        fresh.observed.backing.folder = tmp_path
        fresh.tick(wall_s)
        return len(course(fresh.metrics.book, wall_s)["times"])

    assert begun(good, START_S + 33 * EVERY_S) > 1
    for data, wall_s in (
        (good, START_S + (STEPS + 33) * EVERY_S),
        (good, START_S - 9 * EVERY_S),  # of a clock that went wrong
        (good[: len(good) // 2], START_S + 33 * EVERY_S),
        (b'{"": {"170000000": [1.0]}, "llm-01": {"170000001": []}}', START_S + 33 * EVERY_S),
        (b"[]", START_S + 33 * EVERY_S),
        (b"\xff", START_S + 33 * EVERY_S),
    ):
        assert begun(data, wall_s) == 0, data[:60]


def test_endpoints_beyond_so_many_are_left_out() -> None:
    worker = Worker(Book())
    endpoints = [Endpoint(f"e{number}", Address("http", "192.0.2.1", number + 1)) for number in range(50)]
    worker.observed.registry = Registry({}, {one.name: one for one in endpoints})
    worker.tick(START_S)
    worker.tick(START_S + EVERY_S)
    assert list(course(worker.metrics.book, START_S + EVERY_S)["endpoints"]) == [f"e{number}" for number in range(32)]


def test_prometheus_is_not_shown_it() -> None:
    worker = Worker(Book())
    worker.tick(START_S)
    worker.serve(3)
    worker.tick(START_S + EVERY_S)
    text = shown(Report(worker.observed, "1"))[0].decode()
    assert "history" not in text and list(text_string_to_metric_families(text))


def test_quantiles_are_as_prometheus_estimates_them() -> None:
    counts = [0.0] * (len(SECONDS) + 1)
    assert quantile(counts, 0.5) is None
    counts[SECONDS.index(0.25)] = 10
    assert quantile(counts, 0.5) == pytest.approx(0.175)
    counts[-1] = 90
    assert quantile(counts, 0.95) == SECONDS[-1]
