"""What is checked of placement, and of fallbacks for embeddings."""

from __future__ import annotations

import pytest

from hx_gateway.config.load import ConfigError, load_text

FLEET = """
endpoints:
  one: {url: "http://one:11434", max_loaded_models: 1, discover: false}
  two: {url: "http://two:11434/v1", discover: false}
models:
  chat: {endpoints: [one, "http://two:11434"]}
  emb: {endpoint: one, mode: embedding}
groups:
  embs: {models: [emb]}
"""


def problems(more: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_text(FLEET + more, "f", {})
    return [f"{problem.path}: {problem.message}" for problem in error.value.problems]


@pytest.mark.parametrize(
    "more", ["placement: {chat: {keep: [one]}}", "placement: {chat: {keep: [two]}}", "placement: {chat: {keep: ['two:11434']}}"]
)
def test_a_place_may_be_written_as_name_or_address(more: str) -> None:
    loaded = load_text(FLEET + more, "f", {})
    assert loaded.warnings == () and loaded.config.placement["chat"].keep_alive is None


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ("placement: {chatt: {}}", "placement.chatt", "did you mean chat?"),
        ("placement: {chat: {keep: [thre]}}", "placement.chat.keep[0]", "no entry of this name in endpoints"),
        ("placement: {emb: {keep: [one, two]}}", "placement.emb.keep[1]", "not served there; its places are one"),
        ("fallbacks: {emb: {down: [chat]}}", "fallbacks.emb.down", "cannot stand in"),
        ("fallbacks: {embs: {context: [chat]}}", "fallbacks.embs.context", "cannot stand in"),
        ("load_balancer: {digest_policy: maybe}", "load_balancer.digest_policy", "exclude"),
    ],
)
def test_what_leads_nowhere_is_refused(more: str, path: str, words: str) -> None:
    assert any(said.startswith(f"{path}: ") and words in said for said in problems(more)), problems(more)


@pytest.mark.parametrize("setting", ["slots: -1", "memory_gb: -1", "disk_gb_per_second: 0", "max_loaded_models: 1.5"])
def test_figures_of_an_endpoint_have_bounds(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition(":")[0]):
        load_text(f"endpoints: {{e: {{url: 'http://e:1', {setting}}}}}", "f", {})


@pytest.mark.parametrize("digest", ["abc", "sha256:xyzxyzxyzxyz", "12345678901g"])
def test_a_digest_has_its_form(digest: str) -> None:
    with pytest.raises(ConfigError, match="digest"):
        load_text(f"models: {{m: {{endpoint: 'http://e:1', digest: '{digest}'}}}}", "f", {})


def test_a_plan_that_cannot_fit_is_a_warning() -> None:
    (warning,) = load_text(FLEET + "placement: {chat: {}, emb: {}}", "f", {}).warnings
    assert "endpoints.one.max_loaded_models" in str(warning) and "chat, emb" in str(warning)


def test_a_model_of_our_own_is_in_memory_anyway(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="keeps it in memory anyway"):
        load_text(f"models: {{mine: {{path: '{tmp_path}'}}}}\nplacement: {{mine: {{}}}}", "f", {})
