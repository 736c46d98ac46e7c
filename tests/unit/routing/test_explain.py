"""What explain says is what would be done: the same choice for the same state and random numbers, and no trace left."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.dataplane.explain import told
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.testing.factories import make_exchange

POLICIES = ("round_robin", "weighted", "least_busy", "power_of_two", "latency", "cost", "intelligent")


@st.composite
def fleets(draw: st.DrawFn) -> Target:
    deployments = []
    for number in range(draw(st.integers(1, 8))):
        endpoint = Endpoint(f"e{number}", Address("http", "127.0.0.1", 1000 + number), slots=draw(st.sampled_from([0, 1, 4])))
        deployment = Deployment("m", "m", endpoint, weight=draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])))
        deployment.max_concurrent = draw(st.sampled_from([0, 2]))
        deployment.in_flight = draw(st.integers(0, 3))
        endpoint.in_flight = deployment.in_flight + draw(st.integers(0, 3))
        endpoint.pending_s = draw(st.floats(0, 5))
        deployment.pace.decode_rate = draw(st.floats(1, 100))
        deployment.pace.failures = draw(st.floats(0, 1))
        deployment.cool_until_s = draw(st.sampled_from([0.0, 0.0, 0.0, 105.0]))
        for breaker in (deployment.breaker, endpoint.breaker):
            state = draw(st.sampled_from(["closed", "closed", "closed", "open", "recovered"]))
            if state == "open":
                for _ in range(breaker.threshold):
                    breaker.failed(draw(st.floats(10, 100)))
            elif state == "recovered":
                breaker.closed_s = draw(st.floats(80, 100))
        deployments.append(deployment)
    return Target("m", "model", tuple(deployments), policy=draw(st.sampled_from(POLICIES)))


@given(fleets(), st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 5))
def test_explain_chooses_what_the_live_router_chooses(target: Target, seed: int, blocks: int, before: int) -> None:
    router = Router(policy, chance=random.random)
    ask = Ask(target, prompt_tokens=blocks * 512.0 + 10, output_tokens=100, blocks=list(range(blocks)))
    for _ in range(before):
        router.choose(ask, 99.0)
    states = [
        (d.in_flight, d.endpoint.in_flight, d.endpoint.pending_s, repr(d.breaker), repr(d.endpoint.breaker)) for d in target.deployments
    ]
    random.seed(seed)
    decision = router.explain(ask, 100.0)
    random.seed(seed)
    chosen = router.choose(ask, 100.0)
    assert decision.chosen is chosen
    assert states == [
        (d.in_flight, d.endpoint.in_flight, d.endpoint.pending_s, repr(d.breaker), repr(d.endpoint.breaker)) for d in target.deployments
    ]
    assert {candidate.deployment for candidate in decision.candidates} == set(target.deployments), "every deployment is accounted for, once"
    assert len(decision.candidates) == len(target.deployments)
    if chosen is not None:
        best = next(candidate for candidate in decision.candidates if candidate.deployment is chosen)
        if not best.removed and best.terms:
            assert abs(sum(best.terms.values()) - best.total) < 1e-6 * max(1.0, best.total)
    document = told(make_exchange({"model": "m", "messages": []}), ask, decision, shown=False)
    assert document["sentence"]
    assert "127.0.0.1" not in repr(document) and "'e0'" not in repr(document), (
        "names of endpoints are hidden from keys that may not see them"
    )
