"""Pickers: spread as they promise, ties at random, and nobody left out or taken that cannot be used."""

from __future__ import annotations

import importlib.metadata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.pickers import BUILT_IN, LeastBusy, PowerOfTwo, RoundRobin, Weighted


def target_of(count: int, weights: tuple[float, ...] = ()) -> Target:
    deployments = tuple(
        Deployment("m", "m", Endpoint(f"e{number}", Address("http", f"h{number}", 1)), weight=weights[number] if weights else 1.0)
        for number in range(count)
    )
    return Target("m", "model", deployments)


@given(st.sampled_from(sorted(BUILT_IN)), st.integers(1, 6), st.data())
def test_what_is_picked_can_be_used(name: str, count: int, data: st.DataObject) -> None:
    target = target_of(count)
    for deployment in target.deployments:
        deployment.endpoint.in_flight = data.draw(st.integers(0, 5))
        deployment.weight = data.draw(st.sampled_from([0.1, 1.0, 5.0]))
    usable = data.draw(st.lists(st.sampled_from(target.deployments), min_size=1, unique_by=id))
    picker = find("picker", name, BUILT_IN)()
    for _ in range(5):
        assert picker.pick(target, usable) in usable


def test_round_robin_takes_turns() -> None:
    target, picker = target_of(3), RoundRobin()
    everyone = list(target.deployments)
    assert [everyone.index(picker.pick(target, everyone)) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_goes_on_evenly_while_one_is_missing() -> None:
    target, picker = target_of(4), RoundRobin()
    usable = [deployment for deployment in target.deployments if deployment is not target.deployments[2]]
    counts = Counter(picker.pick(target, usable).endpoint.name for _ in range(400))
    assert set(counts) == {"e0", "e1", "e3"} and max(counts.values()) <= 200
    back = Counter(picker.pick(target, target.deployments).endpoint.name for _ in range(400))
    assert set(back.values()) == {100}


def test_round_robin_counts_each_name_apart() -> None:
    picker = RoundRobin()
    one = target_of(2)
    other = Target("other", "alias", one.deployments)
    assert [picker.pick(target, one.deployments).endpoint.name for target in (one, other, one, other)] == ["e0", "e0", "e1", "e1"]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (8.0, 1.0, 1.0), (0.5, 0.25, 0.25)])
def test_weighted_is_in_proportion(weights: tuple[float, ...]) -> None:
    target = target_of(3, weights)
    counts = Counter(Weighted().pick(target, target.deployments).endpoint.name for _ in range(6000))
    for number, weight in enumerate(weights):
        share = counts[f"e{number}"] / 6000
        assert abs(share - weight / sum(weights)) < 0.05


def test_least_busy_is_by_weight_and_its_ties_are_even() -> None:
    """One that always took the first would have all workers pile on one server."""
    target = target_of(4)
    counts = Counter(LeastBusy().pick(target, target.deployments).endpoint.name for _ in range(4000))
    assert len(counts) == 4 and all(abs(count - 1000) < 200 for count in counts.values())
    for deployment, busy in zip(target.deployments, (3, 1, 1, 2), strict=True):
        deployment.endpoint.in_flight = busy
    counts = Counter(LeastBusy().pick(target, target.deployments).endpoint.name for _ in range(2000))
    assert set(counts) == {"e1", "e2"} and abs(counts["e1"] - 1000) < 150
    target.deployments[0].weight = 10.0  # three under way, but ten times the size
    assert LeastBusy().pick(target, target.deployments) is target.deployments[0]


def test_least_busy_spreads_a_burst_evenly() -> None:
    target = target_of(5)
    for _ in range(500):
        LeastBusy().pick(target, target.deployments).endpoint.in_flight += 1
    assert {deployment.endpoint.in_flight for deployment in target.deployments} == {100}


def test_power_of_two_never_takes_the_busiest_and_spreads() -> None:
    target = target_of(4)
    target.deployments[3].endpoint.in_flight = 10
    counts = Counter(PowerOfTwo().pick(target, target.deployments).endpoint.name for _ in range(3000))
    assert set(counts) == {"e0", "e1", "e2"} and min(counts.values()) > 700
    for deployment in target.deployments:
        deployment.endpoint.in_flight = 0
    for _ in range(2000):
        PowerOfTwo().pick(target, target.deployments).endpoint.in_flight += 1
    loads = [deployment.endpoint.in_flight for deployment in target.deployments]
    assert max(loads) - min(loads) < 30


def test_what_is_installed_is_not_looked_through_for_a_dotted_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(**_: object) -> None:
        raise AssertionError("it takes milliseconds, at every reload")

    monkeypatch.setattr(importlib.metadata, "entry_points", looked)
    assert find("picker", "hx_gateway.routing.pickers:LeastBusy", BUILT_IN) is LeastBusy
    with pytest.raises(UnknownPlugin, match="cannot load 'hx_gateway.routing.pickers:Nobody'"):
        find("picker", "hx_gateway.routing.pickers:Nobody", BUILT_IN)
