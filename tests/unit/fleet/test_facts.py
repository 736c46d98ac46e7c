"""Facts: names with and without ``:latest``, and shares of memory."""

from __future__ import annotations

import pytest

from hx_gateway.fleet.facts import EndpointFacts, LoadedModel, ModelFacts, either_name, same_model


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("phi3", "phi3:latest", True), ("phi3:latest", "phi3", True), ("phi3", "phi3", True), ("phi3:mini", "phi3", False), ("phi3", "phi", False)],
)  # fmt: skip
def test_latest_is_implied(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same


def test_a_plain_look_up_finds_either_name() -> None:
    assert either_name(["phi3:latest", "qwen3:8b"]) == {"phi3", "phi3:latest", "qwen3:8b"}


def test_facts_are_found_under_every_name_the_server_answers_to() -> None:
    phi, other = ModelFacts("phi3:latest"), ModelFacts("other:1b")
    facts = EndpointFacts(engine="ollama", about={"other:1b": other, "phi3:latest": phi})
    assert facts.of("phi3") is phi and facts.of("phi3:latest") is phi and facts.of("none") is None
    facts = EndpointFacts(engine="llamacpp", about={"tiny": phi})
    assert facts.of("any") is phi
    assert EndpointFacts(engine="vllm", about={"tiny": phi}).of("any") is None
    held = LoadedModel("phi3:latest")
    assert EndpointFacts(memory={"phi3:latest": held}).in_memory("phi3") is held and EndpointFacts().in_memory("phi3") is None


@pytest.mark.parametrize(("size", "vram", "spilled"), [(10, 10, 0.0), (10, 5, 0.5), (10, 0, 1.0), (0, 0, 0.0), (10, 12, 0.0)])
def test_the_share_outside_the_accelerator(size: float, vram: float, spilled: float) -> None:
    assert LoadedModel("m", size, vram).spilled == spilled
