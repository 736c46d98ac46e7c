"""Limits of a minute at deployments: who has had all it may is passed over, and asked again when it may have more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hx_gateway.access.account import Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.dataplane.waits import likely_wait_s, occupied, pause_s
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.ceilings import Ceilings, limits_of
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.simulation.plan import read_plan
from hx_gateway.simulation.run import simulate
from hx_gateway.simulation.trace import Arrival


def place(name: str, requests: int = 0, tokens: int = 0) -> Deployment:
    return Deployment("m", "m", Endpoint(name, Address("http", name, 1)), limits=limits_of(requests, tokens))


class Sending:
    """Sends requests through router and ceilings at a time of the test's choosing."""

    def __init__(self, *places: Deployment, policy_name: str = "round_robin", ceilings: Ceilings | None = None) -> None:
        self.now_s = 100.0
        self.target = Target("m", "model", places, policy=policy_name)
        self.router = Router(policy)
        self.ceilings = ceilings or Ceilings(Limiter(clock=lambda: self.now_s))

    def send(self, tokens: int = 0) -> tuple[str, Hold | None]:
        ask = Ask(self.target)
        first = self.router.choose(ask, self.now_s)
        chosen, hold = self.ceilings.within(self.router, ask, first, self.now_s, lambda _: tokens)
        return chosen.endpoint.name if chosen is not None else "", hold

    def many(self, count: int, tokens: int = 0) -> Counter[str]:
        return Counter(self.send(tokens)[0] for _ in range(count))


def test_one_at_its_requests_is_passed_over_while_others_are_free() -> None:
    sending = Sending(place("few", requests=6), place("free"))
    assert sending.many(100) == {"few": 6, "free": 94}
    sending.now_s += 10.0
    assert sending.many(50) == {"few": 1, "free": 49}, "a request more every ten seconds"


def test_when_all_are_at_their_limits_the_wait_is_told_to_the_moment() -> None:
    sending = Sending(place("a", requests=6), place("b", requests=3))
    assert sending.many(20) == {"a": 6, "b": 3, "": 11}
    assert occupied(sending.target, sending.now_s), "so that requests wait for it in the queue"
    assert abs(pause_s(sending.target, sending.now_s) - 10.0) < 1e-6
    assert abs(likely_wait_s(sending.target, 0, sending.now_s) - 10.0) < 1e-6
    sending.now_s += 9.9
    assert sending.send()[0] == ""
    sending.now_s += 0.2
    assert sending.send()[0] == "a"


def test_the_steady_rate_is_the_limit() -> None:
    sending, passed = Sending(place("a", requests=60)), 0
    for _ in range(6000):
        sending.now_s += 0.1
        passed += bool(sending.send()[0])
    assert 60 + 599 <= passed <= 60 + 601, "a minute's worth at once, then one a second for ten minutes"


def test_tokens_are_reserved_and_then_counted_as_they_were() -> None:
    sending = Sending(place("a", tokens=1000))
    deployment = sending.target.deployments[0]
    held = [sending.send(400) for _ in range(3)]
    assert [name for name, _ in held] == ["a", "a", ""], "the third would be too much if the others use what they asked for"
    for _, hold in held[:2]:
        assert hold is not None
        sending.ceilings.settle(deployment, hold, 40, 10, 1.0)
    assert sending.ceilings.left(deployment, sending.now_s) == (None, 900)
    assert [sending.send(400)[0] for _ in range(3)] == ["a", "a", ""]


def test_a_request_longer_than_a_whole_minutes_tokens_goes_out_alone_and_is_owed_for() -> None:
    sending = Sending(place("a", tokens=1000))
    name, hold = sending.send(5000)
    assert name == "a"
    assert hold is not None
    sending.ceilings.settle(sending.target.deployments[0], hold, 4000, 1000, 1.0)
    sending.now_s += 200.0
    assert sending.send(100)[0] == "", "5,000 tokens are those of five minutes"
    sending.now_s += 100.0
    assert sending.send(100)[0] == "a"


def test_what_was_never_answered_costs_no_tokens_and_what_nobody_counted_costs_what_was_reserved() -> None:
    sending = Sending(place("a", tokens=1000))
    deployment = sending.target.deployments[0]
    for prompt, left in ((0, 1000), (-1, 700)):
        _, hold = sending.send(300)
        assert hold is not None
        sending.ceilings.settle(deployment, hold, prompt, -1, 1.0)
        assert sending.ceilings.left(deployment, sending.now_s) == (None, left)


def test_what_is_left_is_told_and_why_nobody_is_chosen() -> None:
    sending = Sending(place("a", requests=3))
    deployment = sending.target.deployments[0]
    assert sending.ceilings.left(deployment, sending.now_s) == (3, None)
    sending.many(2)
    assert sending.ceilings.left(deployment, sending.now_s) == (1, None)
    sending.many(1)
    decision = sending.router.explain(Ask(sending.target), sending.now_s)
    assert decision.candidates[0].removed == "it has had all the requests or tokens it may have in a minute; asked again in 20.0 s"
    deployment.cool_until_s = sending.now_s + 30.0
    assert "said it is busy" in sending.router.explain(Ask(sending.target), sending.now_s).candidates[0].removed


def test_workers_of_a_machine_share_a_limit_and_gateways_divide_it(tmp_path: Path) -> None:
    passed: Counter[str] = Counter()
    limiters = [Limiter() for _ in range(3)]
    for limiter in limiters:
        limiter.open(tmp_path)
    try:
        workers = [Sending(place("a", requests=30), ceilings=Ceilings(limiter)) for limiter in limiters]
        for _ in range(40):
            for worker in workers:
                passed += Counter([worker.send()[0]])
        assert passed["a"] == 30
    finally:
        for limiter in limiters:
            limiter.close()
    assert Sending(place("a", requests=30), ceilings=Ceilings(Limiter(), lambda: 3)).many(40)["a"] == 10


def test_a_reload_that_raises_the_limit_has_effect_at_once() -> None:
    sending = Sending(place("a", requests=1))
    assert sending.many(2) == {"a": 1, "": 1}
    sending.target.deployments[0].adopt(place("a", requests=10))
    sending.now_s += 6.1
    assert sending.many(2) == {"a": 1, "": 1}, "one each six seconds now, not after a minute"
    sending.target.deployments[0].adopt(place("a"))
    assert sending.send() == ("a", None)


@pytest.mark.parametrize("name", ["least_busy", "least_tokens", "intelligent"])
def test_a_simulated_fleet_keeps_the_limit_by_its_own_clock(name: str) -> None:
    plan = read_plan("{models: {m: {}}, servers: {small: {requests_per_minute: 30}, large: {}}}", "fleet")
    arrivals = [Arrival(n * 0.5, 100, 20) for n in range(600)]
    small, large = (server["requests"] for server in simulate(plan, arrivals, name).servers.values())
    assert 30 + 149 <= small <= 30 + 150, "a minute's worth at once, then one each two seconds of five minutes"
    assert small + large == 600


def test_a_simulated_request_that_nobody_may_have_fails() -> None:
    plan = read_plan("{models: {m: {}}, servers: {small: {tokens_per_minute: 1000}}}", "fleet")
    report = simulate(plan, [Arrival(n * 0.5, 100, 20) for n in range(600)], "least_busy")
    answered = 600 - report.failed
    assert 0.9 * (1000 + 5000) <= answered * 120 <= 1.1 * (1000 + 5000)
