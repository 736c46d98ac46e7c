"""The schema: every setting documented once, strict and frozen; the owner's file loads as it is."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError
from tests.support.contract import OWNERS_FILE

from hx_gateway.config.load import load_text
from hx_gateway.config.schema import GatewayConfig, ModelSettings, UpstreamSettings, is_url
from hx_gateway.config.shape import at, dotted, settings


def test_the_owners_file_loads_as_it_is() -> None:
    loaded = load_text(OWNERS_FILE, "owner.yaml", {})
    config = loaded.config
    assert (config.service.name, config.service.port, config.service.host, config.service.workers) == (
        "unified-api-gateway",
        8000,
        "0.0.0.0",
        4,
    )
    assert (config.gateway.default_model, config.gateway.intelligent_routing) == ("mixtral-8x7b", True)
    assert (config.load_balancer.algorithm, config.load_balancer.circuit_breaker_timeout) == ("round_robin", 60)
    assert {
        name: (model.endpoint, model.weight, model.max_concurrent, model.cost_per_request) for name, model in config.models.items()
    } == {
        "mixtral-8x7b": ("http://llm-09:11400", 1.0, 10, 0.1),
        "hermes-2": ("http://llm-09:11401", 0.8, 20, 0.05),
        "openchat-3.5": ("http://llm-09:11402", 0.6, 50, 0.02),
        "phi-3-mini": ("http://llm-09:11403", 0.4, 100, 0.01),
    }
    assert (config.performance.rate_limit_rps, config.performance.memory_limit_gb, config.performance.cpu_cores) == (50, 2, 4)
    assert config.monitoring.prometheus_port == 9090
    assert loaded.warnings == ()
    assert [problem.path for problem in loaded.blockers] == ["service.host"]
    assert load_text(OWNERS_FILE, "owner.yaml", {"MASTER_KEY": "a-good-long-key"}).blockers == ()


def test_defaults_are_a_valid_configuration() -> None:
    loaded = load_text("", "empty.yaml", {})
    assert loaded.config == GatewayConfig()
    assert (loaded.warnings, loaded.blockers, loaded.unused) == ((), (), ())
    assert set(loaded.sources.values()) == {"default"}


def test_every_setting_has_one_sentence() -> None:
    for path, declared, _ in settings():
        about = declared.description or ""
        assert re.fullmatch(r"[A-Z].*[^.]\.", about, re.DOTALL), f"{dotted(path)}: {about!r} is no sentence"
        assert len(about) <= 160, dotted(path)


def test_every_section_and_setting_can_be_found_by_its_path() -> None:
    paths = [path for path, _, _ in settings()]
    assert len(paths) == len(set(paths)) > 100
    for path in paths:
        real = tuple(0 if part == "<n>" else "x" if part == "<name>" else part for part in path)
        assert at(real) is not None, dotted(path)


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError):
        GatewayConfig().service.port = 1  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [{"port": "8000"}, {"port": True}, {"port": 80.5}, {"workers": 0}, {"port": 65536}, {"name": 5}])
def test_types_and_ranges_are_strict(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GatewayConfig.model_validate({"service": wrong})


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("off", False), ("true", True), ("1", True), ('"no"', False)])
def test_flags_understand_what_people_write(text: str, value: bool) -> None:
    assert load_text(f"cors: {{enabled: {text}}}", "f", {}).config.cors.enabled is value


def test_an_upstream_may_be_an_address_a_name_or_a_section() -> None:
    def upstream(text: str) -> object:
        file = f"gateway: {{default_upstream: {text}}}\nendpoints: {{old: {{url: 'http://old:1'}}}}"
        return load_text(file, "f", {}).config.gateway.default_upstream

    assert upstream("http://litellm:4000") == UpstreamSettings(url="http://litellm:4000")
    assert upstream("litellm:4000") == UpstreamSettings(url="litellm:4000")
    assert upstream("old") == "old"
    section = upstream("{url: 'http://litellm:4000', api_key: long-enough, provider: openai}")
    assert isinstance(section, UpstreamSettings)
    assert section.api_key is not None
    assert section.api_key.reveal() == "long-enough"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("http://a", True), ("a:80", True), ("a:80/v1", True), ("[::1]:80", True), ("a", False), ("a.b", False), ("qwen3:1.7b", False)],
)
def test_addresses_are_told_from_names(text: str, expected: bool) -> None:
    assert is_url(text) is expected


def test_sections_left_empty_are_absent() -> None:
    loaded = load_text("models:\n  tiny:\nendpoints: {e: {url: 'http://e:1'}}\ngroups:\nkeys:\n  api_keys:\ncors:\n", "f", {})
    assert loaded.config.models == {"tiny": ModelSettings()}
    assert loaded.config.groups == {}
    assert loaded.config.keys.api_keys == ()


@pytest.mark.parametrize(("text", "value"), [("30m", "30m"), ("-1", -1), ("300", 300), ("1.5", 1.5)])
def test_keep_alive_takes_text_and_numbers(text: str, value: object) -> None:
    assert load_text(f"models: {{m: {{endpoint: 'http://e:1', keep_alive: {text}}}}}", "f", {}).config.models["m"].keep_alive == value
