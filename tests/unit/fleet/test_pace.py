"""Learned speeds, and what those begin with of which nothing is known yet."""

from __future__ import annotations

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.pace import Pace
from hx_gateway.simulation.plan import read_plan
from hx_gateway.simulation.run import simulate
from hx_gateway.simulation.synthetic import generate


def _deployment(model: str, name: str) -> Deployment:
    return Deployment(model, model, Endpoint(name, Address("http", name, 1)))


def _answered(pace: Pace, read_rate: float, write_rate: float, alone: bool = True) -> None:
    pace.answered(1000 / read_rate + 100 / write_rate, 1000 / read_rate, 1000, 100, alone)


def test_who_was_never_asked_is_taken_to_be_like_its_siblings() -> None:
    seen, new, other = _deployment("chat", "one"), _deployment("chat", "two"), _deployment("small", "three")
    _answered(seen.pace, 100_000, 400)
    seen.inform((seen, new, other))
    assert (round(new.pace.prefill_rate), round(new.pace.decode_rate)) == (100_000, 400)
    assert other.pace.prefill_rate == Pace().prefill_rate, "another model has speeds of its own"
    assert new.pace.seen == 0


def test_what_was_seen_is_not_overruled() -> None:
    seen, slow = _deployment("chat", "one"), _deployment("chat", "two")
    _answered(slow.pace, 2_000, 20, alone=False)  # its reading was not its own, its writing was
    prior = slow.pace.prefill_rate
    _answered(seen.pace, 100_000, 400)
    seen.inform((seen, slow))
    assert slow.pace.prefill_rate == seen.pace.prefill_rate != prior
    assert round(slow.pace.decode_rate) == 20
    _answered(slow.pace, 50_000, 20)
    assert round(slow.pace.prefill_rate) == 50_000, "the first observation replaces what was guessed"


def test_what_a_probe_foretold_stays() -> None:
    seen, spilled = _deployment("chat", "one"), _deployment("chat", "two")
    spilled.spilled = 0.5
    _answered(seen.pace, 100_000, 400)
    seen.inform((seen, spilled))
    assert spilled.pace.prefill_rate == Pace().prefill_rate


def test_all_servers_of_a_fleet_faster_than_expected_are_used() -> None:
    plan = read_plan(
        "models: {chat: {}}\nservers: {gpu: {count: 4, slots: 64, prefill_tokens_per_second: 150000, decode_tokens_per_second: 900}}", "f"
    )
    arrivals = generate("zipf:models=1,rate=20,requests=600,input=16000,output=150", ["chat"], 1)
    for seed in (1, 2, 3):
        report = simulate(plan, arrivals, "intelligent", seed)
        assert min(server["requests"] for server in report.servers.values()) >= 600 / 4 / 3, report.servers
