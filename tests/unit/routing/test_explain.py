"""What explain says is what would be done: the same choice for the same state and random numbers, and no trace left."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.dataplane.explain import told
from hx_gateway.dataplane.suiting import suited
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint, Prices
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
        deployment.unable = draw(st.sampled_from([frozenset(), frozenset(), frozenset(("vision",)), frozenset(("tools", "thinking"))]))
        deployment.context_length = draw(st.sampled_from([0, 1024, 8192]))
        for breaker in (deployment.breaker, endpoint.breaker):
            state = draw(st.sampled_from(["closed", "closed", "closed", "open", "recovered"]))
            if state == "open":
                for _ in range(breaker.threshold):
                    breaker.failed(draw(st.floats(10, 100)))
            elif state == "recovered":
                breaker.closed_s = draw(st.floats(80, 100))
        deployments.append(deployment)
    return Target("m", "model", tuple(deployments), policy=draw(st.sampled_from(POLICIES)))


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}]}
TOOL = {"type": "function", "function": {"name": "f"}}
REQUESTS: tuple[dict[str, Any], ...] = (
    {"messages": []},
    {"messages": [IMAGE]},
    {"messages": [], "tools": [TOOL]},
    {"messages": [IMAGE], "reasoning_effort": "low"},
    {"messages": [{"role": "user", "content": "several words " * 1000}]},
    {"messages": [{"role": "user", "content": "several words " * 9000}], "tools": [TOOL]},
)


@given(fleets(), st.sampled_from(REQUESTS), st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 5))
def test_explain_chooses_what_the_live_router_chooses(whole: Target, body: dict[str, Any], seed: int, blocks: int, before: int) -> None:
    exchange = make_exchange({"model": "m", **body})
    target = suited(exchange, whole)  # the same for a live request and for one to be explained
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
    assert {candidate.deployment for candidate in decision.candidates} == set(whole.deployments), "every deployment is accounted for, once"
    assert len(decision.candidates) == len(whole.deployments)
    unfit = {candidate.deployment for candidate in decision.candidates if candidate.deployment not in target.deployments}
    assert all(candidate.removed for candidate in decision.candidates if candidate.deployment in unfit) and chosen not in unfit
    if chosen is not None:
        best = next(candidate for candidate in decision.candidates if candidate.deployment is chosen)
        if not best.removed and best.terms:
            counted = sum(seconds * decision.weights.get(name, 1.0) for name, seconds in best.terms.items())
            assert abs(counted - best.total) < 1e-6 * max(1.0, best.total), "the terms add up to what is compared"
    document = told(exchange, ask, decision, shown=False)
    assert document["sentence"]
    assert "127.0.0.1" not in repr(document) and "'e0'" not in repr(document), (
        "names of endpoints are hidden from keys that may not see them"
    )


def test_seconds_are_shown_as_they_are_and_a_term_that_counts_twice_says_so() -> None:
    slow, fast = (Deployment("m", "m", Endpoint(name, Address("http", name, 1))) for name in ("slow", "fast"))
    slow.pace.prefill_rate, fast.pace.prefill_rate = 1000.0, 2000.0
    router = Router(lambda name: policy(name, seconds_per_unit=10.0))
    fast.prices = Prices(per_request=0.05)
    ask = Ask(Target("m", "model", (slow, fast), policy="intelligent"), prompt_tokens=4000.0, output_tokens=40)
    decision = router.explain(ask, 0.0)
    best = next(candidate for candidate in decision.candidates if candidate.deployment is decision.chosen)
    assert decision.chosen is fast and decision.weights == {"prefill": 2.0}
    assert (best.terms["prefill"], best.terms["decode"], best.terms["price"]) == (2.0, 1.0, 0.5)  # money at its rate of exchange
    assert best.total == 2 * 2.0 + 1.0 + 0.5
    assert router.reason(ask, fast, 0.0) == "prefill 2.00 x2 + decode 1.00 + price 0.50 s"
    document = told(make_exchange({"model": "m", "messages": []}), ask, decision, shown=True)
    assert document["sentence"] == "m on fast: 5.50 s = prefill 2.00 x2 + decode 1.00 + price 0.50, the least of 2"
    assert document["weights"] == {"prefill": 2.0} and document["would_change"] == [
        "m on slow is 3.50 s behind, mostly by prefill (+4.00 s)"
    ]
