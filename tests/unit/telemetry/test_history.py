"""The last hour: what workers counted, step by step, added up, bounded, and outlasting the worker that counted it."""

from __future__ import annotations

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
from hx_gateway.telemetry.history import EVERY_S, SETTLED_S, STEPS, Recorder, quantile
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
