"""Servers whose speed is not known, or no longer what it was: they get their part, and never more than they are known to bear."""

from __future__ import annotations

import random

import pytest

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.simulation.plan import read_plan
from hx_gateway.simulation.run import Simulation
from hx_gateway.simulation.trace import Arrival

FLEET = """
models: {chat: {}}
servers: {gpu: {count: 4, slots: 8, prefill_tokens_per_second: 5000, decode_tokens_per_second: 100, decode_slowdown: 0.05}}
"""
OLLAMA = FLEET.replace("{chat: {}}", "{chat: {gb: 5}}").replace("slots: 8", "slots: 8, models_that_fit: 1")
POLICIES = ("intelligent", "latency")


class Scene:
    """Four equal servers, two requests a second, and what happens to the first of them."""

    def __init__(self, policy_name: str, until_s: float, seed: int = 1, fleet: str = FLEET) -> None:
        self.simulation = Simulation(read_plan(fleet, "fleet"), policy_name, seed)
        self.server = self.simulation.servers["gpu-1"]
        self.deployment = next(one for one in self.places if one.endpoint.name == "gpu-1")
        self.until_s = until_s
        self._random = random.Random(seed)

    @property
    def places(self) -> tuple[Deployment, ...]:
        return self.simulation._targets["chat"].deployments

    def at(self, at_s: float, speed: float = 1.0, weight: float = 1.0) -> None:
        """From then on the first server has another speed or weight."""

        def change() -> None:
            self.server.plan = self.server.plan.model_copy(update={"speed": speed})
            self.deployment.weight = weight

        self.simulation.events.at(at_s, change)

    def play(self) -> None:
        arrivals, at_s = [], 0.0
        while (at_s := at_s + self._random.expovariate(2.0)) < self.until_s:
            arrivals.append(Arrival(at_s, 500, max(10, int(self._random.expovariate(1 / 200)))))
        state = random.getstate()
        random.seed(1)
        self.simulation.play(arrivals)
        random.setstate(state)

    def sent(self, since_s: float, until_s: float) -> tuple[int, int]:
        """Requests of a time that went to the first server, and all of them."""
        names = [
            call.deployment.endpoint.name for call in self.simulation.calls if since_s <= call.arrival.at_s < until_s and call.deployment
        ]
        return names.count("gpu-1"), len(names)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("speed", [0.1, 0.5])
def test_a_slow_server_that_healed_gets_its_part_again(name: str, speed: float) -> None:
    scene = Scene(name, 1200.0)
    scene.at(0.0, speed)
    scene.at(300.0, 1.0)
    scene.play()
    sick, of = scene.sent(100, 300)
    assert sick <= (0.02 if speed == 0.1 else 0.15) * of, "while it is slow it is hardly asked"
    healed, of = scene.sent(800, 1200)
    assert healed >= 0.12 * of, "half of its even part, at the least"


def test_a_slow_host_that_loads_models_on_demand_and_healed_gets_its_part_again() -> None:
    scene = Scene("intelligent", 1200.0, fleet=OLLAMA)
    for server in scene.simulation.servers.values():
        server._models["chat"].loaded = True
    scene.at(0.0, 0.2)
    scene.at(300.0, 1.0)
    scene.play()
    assert scene.sent(100, 300)[0] <= 5
    healed, of = scene.sent(700, 1200)
    assert healed >= 0.2 * of, "minutes after it healed, nearly its even part"


@pytest.mark.parametrize("name", POLICIES)
def test_a_server_that_joins_is_not_left_out_though_its_siblings_are_faster_than_anyone_would_guess(name: str) -> None:
    scene = Scene(name, 300.0)
    scene.at(0.0, weight=0.0)
    scene.at(100.0)
    scene.play()
    assert scene.sent(0, 100)[0] == 0
    joined, of = scene.sent(105, 300)
    assert 0.12 * of <= joined <= 0.5 * of


@pytest.mark.parametrize("name", POLICIES)
def test_a_slow_server_that_joins_is_not_flooded_before_it_has_answered(name: str) -> None:
    scene = Scene(name, 200.0)
    scene.at(0.0, speed=0.05, weight=0.0)
    scene.at(100.0, speed=0.05)
    scene.play()
    joined, of = scene.sent(100, 200)
    assert 1 <= joined <= 0.03 * of


@pytest.mark.parametrize("name", POLICIES)
def test_of_a_burst_the_unknown_gets_no_more_than_those_that_are_known(name: str) -> None:
    known = [Deployment("m", "m", Endpoint(f"k{number}", Address("http", "h", number))) for number in (1, 2, 3)]
    new = Deployment("m", "m", Endpoint("new", Address("http", "h", 9)))
    for one in known:
        one.pace.learn_at_s = 100.0
        one.pace.answered(20.0, 2.0, 500, 90, True)  # slow, as the priors would not have it
    router = Router(policy)
    ask = Ask(Target("m", "model", (*known, new), policy=name), 500.0)
    for _ in range(40):
        chosen = router.choose(ask, 101.0)
        assert chosen is not None and (chosen is not new or new.in_flight <= min(one.in_flight for one in known) or not new.in_flight)
        chosen.in_flight += 1
        chosen.endpoint.in_flight += 1
        router.sent(ask, chosen, 101.0)
    assert 1 <= new.in_flight <= 10


def test_what_was_learned_is_only_forgotten_of_the_idle_with_a_sibling_to_go_by() -> None:
    one, two, other = (
        Deployment(model, model, Endpoint(name, Address("http", name, 1))) for model, name in (("m", "a"), ("m", "b"), ("x", "c"))
    )
    for deployment, at_s, writing_s in ((one, 1000.0, 1.0), (two, 0.0, 20.0), (other, 0.0, 20.0)):
        deployment.pace.learn_at_s = at_s
        deployment.pace.answered(writing_s + 0.5, 0.5, 500, 100, True)
    router = Router(policy)
    ask = Ask(Target("m", "group", (one, two, other), policy="intelligent"), 500.0)
    two.in_flight = 1
    router.choose(ask, 1001.0)
    assert two.pace.decode_rate == 5.0  # its answer is on its way
    two.in_flight = 0
    router.choose(ask, 1001.0)
    assert two.pace.decode_rate == one.pace.decode_rate == 100.0
    assert other.pace.decode_rate == 5.0  # nobody here has its model
    two.pace.learn_at_s = 1002.0
    two.pace.answered(20.5, 0.5, 500, 100, True)
    assert two.pace.decode_rate == 5.0  # and one answer is enough to know better
