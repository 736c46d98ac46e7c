"""Over any sequence of reloads: what stays keeps its live state, what changes its address starts anew, settings are the new ones."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hx_gateway.assembly import Assembly
from hx_gateway.config.load import load_text
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.gateway import Gateway

Fleet = dict[str, tuple[int, str, int, float, dict[str, int]]]


class Named:
    """A provider that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    """By endpoint: port, key, limit, weight, and the limits of the models there. Two endpoints may have one address."""
    names = draw(st.lists(st.sampled_from(["one", "two", "three"]), unique=True, min_size=1))
    return {
        name: (
            draw(st.sampled_from([1, 1, 2, 3])),
            draw(st.sampled_from(["", "", "key-of-one-server"])),
            draw(st.integers(0, 3)),
            draw(st.sampled_from([1.0, 2.0])),
            draw(st.dictionaries(st.sampled_from(["chat", "embed"]), st.integers(0, 3))),
        )
        for name in names
    }


def yaml(fleet: Fleet) -> str:
    lines = ["endpoints:"]
    for name, (port, key, limit, _, _) in fleet.items():
        secret = f', api_key: "{key}"' if key else ""
        lines.append(f'  {name}: {{url: "http://127.0.0.1:{port}", discover: false, provider: openai, max_concurrent: {limit}{secret}}}')
    models = [
        f"  {model}-{name}: {{endpoint: {name}, upstream_model: {model}, weight: {weight}, max_concurrent: {most}}}"
        for name, (_, _, _, weight, there) in fleet.items()
        for model, most in there.items()
    ]
    return "\n".join([*lines, *(["models:", *models] if models else [])])


def live(one: Endpoint | Deployment) -> tuple[Any, ...]:
    """What must survive."""
    return one.in_flight, one.breaker, one.breaker.failures, one.breaker.state, one.cool_until_s


@settings(max_examples=40)
@given(st.lists(st.tuples(fleets(), st.integers(0, 5)), min_size=2, max_size=5))
def test_what_stays_keeps_its_state_over_reloads(steps: list[tuple[Fleet, int]]) -> None:
    before: Assembly | None = None
    was: Fleet = {}
    for fleet, busy in steps:
        config = load_text(yaml(fleet), "fleet.yaml", {}).config
        assert config is not None
        old_endpoints = before.endpoints if before is not None else {}
        old_deployments = {one.model: one for target in before.registry().targets.values() for one in target.deployments} if before else {}
        states = {one: live(one) for one in (*old_endpoints.values(), *old_deployments.values())}
        made = Assembly(config, Named, before)
        registry = made.registry()
        made.settled()
        deployments = {one.model: one for target in registry.targets.values() for one in target.deployments}
        assert set(made.endpoints) == set(fleet) == set(registry.endpoints)
        for name, (port, key, limit, weight, there) in fleet.items():
            endpoint = made.endpoints[name]
            same = name in was and was[name][:2] == (port, key)
            assert (endpoint is old_endpoints.get(name)) == same, "the same server, and no other, is the same object"
            assert (endpoint.address.port, endpoint.api_key, endpoint.max_concurrent) == (port, key, limit)
            for model, most in there.items():
                one = deployments[f"{model}-{name}"]
                assert (one is old_deployments.get(one.model)) == (same and model in was[name][4])
                assert (one.endpoint, one.weight, one.max_concurrent, one.upstream_model) == (endpoint, weight, most, model)
                if one not in states:
                    assert (one.in_flight, one.breaker.state, one.breaker.failures) == (0, "closed", 0)
        for one, state in states.items():
            assert live(one) == state, "a reload changes no live state, not even of what is gone"
        everyone = [*made.endpoints.values(), *deployments.values()]
        assert len({id(one.breaker) for one in everyone}) == len(everyone), "no two share a breaker"
        for number, touched in enumerate(everyone):  # what happens until the next one
            touched.in_flight += number + busy
            for _ in range(busy):
                touched.breaker.failed(10.0)
        before, was = made, fleet


async def test_connections_to_a_server_that_a_reload_took_away_are_closed_at_the_end() -> None:
    closed = []

    class Watched:
        """Pool of which only the end matters."""

        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    texts = [yaml({name: (port, "", 0, 1.0, {"chat": 0})}) for name, port in (("one", 1), ("two", 2))]
    before, after = (load_text(text, "gateway.yaml", {}).config for text in texts)
    assert before is not None and after is not None
    gateway = Gateway(before)
    gateway.registry.endpoints["one"].in_flight = 1
    gateway.reload(after)
    gateway.assembly.endpoints["two"].pool = Watched("two")
    gateway._retired[0].pool = Watched("one")
    await gateway.stop()
    assert sorted(closed) == ["one", "two"]
