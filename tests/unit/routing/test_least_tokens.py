"""The policy least_tokens: who had the fewest tokens of late, and has the fewest under way, comes first."""

from __future__ import annotations

from collections import Counter

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router


def places(*weights: float) -> tuple[Deployment, ...]:
    return tuple(Deployment("m", "m", Endpoint(f"e{n}", Address("http", f"h{n}", 1)), weight=one) for n, one in enumerate(weights))


def chosen(deployments: tuple[Deployment, ...], now_s: float) -> str:
    found = Router(policy).choose(Ask(Target("m", "model", deployments, policy="least_tokens"), 100.0), now_s)
    assert found is not None
    return found.endpoint.name


def test_tokens_are_spread_and_not_requests() -> None:
    deployments, now_s, requests = places(1.0, 1.0), 100.0, Counter[str]()
    for _ in range(400):
        now_s += 0.2
        name = chosen(deployments, now_s)
        requests[name] += 1
        deployments[int(name[1])].pace.tokens += 900 if name == "e0" else 100  # whoever asks the first asks for more
    tokens = [one.pace.tokens for one in deployments]
    assert 0.9 < tokens[0] / tokens[1] < 1.1
    assert requests["e1"] > 5 * requests["e0"]


def test_a_weight_is_a_share_of_the_tokens() -> None:
    deployments, now_s = places(3.0, 1.0), 100.0
    for _ in range(400):
        now_s += 0.2
        deployments[int(chosen(deployments, now_s)[1])].pace.tokens += 500
    assert 2.7 < deployments[0].pace.tokens / deployments[1].pace.tokens < 3.3


def test_what_is_under_way_counts_before_it_is_answered() -> None:
    deployments = places(1.0, 1.0)
    deployments[0].pace.tokens = 250
    assert chosen(deployments, 1.0) == "e1"
    deployments[1].in_flight = deployments[1].endpoint.in_flight = 2
    assert chosen(deployments, 1.0) == "e0"


def test_what_is_long_ago_is_forgotten() -> None:
    deployments = places(1.0, 1.0)
    deployments[0].pace.tokens, deployments[1].pace.tokens = 1_000_000, 1000
    assert chosen(deployments, 10.0) == "e1"
    deployments[1].pace.tokens += 1000
    assert chosen(deployments, 700.0) == "e0", "a thousand tokens now against a million ten minutes ago"
    assert chosen(deployments, 600.0) == "e0", "a clock that is behind changes nothing"
