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


def test_slots_are_learned_from_who_had_to_wait() -> None:
    pace = Pace()
    for among in (1, 2, 3, 4):
        pace.answered(2.0, 0.2, 1000, 100, False, line_s=0.0, among=among)
    assert pace.slots == 0.0, "nobody waited: there may be any number"
    pace.answered(4.0, 2.2, 1000, 100, False, line_s=2.0, among=7)
    assert pace.slots == 6.0
    for _ in range(40):
        pace.answered(4.0, 2.2, 1000, 100, False, line_s=2.0, among=5)
        pace.answered(2.0, 0.2, 1000, 100, False, line_s=0.0, among=4)
    assert 3.9 <= pace.slots <= 4.1
    for _ in range(40):  # it was started again, with more
        pace.answered(2.0, 0.2, 1000, 100, False, line_s=0.0, among=8)
    assert 7.9 <= pace.slots <= 8.0
    pace.answered(4.0, 2.2, 1000, 100, False, line_s=3.0, among=1)
    assert pace.slots >= 1.0


def test_a_host_whose_slots_nobody_told_is_relieved_in_time() -> None:
    """Three Ollama hosts at a load of 0.5: the popular model needs a second host as soon as its slots are taken."""
    ollama = (
        "host: {count: 3, slots: 4, prefill_tokens_per_second: 3000, models_that_fit: 2, load_gb_per_second: 1.5, decode_slowdown: 0.12}"
    )
    text = "models: {a: {gb: 9}, b: {gb: 12}, c: {gb: 10}, d: {gb: 9}, e: {gb: 12}, f: {gb: 12}}\nservers: {%s}\ngateway: {knows_slots: %s}"
    told, untold = (read_plan(text % (ollama, known), "f") for known in ("true", "false"))
    arrivals = generate("zipf:models=6,rate=1.2,requests=1500", list(told.models), 1)
    waits = [[simulate(plan, arrivals, "intelligent", seed).first_token_s["p90"] for seed in (1, 2, 3)] for plan in (told, untold)]
    assert sum(waits[1]) <= 1.3 * sum(waits[0]), waits


def test_answers_that_come_whole_teach_how_fast_they_are_written() -> None:
    pace = Pace()
    pace.answered(21.0, 21.0, 5000, 100, alone=False)
    assert pace.decode_rate == Pace().decode_rate, "it may have waited for others"
    pace.answered(21.0, 21.0, 5000, 100, alone=True)
    assert pace.decode_rate == 5.0  # a second of reading, as is assumed
    slower = Pace()
    slower.answered(31.0, 31.0, 5000, 100, alone=False, load_s=4.0, line_s=6.0, among=3)
    assert slower.decode_rate == 5.0  # the server told what of it was work
    reading = Pace()
    reading.answered(1.1, 1.1, 5000, 100, alone=True)
    assert reading.decode_rate == Pace().decode_rate, "what is left after reading is too little to go by"
