"""The measure of routers, on cases reckoned by hand."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from hx_gateway.routing.learned.evaluate import apgr, calls_for, gains

WEAK, STRONG = [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]  # 2 won, 1 lost: a gap of 1 answer


def test_the_best_order_goes_beyond_the_strong_model() -> None:
    curve = gains([4, 3, 2, 1], WEAK, STRONG)
    assert curve == [0.0, 1.0, 2.0, 2.0, 1.0]
    assert apgr([4, 3, 2, 1], WEAK, STRONG) == pytest.approx((0.5 + 1.5 + 2.0 + 1.5) / 4)


def test_the_worst_order_loses_first() -> None:
    assert gains([1, 2, 3, 4], WEAK, STRONG) == [0.0, -1.0, -1.0, 0.0, 1.0]
    assert apgr([1, 2, 3, 4], WEAK, STRONG) == pytest.approx((-0.5 - 1.0 - 0.5 + 0.5) / 4)


def test_a_router_that_knows_nothing_has_one_half() -> None:
    chance = random.Random(1)
    weak = [float(chance.random() < 0.4) for _ in range(3000)]
    strong = [float(chance.random() < 0.8) for _ in range(3000)]
    assert fmean(apgr([0.0] * 3000, weak, strong, seed) for seed in range(40)) == pytest.approx(0.5, abs=0.02)


def test_calls_for_a_part_of_the_gap() -> None:
    assert calls_for([4, 3, 2, 1], WEAK, STRONG, 0.5) == 0.25
    assert calls_for([1, 2, 3, 4], WEAK, STRONG, 0.8) == 1.0
    assert calls_for([2, 1], [0.0, 0.0], [1.0, 1.0], 0.5) == 0.5


def test_without_a_gap_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="equally good"):
        apgr([1, 2], [0.0, 1.0], [1.0, 0.0])
