"""Healthy, degraded, unhealthy."""

from __future__ import annotations

import math

from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.health.summary import deployment_usable, summarize, why_unusable


def endpoint(healthy: bool | None = None) -> Endpoint:
    made = Endpoint("e", Address("http", "127.0.0.1", 9))
    made.facts.healthy = healthy
    return made


def fleet(**states: list[bool | None]) -> Registry:
    return Registry(
        {name: Target(name, "model", tuple(Deployment(name, name, endpoint(state)) for state in list_)) for name, list_ in states.items()},
        {},
    )


def test_all_well_or_not_yet_known() -> None:
    assert summarize(fleet(a=[True], b=[None, True])).status == "healthy"


def test_some_down() -> None:
    summary = summarize(fleet(a=[True], b=[False, True], c=[False]))
    assert summary.status == "degraded"
    assert summary.models == ("a", "b", "c")
    assert summary.unavailable == ("c",)


def test_none_left() -> None:
    assert summarize(fleet(a=[False], b=[False, False])).status == "unhealthy"
    assert summarize(Registry({}, {})).status == "unhealthy"


def test_a_name_without_deployments_is_unavailable() -> None:
    assert summarize(fleet(a=[True], b=[])).status == "degraded"


def test_an_open_breaker_counts_as_down() -> None:
    breaker = Breaker(1)
    breaker.failed(0.0)
    open_one = Deployment("a", "a", endpoint(True), breaker=breaker)
    assert summarize(Registry({"a": Target("a", "model", (open_one,))}, {})).status == "unhealthy"


def test_a_drained_server_is_out_of_service_by_intent() -> None:
    registry = fleet(a=[True, True], b=[True])
    first, second, alone = (one for target in registry.targets.values() for one in target.deployments)
    first.endpoint.cool_until_s = math.inf
    assert [deployment_usable(one) for one in (first, second)] == [False, True]
    assert (why_unusable(first, 1), why_unusable(first, 0), why_unusable(second, 1)) == ("draining", "drained", "")
    assert summarize(registry).status == "healthy"
    alone.endpoint.cool_until_s = math.inf
    assert (summarize(registry).status, summarize(registry).unavailable) == ("degraded", ("b",))
    second.endpoint.cool_until_s = math.inf
    assert summarize(registry).status == "unhealthy"


def test_why_another_one_is_not_used() -> None:
    (down,) = fleet(a=[False]).targets["a"].deployments
    assert why_unusable(down, 0) == "down"
    down.endpoint.facts.healthy = True
    down.breaker.threshold = 1
    down.breaker.failed(0.0)
    assert why_unusable(down, 0) == "resting"


def test_a_gateway_that_only_forwards_is_as_well_as_its_upstream() -> None:
    assert summarize(Registry({}, {}, forward_to=endpoint(True))).status == "healthy"
    assert summarize(Registry({}, {}, forward_to=endpoint(False))).status == "unhealthy"
