"""Request ids: unique over processes and wrap-arounds, in order of time, and proper ULIDs."""

from __future__ import annotations

import re

from hx_gateway.core.identifiers import RequestIds


def test_unique_and_in_order() -> None:
    now_s = [1_700_000_000.0]
    make = RequestIds(lambda: now_s[0])
    made = []
    for number in range(50_000):
        if number % 1000 == 0:
            now_s[0] += 0.001
        made.append(make())
    assert len(set(made)) == len(made)
    assert made == sorted(made)
    assert all(re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", id) for id in made[:100])


def test_two_processes_at_the_same_time_do_not_collide() -> None:
    makers = [RequestIds(lambda: 1_700_000_000.0) for _ in range(20)]
    made = [make() for _ in range(200) for make in makers]
    assert len(set(made)) == len(made)


def test_the_counter_wraps_without_repeating() -> None:
    make = RequestIds(lambda: 1_700_000_000.0)
    before = {make() for _ in range(10)}
    make._counter = (1 << 30) - 5
    after = [make() for _ in range(20)]
    assert len(set(after) | before) == 30
    assert all(len(id) == 26 for id in after)


def test_a_clock_that_goes_backwards_does_not_make_the_same_twice() -> None:
    times = iter([10.0, 9.0, 10.0, 9.0, 9.5] * 100)
    make = RequestIds(lambda: next(times))
    made = [make() for _ in range(500)]
    assert len(set(made)) == 500
