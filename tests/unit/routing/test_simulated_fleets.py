"""What the router is for, on published traces and the example fleets: each figure is the simulator's, each bound the project's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from hx_gateway.simulation.plan import FleetPlan, load_plan
from hx_gateway.simulation.report import Report
from hx_gateway.simulation.run import simulate
from hx_gateway.simulation.synthetic import generate
from hx_gateway.simulation.trace import Arrival, read, stretched, with_shared_first_block

ROOT = Path(__file__).parents[3]
FLEETS = ROOT / "docs" / "how-to" / "fleets"
TRACES = ROOT.parent / "shared" / "data" / "workload"
SEEDS = (1, 2, 3)
LOAD = 0.65


@cache
def fleet(name: str) -> FleetPlan:
    return load_plan(FLEETS / f"{name}.yaml")


@cache
def trace(fleet_name: str, file: str, shared: bool = False) -> tuple[Arrival, ...]:
    if not (TRACES / file).exists():
        pytest.skip(f"{TRACES / file} is not here; the traces are not part of the repository")
    arrivals = read(TRACES / file)
    if shared:
        arrivals = with_shared_first_block(arrivals)
    return tuple(stretched(arrivals, fleet(fleet_name).load_of(arrivals) / LOAD))


def reports(fleet_name: str, arrivals: tuple[Arrival, ...], seed: int) -> dict[str, Report]:
    found = {name: simulate(fleet(fleet_name), arrivals, name, seed) for name in ("round_robin", "least_busy", "intelligent")}
    for report in found.values():
        print(report)
        assert report.failed == 0
    return found


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shared", [False, True], ids=["as it is", "all share their first block"])
def test_prefixes_are_found_again_without_crowding(shared: bool, seed: int) -> None:
    """Mooncake's synthetic trace on eight equal servers."""
    found = reports("prefix-cache", trace("prefix-cache", "mooncake_synthetic_trace.jsonl.gz", shared), seed)
    turns, busy, ours = found["round_robin"], found["least_busy"], found["intelligent"]
    assert ours.hit_rate >= 2.5 * turns.hit_rate
    assert ours.first_token_s["p90"] <= 0.5 * turns.first_token_s["p90"]
    assert ours.first_token_s["p90"] <= 0.85 * busy.first_token_s["p90"]
    assert ours.busy_imbalance <= 1.25 and ours.request_imbalance <= 1.25


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_server_gets_what_it_can_do(seed: int) -> None:
    """Azure's trace of code completion on four servers, one at 0.4 of the speed of the others."""
    found = reports("one-slow", trace("one-slow", "azure2023_code.csv.gz"), seed)
    turns, busy, ours = found["round_robin"], found["least_busy"], found["intelligent"]
    assert ours.latency_s["p99"] <= 0.2 * turns.latency_s["p99"]
    assert ours.latency_s["p99"] <= 1.05 * busy.latency_s["p99"]
    assert ours.busy_imbalance <= 1.25  # in seconds of work; the slow one gets fewer requests


@pytest.mark.parametrize("seed", SEEDS)
def test_models_stay_where_they_are_loaded(seed: int) -> None:
    """Six models on three hosts with Ollama, two of which fit on each; nothing is told of slots or memory."""
    arrivals = tuple(generate("zipf:models=6,rate=1,requests=2000", list(fleet("ollama").models), seed))
    found = reports("ollama", arrivals, seed)
    turns, ours = found["round_robin"], found["intelligent"]
    assert ours.cold_loads <= 0.25 * turns.cold_loads
    assert ours.first_token_s["p95"] <= 0.4 * turns.first_token_s["p95"]
