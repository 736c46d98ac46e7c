"""What the router believes of caches, memory and speed, held against a simulated server's truth."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.facts import PromptCache
from hx_gateway.fleet.pace import Pace
from hx_gateway.fleet.registry import Target
from hx_gateway.fleet.residency import Residency
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.policies import policy
from hx_gateway.routing.prefix import PrefixIndex
from hx_gateway.routing.router import Router
from hx_gateway.simulation.cache import BlockCache
from hx_gateway.simulation.trace import chained

prompts = st.lists(st.lists(st.integers(0, 3), max_size=6).map(chained), max_size=60)


@given(prompts, st.integers(0, 12), st.integers(0, 12))
def test_of_known_sizes_the_index_holds_just_what_the_caches_hold(sent: list[tuple[int, ...]], small: int, large: int) -> None:
    index = PrefixIndex()
    caches = {"small": BlockCache(small), "large": BlockCache(large)}
    for name, size in (("small", small), ("large", large)):
        index.sized(index.held(name), 16.0 * size)
    for number, blocks in enumerate(sent):
        bits = [index.bit(name) for name in caches]
        # A cache that a prompt does not fit into keeps its beginning; so does the index, by another way.
        if len(blocks) <= min(small, large):
            assert index.matches(blocks, bits) == [cache.leading(blocks) for cache in caches.values()]
            name = ("small", "large")[number % 2]
            index.add(blocks, index.held(name), 16.0)
            caches[name].keep(blocks)
    assert index.held("small").tokens <= 16.0 * small and index.held("large").tokens <= 16.0 * large
    index.forget(index.held("small"))
    index.forget(index.held("large"))
    assert len(index) == 0 and index.held("small").tokens == 0.0


def test_blocks_of_unequal_size_are_counted_in_tokens() -> None:
    index = PrefixIndex()
    index.sized(index.held("a"), 1000.0)
    blocks = chained(range(3))
    index.add(blocks, index.held("a"), 0.0, (0.0, 100.0, 400.0, 1600.0))
    assert index.held("a").tokens == 400.0
    assert index.matches(blocks, [index.bit("a")]) == [2]


@pytest.mark.parametrize("truth", [60_000, 1_000_000])
def test_the_size_of_a_cache_is_learned_from_what_answers_tell(truth: int) -> None:
    rng = random.Random(1)
    index, cache = PrefixIndex(), BlockCache(truth // 512)
    for _ in range(6000):
        # Conversations of unequal popularity, each with its own blocks.
        user = int(rng.paretovariate(0.4)) % 4000
        blocks = chained([user, *range(8)])
        believed = index.matches(blocks, [index.bit("a")])[0] * 512
        index.add(blocks, index.held("a"), 512.0)
        cached = cache.leading(blocks) * 512
        cache.keep(blocks)
        index.verified(index.held("a"), 9 * 512, believed, cached)
    assert index.held("a").limit == pytest.approx(truth, rel=0.35)


def test_a_told_size_is_not_learned_away() -> None:
    index = PrefixIndex()
    index.sized(index.held("a"), 5000.0)
    index.verified(index.held("a"), 1000.0, 1000.0, 0.0)
    assert index.held("a").limit == 5000.0


def prompt_for(*deployments: Deployment) -> Ask:
    return Ask(Target("m", "model", deployments, policy="intelligent"), 4096.0, blocks=chained(range(8)))


def test_a_size_that_is_told_is_where_learning_begins_and_no_cache_stays_none() -> None:
    index = PrefixIndex()
    held = index.held("a")
    told = PromptCache(tokens=50_000.0)
    index.heed(held, told)
    assert held.limit == 50_000.0
    index.verified(held, 1000.0, 1000.0, 0.0)
    assert held.limit < 50_000.0
    learned = held.limit
    index.heed(held, PromptCache(tokens=50_000.0))
    assert held.limit == learned  # the same words again teach nothing
    index.heed(held, PromptCache(tokens=0.0))
    index.add(chained(range(3)), held, 512.0)
    index.verified(held, 1000.0, 0.0, 900.0)
    assert (held.limit, held.tokens, len(index)) == (0.0, 0.0, 0)


def test_a_server_that_was_started_anew_has_nothing_cached() -> None:
    one, two = host("a", "m")[0], host("b", "m")[0]
    router = Router(policy)
    ask = prompt_for(one, two)
    for deployment in (one, two):
        router.sent(ask, deployment, 0.0)
    assert router.cached(ask, (one, two)) == [4096.0, 4096.0]
    one.endpoint.facts.cache = PromptCache(life=1)
    assert router.cached(ask, (one, two)) == [0.0, 4096.0]
    assert {router.choose(ask, 0.0) for _ in range(20)} == {two}


def test_a_model_that_was_unloaded_has_nothing_cached_and_its_neighbour_keeps_its_own() -> None:
    one, other = host("h", "one", "other")
    router = Router(policy)
    memory = one.endpoint.residency
    memory.told({"one": 5e9, "other": 5e9}, 0.0)
    ask = prompt_for(one)
    for deployment in (one, other):
        router.sent(ask, deployment, 1.0)
    assert router.cached(ask, (one, other)) == [4096.0, 4096.0]
    memory.told({"other": 5e9}, 500.0)
    assert router.cached(ask, (one, other)) == [0.0, 4096.0]
    longer = Ask(ask.target, 512.0, blocks=chained([99]))
    router.sent(longer, one, 501.0)  # it is loaded again, for another prompt
    assert router.cached(ask, (one, other)) == [0.0, 4096.0] and router.cached(longer, (one,)) == [512.0]


def host(name: str, *models: str) -> list[Deployment]:
    endpoint = Endpoint(name, Address("http", name, 1))
    found = [Deployment(model, model, endpoint) for model in models]
    for deployment in found:
        deployment.size = 5e9
    return found


def test_what_fits_is_learned_once_a_model_is_seen_to_go_for_another() -> None:
    one, two, three = host("h", "one", "two", "three")
    memory = Residency()
    memory.told({"one": 5e9, "two": 5e9}, 0.0)
    for deployment, at_s in ((one, 1.0), (two, 2.0), (one, 3.0)):
        memory.sent(deployment, at_s)
    assert memory.load_s(three, 4.0) == three.pace.load_s  # nothing is known that would have to go
    memory.told({"one": 5e9, "three": 5e9}, 10.0)
    memory.sent(three, 11.0)
    assert memory.pushed
    cost_s = memory.load_s(two, 12.0)
    assert cost_s > two.pace.load_s  # and who wants the one that goes will wait for it
    memory.sent(two, 12.0)
    assert set(memory.resident) == {"three", "two"}


def test_a_model_whose_time_ran_out_teaches_nothing_of_room() -> None:
    (one,) = host("h", "one")
    memory = Residency()
    memory.told({"one": 5e9}, 0.0)
    memory.sent(one, 1.0)
    memory.told({"two": 5e9}, 600.0)
    assert not memory.pushed


def test_a_load_waits_for_the_loads_before_it() -> None:
    one, two, three = host("h", "one", "two", "three")
    memory = Residency()
    memory.told({}, 0.0)
    memory.sent(one, 0.0)
    assert memory.load_s(two, 3.0) == pytest.approx(one.pace.load_s - 3.0 + two.pace.load_s)
    memory.sent(two, 3.0)
    assert memory.load_s(two, 3.0) == pytest.approx(one.pace.load_s + two.pace.load_s - 3.0)
    assert memory.load_s(three, 3.0) == pytest.approx(one.pace.load_s + two.pace.load_s - 3.0 + three.pace.load_s)


def test_short_prompts_do_not_make_a_server_seem_slow() -> None:
    """Each answer costs a millisecond besides: a mean of rates would be far off, tokens over seconds is not."""
    rng = random.Random(2)
    pace = Pace()
    for _ in range(300):
        tokens = rng.choice([80, 100, 20_000, 30_000])
        reading_s = tokens / 12_000 + 0.002
        pace.answered(reading_s + 1.0, reading_s, tokens, 80, True)
    assert pace.prefill_rate == pytest.approx(12_000, rel=0.05)
    assert pace.decode_rate == pytest.approx(80, rel=0.01)


def test_a_rate_that_is_corrected_from_outside_stays_corrected() -> None:
    pace = Pace()
    for _ in range(50):
        pace.answered(2.0, 1.0, 10_000, 80, True)
    pace.prefill_rate *= 0.1  # a probe found the model outside the accelerator
    pace.answered(11.0, 10.0, 10_000, 80, True)
    assert pace.prefill_rate == pytest.approx(1000.0)


def test_chance_differences_in_length_do_not_steer() -> None:
    one, two = host("a", "m")[0], host("b", "m")[0]
    one.pace.output_tokens, two.pace.output_tokens = 900.0, 20.0  # as it happened: the model is the same
    one.endpoint.pending_s, two.endpoint.pending_s = 0.0, 1.0
    router = Router(policy)
    ask = Ask(Target("m", "model", (one, two), policy="intelligent"), 100.0)
    assert {router.choose(ask, 0.0) for _ in range(50)} == {one}


def test_slots_are_each_models_where_models_are_loaded_on_demand() -> None:
    (busy, idle), (other, same) = host("a", "busy", "idle"), host("b", "busy", "idle")
    for deployment in (busy, idle, other, same):
        deployment.endpoint.slots = 2
        deployment.pace.service_s = 10.0
        deployment.endpoint.residency.told({"busy": 5e9, "idle": 5e9}, 0.0)
    busy.in_flight, busy.endpoint.in_flight = 2, 2
    same.endpoint.pending_s = 1.0
    router = Router(policy)
    asked = Ask(Target("idle", "model", (idle, same), policy="intelligent"), 100.0)
    assert {router.choose(asked, 1.0) for _ in range(20)} == {idle}
    asked = Ask(Target("busy", "model", (busy, other), policy="intelligent"), 100.0)
    assert {router.choose(asked, 1.0) for _ in range(20)} == {other}
