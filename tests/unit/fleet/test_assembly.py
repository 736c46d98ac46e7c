"""From YAML and facts to the registry: what is carried over, what is served, what is kept in memory, and when to build it again."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.assembly import Assembly
from hx_gateway.config.load import load_text
from hx_gateway.fleet.facts import ModelFacts

A, B = "a" * 64, "b" * 64
FLEET = """
endpoints:
  one: {url: "http://one:11434", provider: ollama, slots: 4, memory_gb: 24, max_loaded_models: 3, disk_gb_per_second: 2.5}
  two: {url: "http://two:11434", provider: ollama}
  three: {url: "http://three:11434", provider: ollama}
models:
  emb: {endpoints: [one, two, three], mode: embedding}
  chat: {endpoints: [one, two], keep_alive: 10m}
  near: {endpoint: "http://near:11434"}
groups:
  g: {models: [emb]}
aliases: {e: emb}
"""


class Named:
    """A provider that only has a name."""

    def __init__(self, name: str) -> None:
        self.name = name


def assembly(more: str = "") -> Assembly:
    loaded = load_text(FLEET + more, "fleet.yaml", {})
    assert loaded.blockers == ()
    return Assembly(loaded.config, Named)


def tell(made: Assembly, model: str, **digests: str) -> None:
    for name, digest in digests.items():
        facts = made.endpoints[name].facts
        facts.engine = "ollama"
        facts.about = {**facts.about, model: ModelFacts(model, digest, size=5e9)}


def test_settings_reach_the_endpoint() -> None:
    made = assembly()
    one, two = made.endpoints["one"], made.endpoints["two"]
    assert (one.slots, one.configured_slots, one.residency.memory, one.residency.most, one.disk_rate) == (4, 4, 24e9, 3, 2.5e9)
    assert (two.slots, two.residency.memory, two.residency.most, two.disk_rate) == (0, 0.0, 0, 1e9)


def test_what_is_known_reaches_a_deployment_when_it_is_made() -> None:
    made = assembly()
    tell(made, "chat", one=A)
    (one, two) = made.registry().targets["chat"].deployments
    assert (one.size, one.pace.load_s, one.identity) == (5e9, 2.0, A) and two.size == 0.0


def test_embeddings_of_another_model_are_left_out_everywhere_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    made = assembly()
    assert len(made.registry().targets["emb"].deployments) == 3
    tell(made, "emb", one=A, two=B, three=B)
    registry = made.registry()
    for name in ("emb", "e", "g"):
        target = registry.targets[name]
        assert [one.endpoint.name for one in target.deployments] == ["two", "three"]
        assert [(one.endpoint.name, "never mixed" in why) for one, why in target.excluded] == [("one", True)]
    (notice,) = registry.notices
    assert notice.name == "emb" and "digest bbbbbbbbbbbb at two, three; digest aaaaaaaaaaaa at one" in notice.says()
    assert registry.targets["emb"].excluded[0][0] in registry.at(made.endpoints["one"])
    made.registry()
    assert [record.getMessage() for record in caplog.records] == [notice.says()]
    tell(made, "emb", one=B)
    assert len(made.registry().targets["emb"].deployments) == 3
    tell(made, "emb", one=A)
    made.registry()
    assert len(caplog.records) == 2  # it went away and came back


@pytest.mark.parametrize(("policy", "served"), [("warn", ["one", "two"]), ("exclude", ["one"])])
def test_digest_policy(policy: str, served: list[str]) -> None:
    made = assembly(f"load_balancer: {{digest_policy: {policy}}}\n")
    tell(made, "chat", one=A, two=B)
    registry = made.registry()
    assert [one.endpoint.name for one in registry.targets["chat"].deployments] == served and len(registry.notices) == 1


def test_a_pinned_digest_is_read_as_people_write_it() -> None:
    loaded = load_text(FLEET.replace("mode: embedding", f"mode: embedding, digest: 'sha256:{B[:20].upper()}'"), "f", {})
    made = Assembly(loaded.config, Named)
    tell(made, "emb", one=A, two=A, three=B)
    assert [one.endpoint.name for one in made.registry().targets["emb"].deployments] == ["three"]


def test_siblings_of_unknown_length_are_told_what_to_expect() -> None:
    made = assembly()
    one, two, three = made.registry().targets["emb"].deployments
    two.dimensions = 1024
    made.registry()
    assert (one.expected_dimensions, two.expected_dimensions, three.expected_dimensions) == (1024, 0, 1024)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("chat: {keep: [one]}", [("chat", "one", "10m")]),
        ("chat: {}", [("chat", "one", "10m"), ("chat", "two", "10m")]),
        ("chat: {keep: [two], keep_alive: 3600}", [("chat", "two", 3600)]),
        ("chat: {keep: [two], keep_alive: 1.5}", [("chat", "two", 1)]),
        ("emb: {keep: [three]}", [("emb", "three", -1)]),
        ("near: {keep: ['near:11434']}", [("near", "near:11434", -1)]),
        ("near: {keep: ['http://near:11434/']}", [("near", "near:11434", -1)]),
    ],
)
def test_placement_becomes_a_plan_that_requests_keep_to(plan: str, expected: list[tuple[str, str, Any]]) -> None:
    registry = assembly(f"placement: {{{plan}}}\n").registry()
    assert [(kept.deployment.model, kept.deployment.endpoint.name, kept.keep_alive) for kept in registry.placement] == expected
    assert all(kept.deployment.options.keep_alive == kept.keep_alive for kept in registry.placement)


def test_without_placement_nothing_is_kept() -> None:
    registry = assembly().registry()
    assert registry.placement == () and registry.targets["emb"].deployments[0].options.keep_alive is None


def test_it_says_when_the_registry_is_to_be_built_again() -> None:
    made = assembly()
    registry = made.registry()
    before = made.known()
    assert made.known() == before
    made.endpoints["two"].facts.models = ("new",)
    changed = made.known()
    assert changed != before
    registry.targets["emb"].deployments[0].dimensions = 384
    assert made.known() != changed


def test_a_server_of_our_own_has_the_slots_of_its_model(tmp_path: Any) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    loaded = load_text(f"models: {{mine: {{path: {file}, slots: 3}}, plain: {{path: {file}}}}}", "f", {})
    made = Assembly(loaded.config, Named)
    assert made.local("mine", "http://127.0.0.1:1", "").slots == 3 and made.local("plain", "http://127.0.0.1:2", "").slots == 1
