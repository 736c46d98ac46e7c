"""Whole runs: the same seed gives the same figures, leases come back, and a failing server fails nobody."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hx_gateway.core.plugins import UnknownPlugin
from hx_gateway.simulation.plan import FleetPlan, read_plan
from hx_gateway.simulation.report import percentile
from hx_gateway.simulation.run import Simulation, simulate
from hx_gateway.simulation.synthetic import generate
from hx_gateway.simulation.trace import Arrival, TraceError, chained

FLEET = """\
models: {chat: {cost_per_request: 1, cost_per_completion_token: 0.5}}
servers:
  gpu: {count: 3, slots: 16, prefill_tokens_per_second: 4000, decode_tokens_per_second: 50, cache_tokens: 50000}
"""
POLICIES = ("round_robin", "weighted", "least_busy", "power_of_two", "latency", "cost", "intelligent")


def fleet(extra: str = "", servers: str = FLEET) -> FleetPlan:
    return read_plan(servers + extra, "fleet.yaml")


def trace(requests: int = 400, rate: float = 6.0, seed: int = 3) -> list[Arrival]:
    return generate(f"zipf:rate={rate},requests={requests},input=700,output=60", ["chat"], seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_figures(policy: str) -> None:
    one, two = (replace(simulate(fleet(), trace(), policy, 5), choose_us=0.0) for _ in range(2))
    assert one == two
    assert one.failed == 0 and one.requests == 400


def test_another_seed_gives_others() -> None:
    assert simulate(fleet(), trace(), "power_of_two", 1).first_token_s != simulate(fleet(), trace(), "power_of_two", 2).first_token_s


def test_the_shared_source_of_random_numbers_is_left_as_it_was() -> None:
    random.seed(11)
    expected = random.random()
    random.seed(11)
    simulate(fleet(), trace(50), "least_busy", 4)
    assert random.random() == expected


@pytest.mark.parametrize("policy", POLICIES)
def test_every_lease_comes_back(policy: str) -> None:
    plan = fleet(servers=FLEET.replace("cache_tokens", "errors: 0.2, outages: [{start: 20, end: 40}], cache_tokens"))
    run = Simulation(plan, policy, 2)
    run.play(trace())
    assert all(endpoint.in_flight == 0 and endpoint.pending_s == 0.0 for endpoint in run.server_of)
    assert all(deployment.in_flight == 0 for deployments in run._deployments.values() for deployment in deployments)
    assert len(run.calls) == 400 and all(call.last_s >= call.arrival.at_s for call in run.calls)


@pytest.mark.parametrize("policy", ["round_robin", "least_busy", "intelligent"])
def test_a_dead_server_fails_nobody_before_the_first_byte_and_gets_nothing_while_it_is_down(policy: str) -> None:
    plan = fleet("  dying: {slots: 16, prefill_tokens_per_second: 4000, outages: [{start: 30, end: 60}]}\n")
    run = Simulation(plan, policy, 2)
    run.play(trace(600))
    broken = [call for call in run.calls if call.failed is not None]
    assert all(call.first_s for call in broken)  # streams that were under way when it died, and nothing else
    assert len(broken) <= 16
    while_down = [call for call in run.calls if 33 < call.sent_s < 60 and call.deployment and call.deployment.endpoint.name == "dying"]
    assert while_down == []
    assert any(call.deployment and call.deployment.endpoint.name == "dying" and call.sent_s > 60 for call in run.calls)


def test_errors_are_retried_elsewhere() -> None:
    plan = fleet("  sick: {slots: 16, prefill_tokens_per_second: 4000, errors: 0.5}\n")
    report = simulate(plan, trace(), "round_robin", 2)
    assert report.failed == 0 and report.retried > 10
    # What it learned of failures counts for it: fewer are sent there.
    assert simulate(plan, trace(), "intelligent", 2).retried < report.retried


def test_when_all_fail_the_requests_fail() -> None:
    plan = fleet(servers=FLEET.replace("cache_tokens", "errors: 1.0, cache_tokens"))
    report = simulate(plan, trace(50), "least_busy", 2)
    assert report.failed == 50 and report.latency_s["p50"] == 0.0 and report.cost == 0.0


def test_cost_and_percentiles_are_of_what_was_answered() -> None:
    arrivals = [Arrival(0.0, 4000, 50), Arrival(10.0, 8000, 100)]
    report = simulate(fleet(), arrivals, "round_robin", 1)
    assert report.cost == 1 + 25 + 1 + 50
    assert report.first_token_s["p50"] == pytest.approx(1.5 + 0.001, abs=1e-9)  # two ways of half a millisecond
    assert report.latency_s["p99"] == pytest.approx(4.001 - 0.01 * 2, abs=1e-3)
    assert sum(server["requests"] for server in report.servers.values()) == 2


def test_percentiles_lie_between_values_by_proportion() -> None:
    assert [percentile([1.0, 2.0, 3.0], p) for p in (0, 50, 75, 100)] == [1.0, 2.0, 2.5, 3.0]
    assert percentile([], 50) == 0.0


def test_hits_are_counted_and_conversations_stay_where_they_were() -> None:
    arrivals = [
        Arrival(20.0 * turn + user, 512 * (turn + 2), 10, "", chained([user, *range(turn + 1)])) for turn in range(5) for user in range(4)
    ]
    arrivals.sort(key=lambda one: one.at_s)
    run = Simulation(fleet(), "intelligent", 1)
    run.play(arrivals)
    for user in range(4):
        assert len({call.deployment for call in run.calls if call.arrival.blocks[0] == chained([user])[0]}) == 1
    report = simulate(fleet(), arrivals, "intelligent", 1)
    assert report.hit_rate > 0.6 > simulate(fleet(), arrivals, "round_robin", 1).hit_rate + 0.1


def test_a_policy_of_ones_own_from_the_file() -> None:
    plan = fleet("policies: {mine: {terms: {wait: 1, prefill: 1}}, turns: {picker: round_robin}}\n")
    assert simulate(plan, trace(50), "mine", 1).failed == 0
    mine, built_in = (simulate(plan, trace(50), name, 1) for name in ("turns", "round_robin"))
    assert mine.first_token_s == built_in.first_token_s


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(UnknownPlugin, match="round_robin"):
        simulate(fleet(), trace(5), "round_robbin", 1)
    with pytest.raises(TraceError, match="request 1 of the trace asks for 'other'"):
        simulate(fleet(), [Arrival(0.0, 1, 1, "other")], "round_robin", 1)


def test_the_router_knows_nothing_that_a_gateway_cannot_see() -> None:
    run = Simulation(fleet(), "intelligent", 1)
    (deployment, *_) = run._deployments["chat"]
    assert (deployment.endpoint.slots, deployment.endpoint.residency.memory, deployment.pace.prefill_rate) == (0, 0.0, 5000.0)
    told = Simulation(fleet("gateway: {knows_slots: true}\n"), "intelligent", 1)
    assert told._deployments["chat"][0].endpoint.slots == 16
