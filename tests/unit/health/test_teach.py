"""From facts of a server to settings of its deployments: sizes, context, abilities, load times and speeds."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.dataplane.stages.cache import mark_of
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, DeploymentOptions, Endpoint
from hx_gateway.fleet.facts import EngineLoad, LoadedModel, ModelFacts
from hx_gateway.fleet.pace import Pace
from hx_gateway.fleet.registry import Target
from hx_gateway.health.teach import teach, teach_residency

GB = 1e9


def deployment(engine: str = "ollama", upstream: str = "phi3", disk_rate: float = GB, **options: Any) -> Deployment:
    endpoint = Endpoint("e", Address("http", "127.0.0.1", 9), disk_rate=disk_rate)
    endpoint.facts.engine = engine
    return Deployment("m", upstream, endpoint, options=DeploymentOptions(**options), pace=Pace())


def known(one: Deployment, **facts: Any) -> None:
    one.endpoint.facts.about = {"phi3:latest": ModelFacts("phi3:latest", **facts)}


def held(one: Deployment, **facts: Any) -> None:
    one.endpoint.facts.memory = {"phi3:latest": LoadedModel("phi3:latest", **facts)}
    one.endpoint.facts.loaded = frozenset(("phi3", "phi3:latest"))


def test_nothing_known_changes_nothing() -> None:
    one = deployment(num_ctx=4096)
    before = (one.size, one.pace.load_s, one.pace.decode_rate, dict(one.options.extra))
    teach(one)
    assert (one.size, one.pace.load_s, one.pace.decode_rate, dict(one.options.extra)) == before
    assert (one.context_length, one.unable, one.spilled) == (4096, frozenset(), -1.0)


def test_a_model_is_found_by_its_name_without_latest() -> None:
    one = deployment()
    known(one, size=2 * GB, able=frozenset(("completion",)), unable=frozenset(("vision", "tools")))
    teach(one)
    assert one.size == 2 * GB and one.unable == {"vision", "tools"}
    assert one.options.extra["capabilities"] == ["completion"]
    held(one, size=3 * GB, vram=3 * GB)
    teach(one)
    assert one.size == 3 * GB  # in memory it takes more than its file


def test_capabilities_are_for_ollamas_dialect_only_and_go_when_they_are_not_told_any_more() -> None:
    one = deployment("llamacpp")
    known(one, able=frozenset(("tools",)), unable=frozenset(("vision",)))
    teach(one)
    assert one.unable == {"vision"} and "capabilities" not in one.options.extra
    other = deployment()
    known(other, able=frozenset(("completion",)))
    teach(other)
    known(other)
    teach(other)
    assert "capabilities" not in other.options.extra


@pytest.mark.parametrize(
    ("num_ctx", "loaded", "default", "trained", "expected"),
    [
        (None, 0, "", 0, 0),
        (None, 0, "", 131072, 131072),
        (None, 0, "8192", 131072, 8192),
        (None, 4096, "8192", 131072, 4096),
        (16384, 4096, "8192", 131072, 16384),
        (16384, 0, "", 8192, 8192),
        (None, 0, "many", 2048, 2048),
    ],
)
def test_context_of_a_model_at_ollama(num_ctx: int | None, loaded: int, default: str, trained: int, expected: int) -> None:
    one = deployment(num_ctx=num_ctx)
    known(one, trained_context=trained, defaults={"num_ctx": default})
    if loaded:
        held(one, size=1.0, context_length=loaded)
    teach(one)
    assert (one.context_length, one.loaded_context) == (expected, loaded)


def test_context_elsewhere_is_what_the_server_says() -> None:
    one = deployment("vllm", "m")
    one.endpoint.facts.about = {"m": ModelFacts("m", context_length=32768, trained_context=131072)}
    teach(one)
    assert one.context_length == 32768


def test_a_llamacpp_server_with_one_model_is_known_under_any_name() -> None:
    one = deployment("llamacpp", "whatever")
    known(one, trained_context=1024)
    teach(one)
    assert one.context_length == 1024
    two = deployment("vllm", "whatever")
    known(two, trained_context=1024)
    teach(two)
    assert two.context_length == 0


def test_load_time_is_assumed_from_size_until_one_was_seen() -> None:
    one = deployment(disk_rate=0.5 * GB)
    known(one, size=10 * GB)
    teach(one)
    assert one.pace.load_s == 20.0
    known(one, size=12 * GB)
    teach(one)
    assert one.pace.load_s == 24.0
    one.pace.answered(30.0, 29.0, 0, 0, True, load_s=6.0)
    learned = one.pace.load_s
    known(one, size=1.0)
    teach(one)
    assert one.pace.load_s == learned != 24.0
    small = deployment()
    known(small, size=1.0)
    teach(small)
    assert small.pace.load_s == 0.5


def test_a_model_outside_the_accelerator_is_expected_to_be_slower() -> None:
    one = deployment()
    held(one, size=10 * GB, vram=5 * GB)
    teach(one)
    assert one.spilled == 0.5 and one.pace.decode_rate == pytest.approx(40.0 / 5.5) and one.pace.prefill_rate == pytest.approx(5000.0 / 5.5)
    teach(one)
    assert one.pace.decode_rate == pytest.approx(40.0 / 5.5)
    held(one, size=10 * GB, vram=10 * GB)
    teach(one)
    assert one.spilled == 0.0 and one.pace.decode_rate == pytest.approx(40.0)
    one.endpoint.facts.memory = {}
    teach(one)
    assert one.spilled == 0.0


def test_speeds_that_were_learned_at_an_unknown_share_are_not_corrected_for_it() -> None:
    one = deployment()
    one.pace.answered(2.0, 1.0, 100, 20, True)
    learned = one.pace.decode_rate
    held(one, size=10.0, vram=0.0)
    teach(one)
    assert one.pace.decode_rate == learned and one.spilled == 1.0


def test_what_was_seen_of_another_model_of_the_name_is_forgotten() -> None:
    one = deployment()
    known(one, digest="a" * 64)
    teach(one)
    one.dimensions = 1024
    teach(one)
    assert one.dimensions == 1024
    known(one, digest="b" * 64)
    teach(one)
    assert one.dimensions == 0


def test_residency_speaks_the_names_of_the_deployments() -> None:
    one = deployment(upstream="phi3")
    held(one, size=3 * GB)
    one.endpoint.facts.memory = {**one.endpoint.facts.memory, "other:1b": LoadedModel("other:1b", GB)}
    teach_residency(one.endpoint, [one], 100.0)
    residency = one.endpoint.residency
    assert residency.managed and {name: model.size for name, model in residency.resident.items()} == {"phi3": 3 * GB, "other:1b": GB}
    assert residency.load_s(one, 101.0) == 0.0
    one.endpoint.facts.memory = {}
    teach_residency(one.endpoint, [one], 102.0)
    assert residency.load_s(one, 103.0) == one.pace.load_s
    one.endpoint.facts.loaded = None
    teach_residency(one.endpoint, [one], 104.0)
    assert not residency.managed and residency.load_s(one, 105.0) == 0.0


def test_two_names_of_one_model_take_its_memory_once() -> None:
    one, two = deployment(upstream="phi3"), deployment(upstream="phi3:latest")
    two.endpoint = one.endpoint
    held(one, size=3 * GB)
    teach_residency(one.endpoint, [one, two], 100.0)
    resident = one.endpoint.residency.resident
    assert set(resident) == {"phi3", "phi3:latest"} and sum(model.size for model in resident.values()) == 3 * GB


def test_what_a_server_read_is_gone_when_it_was_started_anew() -> None:
    endpoint = deployment().endpoint
    facts = endpoint.facts

    def life(version: str = "1", started_s: float | None = None, read: float | None = None, away: bool = False) -> int:
        facts.version, facts.away = version, away
        facts.load = EngineLoad(started_s=started_s, read_tokens=read, cache_tokens=1000.0)
        teach_residency(endpoint, (), 0.0)
        return facts.cache.life

    first = life()
    assert facts.cache.tokens == 1000.0
    same = facts.cache
    assert life() == first and facts.cache is same
    assert life(away=True) == first + 1  # nothing shows that it is the same process
    assert life(version="2") == first + 2
    assert life(version="2", started_s=100.0) == first + 2  # the first that is heard of it
    assert life(version="2", started_s=100.0, away=True) == first + 2  # it was slow to answer, and is the same
    assert life(version="2", started_s=200.0) == first + 3
    assert life(version="2", read=5000.0) == first + 3
    assert life(version="2", read=6000.0, away=True) == first + 3
    assert life(version="2", read=10.0) == first + 4
    facts.load = None  # it did not tell this time
    teach_residency(endpoint, (), 0.0)
    assert (facts.cache.life, facts.cache.tokens) == (first + 4, 1000.0)


def test_a_server_that_tells_nothing_of_a_model_does_not_change_what_cached_answers_are_known_by() -> None:
    """Else an answer kept before the first probe was gone after it, and all such servers were taken to have the same model."""
    here, there = deployment("vllm"), deployment("vllm")
    there.endpoint.address = Address("http", "127.0.0.1", 10)  # type: ignore[misc]
    before = mark_of(Target("m", "model", (here,)))
    for one in (here, there):
        known(one)
        teach(one)
        assert one.identity == ""
    assert mark_of(Target("m", "model", (here,))) == before != mark_of(Target("m", "model", (there,)))
    known(here, digest="a" * 64)
    teach(here)
    assert here.identity == "a" * 64 and mark_of(Target("m", "model", (here,))) != before
