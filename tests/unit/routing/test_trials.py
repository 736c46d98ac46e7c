"""Everything of a name is being rested: one trial at a time, each in turn; and who gets a request when all seem equal."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from hx_gateway.dataplane import verdict
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router


def target_of(count: int, policy_name: str = "round_robin", down: bool = True) -> Target:
    """Equal deployments; those that are down opened their breakers one second after the other, the last first."""
    deployments = tuple(Deployment("m", "m", Endpoint(f"e{n}", Address("http", f"h{n}", 1))) for n in range(count))
    if down:
        for number, deployment in enumerate(deployments):
            for _ in range(deployment.breaker.threshold):
                deployment.breaker.failed(100.0 - number)
    return Target("m", "model", deployments, policy=policy_name)


def test_one_trial_at_a_time_of_a_name_and_each_deployment_in_turn() -> None:
    target, router, now_s = target_of(3), Router(policy), 101.0
    tried = []
    for _ in range(6):
        chosen = router.choose(Ask(target), now_s)
        assert chosen is not None
        trials = verdict.lease(chosen)
        assert router.choose(Ask(target), now_s) is None, "another trial of the name is under way"
        now_s += 1.0
        chosen.breaker.failed(now_s, trials[0])
        chosen.endpoint.breaker.abandoned(trials[1])
        chosen.in_flight -= 1
        chosen.endpoint.in_flight -= 1
        tried.append(chosen.endpoint.name)
    assert tried == ["e2", "e1", "e0"] * 2, "who has been resting longest is tried first"


def test_a_breaker_whose_time_is_up_waits_for_the_trial_under_way_as_well() -> None:
    target, router = target_of(2), Router(policy)
    now_s = 100.0 + target.deployments[0].breaker.timeout_s
    chosen = router.choose(Ask(target), now_s)
    assert chosen is not None
    verdict.lease(chosen)
    assert router.choose(Ask(target), now_s) is None
    well = Deployment("m", "m", Endpoint("well", Address("http", "well", 1)))
    beside = Target("m", "model", (*target.deployments, well))
    assert router.choose(Ask(beside), now_s) in target.deployments, "while the name is served, each has its trial when its time is up"


def test_the_trial_of_another_model_on_a_server_does_not_shut_out_the_rest_of_a_name() -> None:
    target, router = target_of(2), Router(policy)
    shared = target.deployments[1].endpoint
    other = Deployment("other", "other", shared)
    for _ in range(shared.breaker.threshold):
        shared.breaker.failed(90.0)
    verdict.lease(other)
    assert router.choose(Ask(target), 101.0) is target.deployments[0]


def test_who_was_tried_in_vain_is_no_trial_for_others_unless_their_time_is_up() -> None:
    target, router = target_of(2), Router(policy)
    assert router.choose(Ask(target, tried=(target.deployments[0],)), 101.0) is None
    assert router.choose(Ask(target, tried=(target.deployments[0],)), 1000.0) is target.deployments[1]


@pytest.mark.parametrize("name", ["intelligent", "latency", "cost"])
def test_parallel_requests_are_spread_evenly_over_equal_idle_deployments(name: str) -> None:
    target, router = target_of(5, name, down=False), Router(policy)
    sent: Counter[str] = Counter()
    for number in range(10):
        ask = Ask(target, prompt_tokens=12.0, session=number)
        chosen = router.choose(ask, 100.0)
        assert chosen is not None
        verdict.lease(chosen)
        router.sent(ask, chosen, 100.0)
        sent[chosen.endpoint.name] += 1
    assert set(sent.values()) == {2} and len(sent) == 5


def test_of_equal_deployments_one_is_chosen_at_random() -> None:
    random.seed(1)
    target, router = target_of(4, "intelligent", down=False), Router(policy)
    target.deployments[0].endpoint.in_flight = 1
    chosen = Counter(router.choose(Ask(target, prompt_tokens=12.0), 100.0) for _ in range(300))
    assert set(chosen) == set(target.deployments[1:]) and min(chosen.values()) > 60


def test_of_near_ties_a_server_that_loads_the_model_already_comes_first() -> None:
    target, router = target_of(3, "intelligent", down=False), Router(policy)
    for deployment in target.deployments:
        deployment.endpoint.residency.told({}, 99.0)
    loading = target.deployments[1]
    verdict.lease(loading)
    loading.endpoint.residency.sent(loading, 100.0)
    assert {router.choose(Ask(target), 100.05) for _ in range(20)} == {loading}, "it saves a load, and next to no time is lost"
