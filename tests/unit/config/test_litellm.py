"""LiteLLM files: each documented key has its effect and its remark, nothing is lost in silence, and no secret leaves the environment file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hx_gateway.config import litellm
from hx_gateway.config.environment import NAMES
from hx_gateway.config.litellm_findings import LEVELS, as_json, as_markdown, counts, rows
from hx_gateway.config.litellm_rows import HANDLED
from hx_gateway.config.litellm_settings import _GENERAL, _LITELLM, _ROUTER
from hx_gateway.config.load import ConfigError, load, load_text
from hx_gateway.config.located import Place
from hx_gateway.core.context import CHAT
from hx_gateway.fleet.endpoint import Address, Endpoint

CORPUS = Path(__file__).parents[2] / "data" / "litellm"
FILES = sorted(CORPUS.glob("*.yaml"))
ONE = "model_list: [{model_name: m, litellm_params: {model: ollama/m, api_base: 'http://a:11434'%s}%s}]\n"
TWO = """
model_list:
  - {model_name: m, litellm_params: {model: ollama/m, api_base: 'http://a:11434'}}
  - {model_name: n, litellm_params: {model: ollama/n, api_base: 'http://b:11434'}}
"""


def imported(tmp_path: Path, text: str, **environ: str) -> litellm.Imported:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return litellm.load(path, environ)


def at(data: Any, dotted: str) -> Any:
    for part in dotted.split("/"):
        data = data[part]
    return data


def row(params: str = "", beside: str = "") -> str:
    return ONE % (params and f", {params}", beside and f", {beside}")


def settings(section: str, text: str) -> str:
    return f"{TWO}{section}: {{{text}}}\n"


# Each line of the table: the file, where and what it became, and the key with its level.
@pytest.mark.parametrize(
    ("text", "target", "value", "key", "level"),
    [
        (row(), "models/m", {"endpoint": "a"}, "model_list[0].model_name", "exact"),
        (row(), "endpoints/a/provider", "ollama", "model_list[0].litellm_params.model", "exact"),
        (row(), "endpoints/a/url", "http://a:11434", "model_list[0].litellm_params.api_base", "exact"),
        (row("api_key: os.environ/K"), "endpoints/a/api_key", "env:K", "model_list[0].litellm_params.api_key", "exact"),
        (row("rpm: 60"), "models/m/requests_per_minute", 60, "model_list[0].litellm_params.rpm", "approximate"),
        (row("tpm: 60"), "models/m/tokens_per_minute", 60, "model_list[0].litellm_params.tpm", "approximate"),
        (row("rpm: 60", "") + "router_settings: {routing_strategy: usage-based-routing}", "models/m/requests_per_minute", 60, "model_list[0].litellm_params.rpm", "exact"),
        (row("rpm: 60", "") + "router_settings: {optional_pre_call_checks: [enforce_model_rate_limits]}", "models/m/requests_per_minute", 60, "model_list[0].litellm_params.rpm", "exact"),
        (row("rpm: 0"), "models/m", {"endpoint": "a"}, "model_list[0].litellm_params.rpm", "exact"),
        (row("extra_body: {chat_template_kwargs: {enable_thinking: false}}"), "models/m/defaults/chat_template_kwargs", {"enable_thinking": False}, "model_list[0].litellm_params.extra_body.chat_template_kwargs", "exact"),
        (row("stop: [a, b]"), "models/m/defaults/stop", ["a", "b"], "model_list[0].litellm_params.stop", "exact"),
        (row("organization: org-1"), "endpoints/a/headers/OpenAI-Organization", "org-1", "model_list[0].litellm_params.organization", "exact"),
        (row("ssl_verify: false"), "endpoints/a/tls_verify", False, "model_list[0].litellm_params.ssl_verify", "exact"),
        (row("ssl_verify: /etc/ca.pem"), "endpoints/a/tls_ca_file", "/etc/ca.pem", "model_list[0].litellm_params.ssl_verify", "exact"),
        (row("max_parallel_requests: 4"), "models/m/max_concurrent", 4, "model_list[0].litellm_params.max_parallel_requests", "exact"),
        (row("timeout: 9"), "endpoints/a/total_timeout_seconds", 9, "model_list[0].litellm_params.timeout", "approximate"),
        (row("stream_timeout: 9"), "endpoints/a/request_timeout_seconds", 9, "model_list[0].litellm_params.stream_timeout", "approximate"),
        (row("max_retries: 9"), "models/m/endpoint", "a", "model_list[0].litellm_params.max_retries", "approximate"),
        (row("num_retries: 9"), "models/m/endpoint", "a", "model_list[0].litellm_params.num_retries", "approximate"),
        (row("keep_alive: 30m"), "models/m/keep_alive", "30m", "model_list[0].litellm_params.keep_alive", "exact"),
        (row("num_ctx: 8192"), "models/m/num_ctx", 8192, "model_list[0].litellm_params.num_ctx", "exact"),
        (row("temperature: 0.5"), "models/m/defaults/temperature", 0.5, "model_list[0].litellm_params.temperature", "exact"),
        (row("input_cost_per_token: 1e-6"), "models/m/cost_per_prompt_token", 1e-6, "model_list[0].litellm_params.input_cost_per_token", "exact"),
        (row("output_cost_per_token: 1e-6"), "models/m/cost_per_completion_token", 1e-6, "model_list[0].litellm_params.output_cost_per_token", "exact"),
        (row("input_cost_per_second: 0.5"), "endpoints/a/cost_per_hour", 1800, "model_list[0].litellm_params.input_cost_per_second", "approximate"),
        (row("tags: [x]"), "models/m/tags", ["x"], "model_list[0].litellm_params.tags", "exact"),
        (row("", "model_info: {access_groups: [x]}"), "models/m/tags", ["x"], "model_list[0].model_info.access_groups", "exact"),
        (row("", "model_info: {mode: embedding}"), "models/m/mode", "embedding", "model_list[0].model_info.mode", "exact"),
        (row("", "model_info: {mode: rerank}"), "models/m", {"endpoint": "a"}, "model_list[0].model_info.mode", "unsupported"),
        (row("", "model_info: {max_input_tokens: 9}"), "models/m", {"endpoint": "a"}, "model_list[0].model_info.max_input_tokens", "approximate"),
        (row("", "model_info: {base_model: b}"), "models/m", {"endpoint": "a"}, "model_list[0].model_info.base_model", "approximate"),
        (row("", "model_info: {id: b}"), "models/m", {"endpoint": "a"}, "model_list[0].model_info.id", "approximate"),
        (row("", "model_info: {health_check_model: b}"), "models/m", {"endpoint": "a"}, "model_list[0].model_info.health_check_model", "approximate"),
        (settings("router_settings", "routing_strategy: simple-shuffle"), "load_balancer/algorithm", "weighted", "router_settings.routing_strategy", "exact"),
        (settings("router_settings", "routing_strategy: least-busy"), "load_balancer/algorithm", "least_busy", "router_settings.routing_strategy", "exact"),
        (settings("router_settings", "routing_strategy: latency-based-routing"), "load_balancer/algorithm", "latency", "router_settings.routing_strategy", "exact"),
        (settings("router_settings", "routing_strategy: cost-based-routing"), "load_balancer/algorithm", "cost", "router_settings.routing_strategy", "exact"),
        (settings("router_settings", "routing_strategy: usage-based-routing-v2"), "load_balancer/algorithm", "least_tokens", "router_settings.routing_strategy", "exact"),
        (settings("router_settings", "model_group_alias: {x: m}"), "aliases/x", "m", "router_settings.model_group_alias.x", "exact"),
        (settings("router_settings", "model_group_alias: {x: {model: m, hidden: true}}"), "gateway/hidden", ["x"], "router_settings.model_group_alias.x", "exact"),
        (settings("litellm_settings", "model_alias_map: {x: m}"), "aliases/x", "m", "litellm_settings.model_alias_map.x", "exact"),
        (settings("router_settings", "routing_groups: [{group_name: g, models: [n], routing_strategy: least-busy}]"), "models/n/policy", "least_busy", "router_settings.routing_groups[0].models[0]", "exact"),
        (settings("router_settings", "routing_groups: [{group_name: g, models: [n], routing_strategy: priority}]"), "models/n", {"endpoint": "b"}, "router_settings.routing_groups[0]", "manual"),
        (settings("router_settings", "model_group: {g: [m, n]}"), "groups/g/models", ["m", "n"], "router_settings.model_group.g", "ignored-by-LiteLLM"),
        (settings("router_settings", "model_group: {g: [m, nn]}"), "groups/g/models", ["m"], "router_settings.model_group.g", "manual"),
        (settings("router_settings", "fallbacks: [{m: [n]}]"), "fallbacks/m/down", ["n"], "router_settings.fallbacks[0].m[0]", "exact"),
        (settings("router_settings", "context_window_fallbacks: [{m: [n]}]"), "fallbacks/m/context", ["n"], "router_settings.context_window_fallbacks[0].m[0]", "exact"),
        (settings("litellm_settings", "default_fallbacks: [n]"), "fallbacks/m/down", ["n"], "litellm_settings.default_fallbacks[0]", "exact"),
        (settings("router_settings", "content_policy_fallbacks: [{m: [n]}]"), "models/m/endpoint", "a", "router_settings.content_policy_fallbacks", "unsupported"),
        (settings("router_settings", "max_fallbacks: 2"), "models/m/endpoint", "a", "router_settings.max_fallbacks", "approximate"),
        (settings("router_settings", "fallbacks: [{m: [n]}, {n: [m]}]"), "fallbacks", {"m": {"down": ["n"]}}, "router_settings.fallbacks[1].n[0]", "manual"),
        (settings("router_settings", "fallbacks: [{m: [gone]}]"), "models/m/endpoint", "a", "router_settings.fallbacks[0].m[0]", "manual"),
        (settings("router_settings", "allowed_fails: 3"), "load_balancer/circuit_breaker_threshold", 4, "router_settings.allowed_fails", "approximate"),
        (settings("router_settings", "cooldown_time: 30"), "load_balancer/circuit_breaker_timeout", 30, "router_settings.cooldown_time", "approximate"),
        (settings("router_settings", "disable_cooldowns: true"), "load_balancer/circuit_breaker_threshold", 1_000_000, "router_settings.disable_cooldowns", "approximate"),
        (settings("router_settings", "retry_policy: {TimeoutErrorRetries: 1}"), "models/m/endpoint", "a", "router_settings.retry_policy", "approximate"),
        (settings("router_settings", "enable_pre_call_checks: true"), "models/m/endpoint", "a", "router_settings.enable_pre_call_checks", "approximate"),
        (settings("router_settings", "optional_pre_call_checks: [prompt_caching]"), "models/m/endpoint", "a", "router_settings.optional_pre_call_checks", "approximate"),
        (settings("router_settings", "enable_tag_filtering: true"), "load_balancer/tag_filtering", "any", "router_settings.enable_tag_filtering", "approximate"),
        (settings("router_settings", "tag_filtering_match_any: false, enable_tag_filtering: true"), "load_balancer/tag_filtering", "all", "router_settings.enable_tag_filtering", "approximate"),
        (settings("router_settings", "enable_tag_filtering: false"), "load_balancer/tag_filtering", "off", "router_settings.enable_tag_filtering", "exact"),
        (settings("litellm_settings", "ssl_verify: false").replace("http://a", "https://a"), "endpoints/a/tls_verify", False, "litellm_settings.ssl_verify", "exact"),
        (settings("general_settings", "max_response_size_mb: 2"), "http/max_response_bytes", 2 << 20, "general_settings.max_response_size_mb", "exact"),
        (settings("router_settings", "redis_url: os.environ/R"), "storage/redis_url", "env:R", "router_settings.redis_url", "exact"),
        (settings("litellm_settings", "cache: true, cache_params: {type: local, ttl: 60}"), "cache", {"enabled": True, "ttl_seconds": 60}, "litellm_settings.cache", "approximate"),
        (settings("litellm_settings", "cache: true, cache_params: {type: redis-semantic}"), "cache/enabled", False, "litellm_settings.cache_params.type", "unsupported"),
        (settings("general_settings", "master_key: os.environ/K"), "keys/master_key", "env:K", "general_settings.master_key", "exact"),
        (settings("general_settings", "master_key: sk-1234"), "models/m/endpoint", "a", "general_settings.master_key", "manual"),
        (settings("general_settings", "database_url: os.environ/PG"), "storage/database_url", "env:PG", "general_settings.database_url", "approximate"),
        (settings("general_settings", "store_model_in_db: true"), "models/m/endpoint", "a", "general_settings.store_model_in_db", "manual"),
        (settings("general_settings", "max_parallel_requests: 7"), "models/n/max_concurrent", 7, "general_settings.max_parallel_requests", "exact"),
        (settings("general_settings", "global_max_parallel_requests: 7"), "performance/max_concurrent_requests", 7, "general_settings.global_max_parallel_requests", "exact"),
        (settings("general_settings", "allow_requests_on_db_unavailable: true"), "models/m/endpoint", "a", "general_settings.allow_requests_on_db_unavailable", "exact"),
        (settings("litellm_settings", "drop_params: true"), "models/m/endpoint", "a", "litellm_settings.drop_params", "exact"),
        (settings("litellm_settings", "callbacks: [prometheus]"), "models/m/endpoint", "a", "litellm_settings.callbacks[0]", "exact"),
        (settings("litellm_settings", "success_callback: [my.hook]"), "models/m/endpoint", "a", "litellm_settings.success_callback[0]", "manual"),
        (settings("general_settings", "alerting: [slack]"), "models/m/endpoint", "a", "general_settings.alerting", "manual"),
        (settings("general_settings", "custom_auth: my.auth"), "models/m/endpoint", "a", "general_settings.custom_auth", "manual"),
        (settings("guardrails", "a: b"), "models/m/endpoint", "a", "guardrails", "manual"),
        (settings("environment_variables", "A: b"), "models/m/endpoint", "a", "environment_variables.A", "exact"),
        (settings("general_settings", "mastr_key: b"), "models/m/endpoint", "a", "general_settings.mastr_key", "not-imported"),
    ],
)  # fmt: skip
def test_each_key_has_its_effect_and_its_remark(tmp_path: Path, text: str, target: str, value: Any, key: str, level: str) -> None:
    found = imported(tmp_path, text)
    assert at(found.data, target) == value
    said = [remark for remark in found.remarks if remark.key == key]
    assert [remark.level for remark in said] == [level]
    assert said[0].line and said[0].column and said[0].file.endswith("config.yaml")


@pytest.mark.parametrize(
    ("model", "provider", "upstream", "level"),
    [
        ("ollama/x", "ollama", "x", "exact"),
        ("ollama_chat/x", "ollama", "x", "exact"),
        ("openai/org/x", "openai", "org/x", "exact"),
        ("custom_openai/x", "openai", "x", "exact"),
        ("openai_like/x", "openai", "x", "exact"),
        ("text-completion-openai/x", "openai", "x", "exact"),
        ("hosted_vllm/org/x", "vllm", "org/x", "exact"),
        ("vllm/x", "vllm", "x", "approximate"),
        ("llamafile/x", "llamacpp", "x", "exact"),
        ("lm_studio/x", "openai", "x", "exact"),
        ("xinference/x", "openai", "x", "exact"),
        ("litellm_proxy/x", "litellm", "x", "exact"),
        ("huggingface/tgi/x", "openai", "x", "approximate"),
        ("anthropic/x", "openai", "x", "approximate"),
    ],
)
def test_each_prefix_is_a_dialect(tmp_path: Path, model: str, provider: str, upstream: str, level: str) -> None:
    found = imported(tmp_path, f"model_list: [{{model_name: m, litellm_params: {{model: {model}, api_base: 'http://h:1/v1/'}}}}]")
    assert found.data["endpoints"] == {"h": {"url": "http://h:1", "provider": provider, "discover": False}}
    assert found.data["models"]["m"]["upstream_model"] == upstream
    assert next(remark.level for remark in found.remarks if remark.key.endswith("params.model")) == level


@pytest.mark.parametrize(
    ("model", "base", "url", "asked"),
    [
        ("azure/gpt", "https://it.openai.azure.com/", "https://it.openai.azure.com/openai", "/openai/v1/chat/completions"),
        ("azure/gpt", "https://it.openai.azure.com/openai/v1", "https://it.openai.azure.com/openai", "/openai/v1/chat/completions"),
        ("openrouter/org/x", "", "https://openrouter.ai/api/v1", "/api/v1/chat/completions"),
        ("openai/x", "http://h/api/v1", "http://h/api/v1", "/api/v1/chat/completions"),
        ("openai/x", "http://h/v1/chat/completions", "http://h", "/v1/chat/completions"),
        ("ollama/x", "http://h/api", "http://h", "/v1/chat/completions"),
        ("meta_llama/x", "", "https://api.llama.com/compat", "/compat/v1/chat/completions"),
    ],
)
def test_the_address_is_the_one_that_is_asked(tmp_path: Path, model: str, base: str, url: str, asked: str) -> None:
    given = f", api_base: '{base}'" if base else ""
    found = imported(tmp_path, f"model_list: [{{model_name: m, litellm_params: {{model: {model}{given}}}}}]")
    (endpoint,) = found.data["endpoints"].values()
    assert endpoint["url"] == url
    assert Endpoint("e", Address.parse(url)).paths[CHAT] == asked.encode()


@pytest.mark.parametrize("model", ["bedrock/x", "vertex_ai/x", "gemini/x"])
def test_a_foreign_dialect_is_said_and_left_out(tmp_path: Path, model: str) -> None:
    found = imported(tmp_path, f"model_list: [{{model_name: m, litellm_params: {{model: {model}}}}}]")
    assert found.data == {}
    assert [(remark.level, remark.key) for remark in found.remarks] == [("unsupported", "model_list[0]")]


def test_ollama_generate_becomes_chat_and_says_so(tmp_path: Path) -> None:
    assert any("chat endpoint" in remark.message for remark in imported(tmp_path, row()).remarks)


def test_equal_rows_are_one_model_in_several_places_and_others_a_group(tmp_path: Path) -> None:
    balanced = litellm.load(CORPUS / "04-balanced.yaml", {})
    assert balanced.data["models"]["even"] == {"endpoints": ["gpu-1", "gpu-2"], "upstream_model": "meta/llama"}
    members = balanced.data["groups"]["chat"]["models"]
    assert [balanced.data["models"][name]["weight"] for name in members] == [3, 1]
    rates = litellm.load(CORPUS / "05-rates.yaml", {}).data
    assert [rates["models"][name]["requests_per_minute"] for name in rates["groups"]["chat"]["models"]] == [600, 60]
    assert not any("weight" in model for model in rates["models"].values()), "LiteLLM weighs by rpm only where it shuffles"
    assert set(rates["endpoints"]) == {"gpu-1", "gpu-2"}
    shuffled = imported(tmp_path, (CORPUS / "05-rates.yaml").read_text().replace("usage-based-routing-v2", "simple-shuffle")).data
    assert [shuffled["models"][name]["weight"] for name in shuffled["groups"]["chat"]["models"]] == [1.0, 0.1]


def test_a_lower_order_stands_in(tmp_path: Path) -> None:
    found = litellm.load(CORPUS / "06-order.yaml", {}).data
    assert found["groups"] == {"chat": {"models": ["big"]}, "chat--order-2": {"models": ["small"]}}
    assert found["fallbacks"] == {"chat": {"down": ["chat--order-2"]}}


def test_a_wildcard_is_discovery() -> None:
    found = litellm.load(CORPUS / "11-wildcards.yaml", {})
    assert {name: entry["discover"] for name, entry in found.data["endpoints"].items()} == {"a": True, "openai": True}
    assert "models" not in found.data


def test_a_secret_of_an_address_gets_a_name_that_an_environment_can_have(tmp_path: Path) -> None:
    row = "{model_name: m, litellm_params: {model: openai/m, api_base: 'http://192.0.2.7:8000/v1', api_key: written-out}}"
    (tmp_path / "config.yaml").write_text(f"model_list: [{row}]\n")
    assert litellm.load(tmp_path / "config.yaml", {}).variables == {"HOST_192_0_2_7_API_KEY": "written-out"}


def test_a_named_credential_is_used_by_each_of_its_rows() -> None:
    found = litellm.load(CORPUS / "12-credentials.yaml", {})
    assert found.data["models"]["one"]["endpoint"] == found.data["models"]["two"]["endpoint"] == "gw"
    assert found.variables == {"GW_API_KEY": "the-shared-value"}
    assert found.data["endpoints"]["gw"]["api_key"] == "env:GW_API_KEY"


def test_what_is_included_is_named_by_its_own_file_and_a_circle_is_said() -> None:
    found = litellm.load(CORPUS / "29-including.yaml", {})
    assert set(found.data["models"]) == {"first", "second"}
    odd = next(remark for remark in found.remarks if remark.key.endswith("odd_one"))
    assert (Path(odd.file).name, odd.line) == ("models.yaml", 3)
    assert {remark.level for remark in found.remarks if remark.key.startswith("include[")} == {"exact", "manual"}
    assert any("includes itself" in remark.message for remark in found.remarks)


def test_a_key_that_nobody_knows_comes_with_the_nearest_that_is_known() -> None:
    said = {remark.key: remark.message for remark in litellm.load(CORPUS / "27-unknown-keys.yaml", {}).remarks}
    assert "did you mean routing_strategy?" in said["router_settings.routing_stategy"]
    assert "did you mean master_key?" in said["general_settings.mastr_key"]
    assert "did you mean api_base?" in said["model_list[1].litellm_params.api_bse"]
    assert "did you mean model_list?" in said["model_lst[0]"]


def plain_leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value, by its path; told apart from the importer's own walk on purpose."""
    if isinstance(data, dict) and data:
        for name, inside in data.items():
            key = str(name).lower() if isinstance(name, bool) else str(name)
            shown = f'"{key}"' if "." in key or " " in key or not key else key
            yield from plain_leaves(inside, f"{path}.{shown}" if path else shown)
    elif isinstance(data, list) and data:
        for position, inside in enumerate(data):
            yield from plain_leaves(inside, f"{path}[{position}]")
    else:
        yield path, data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_lost_in_silence_and_the_result_loads(path: Path, tmp_path: Path) -> None:
    found = litellm.load(path, {})
    keys = {remark.key for remark in found.remarks}
    for leaf, _ in plain_leaves(yaml.safe_load(path.read_text()) or {}) if path.stem != "01-empty" else ():
        around = re.sub(r"\[\d+\]$", "", leaf) if leaf.endswith("]") else leaf
        cuts = [leaf[: match.start()] for match in re.finditer(r"[.\[]", leaf)] + [leaf, around]
        assert keys & set(cuts), f"{leaf} is neither in the findings nor in the list of what was not imported"
    for remark in found.remarks:
        assert remark.level in LEVELS and (remark.message or remark.level == "exact"), remark
    # What the environment has to hold is set, as somebody who follows the report would.
    fixed = {name for name, _ in NAMES}
    environ = {
        name: "redis://r" if "REDIS" in name else "postgresql://h/d" if "DATABASE" in name else f"value-of-{name}"
        for name in found.variables
    }
    environ.update({name: value for name, value in found.variables.items() if value is not None})
    assert fixed.isdisjoint(environ.keys() - {"MASTER_KEY", "REDIS_URL", "DATABASE_URL", "LITELLM_MASTER_KEY"})
    loaded = load_text(found.text(), "made.yaml", environ, tmp_path)
    assert set(loaded.config.models) == set(found.data.get("models", {}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_secret_is_anywhere_but_in_the_environment_file(path: Path) -> None:
    found = litellm.load(path, {})
    told = found.text() + as_json(found.remarks) + as_markdown(found.remarks, "t") + str(list(rows(found.remarks))) + repr(found)
    everything = path.read_text()
    for secret in (*re.findall(r"written-out-[\w-]+|value-in-the-environment-section|the-\w+-value|password", everything),):
        assert secret not in told.replace("redis_password", "").replace("cache_params.password", "").replace("a password", "")
    if path.stem == "13-literal-secrets":
        for secret in (
            "written-out-value-a",
            "written-out-value-b",
            "written-out-header",
            "written-out-master",
            "value-in-the-environment-section",
        ):
            assert secret in found.environment_text()


def test_the_owners_file_has_exactly_these_findings() -> None:
    found = litellm.load(CORPUS / "owner.yaml", {})
    assert counts(found.remarks) | {"exact": 0} == {
        "unsupported": 0, "manual": 0, "not-imported": 0, "ignored-by-LiteLLM": 3, "approximate": 0, "exact": 0,
    }  # fmt: skip
    assert not found.open
    assert [(level, key) for level, _, key, _ in rows(found.remarks)] == [
        ("ignored-by-LiteLLM", "router_settings.model_group.hx-chat-fast and 2 more"),
        ("exact", "model_list[0].litellm_params.model and 5 more"),
        ("exact", "model_list[6].litellm_params.api_key and 3 more"),
        ("exact", "litellm_settings.drop_params"),
    ]
    assert found.data["groups"] == {
        "hx-chat-fast": {"models": ["qwen3:1.7b"]},
        "hx-chat": {"models": ["llama3.2:3b", "phi3", "gemma2:2b"]},
        "hx-chat-premium": {"models": ["mistral-small3.2"]},
    }
    assert list(found.data["endpoints"]) == ["llm-01", "llm-02", "orc", "llm-09-11400", "llm-09-11401", "llm-09-11402", "llm-09-11403"]
    assert found.places["groups", "hx-chat"] == (str(CORPUS / "owner.yaml"), Place(18, 5))


def test_litellm_config_in_the_environment_is_served_where_there_is_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "litellm.yaml"
    theirs.write_text(settings("general_settings", "master_key: os.environ/NOT_SET, odd: 1"))
    environ = {"LITELLM_CONFIG": str(theirs)}
    loaded = load(None, environ)
    assert set(loaded.config.models) == {"m", "n"} and loaded.config.keys.master_key is None
    assert loaded.path == theirs and loaded.stamp is not None
    said = {problem.path: problem for problem in loaded.warnings}
    assert "NOT_SET is not set" in said["keys.master_key"].message
    assert said["general_settings.odd"].line == 5
    keyed = load(None, {**environ, "LITELLM_MASTER_KEY": "a-long-enough-key"}).config.keys.master_key
    assert keyed is not None and keyed.reveal() == "a-long-enough-key"
    own = tmp_path / "hx-gateway.yaml"
    own.write_text("models: {own: {endpoint: 'http://e:1'}}")
    loaded = load(None, environ)
    assert set(loaded.config.models) == {"own"}
    assert any(problem.source == "LITELLM_CONFIG" and "is not served" in problem.message for problem in loaded.warnings)


ODD = (
    None,
    [],
    {},
    "",
    "text",
    -1,
    0,
    1e300,
    True,
    [1],
    ["a"],
    [["a"]],
    [{"a": 1}],
    {"a": 1},
    {"a": ["b"]},
    {"m": {"m": [1]}},
    "http://[::1",
    "os.environ/NOT_THERE",
)


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_any_value_under_any_key_is_imported_or_said(value: Any, tmp_path: Path) -> None:
    params = {**dict.fromkeys(HANDLED, value), "model": "ollama/m", "custom_llm_provider": "ollama"}
    sections = {
        "litellm_settings": _LITELLM,
        "router_settings": (*_ROUTER, "redis_port"),
        "general_settings": _GENERAL,
        "environment_variables": ("SOME",),
    }
    names = ("type", "ttl", "mode", "host", "port", "password", "url", "supported_call_types", "ssl")
    for cached in (False, True):
        data: dict[str, Any] = {section: dict.fromkeys(keys, value) for section, keys in sections.items()}
        if cached:
            data["litellm_settings"] |= {"cache": True, "cache_params": dict.fromkeys(names, value)}
        rows_ = [
            {"model_name": "m", "litellm_params": params, "model_info": dict.fromkeys(HANDLED, value)},
            {"model_name": value, "litellm_params": value},
        ]
        found = imported(tmp_path, yaml.safe_dump({**data, "model_list": rows_, "credential_list": value, "guardrails": value}))
        environ = {
            name: "redis://r" if "REDIS" in name else "postgresql://h/d" if "DATABASE" in name else "a-long-value"
            for name in found.variables
        }
        assert "m" in found.data["models"]
        if value != "os.environ/NOT_THERE":  # one name cannot hold two addresses and a key
            load_text(found.text(), "made.yaml", environ, tmp_path)


@pytest.mark.parametrize(("content", "why"), [(b"a: [", "YAML syntax"), (b"\xff", "UTF-8"), (b"- a", "mapping"), (b"a: 1\na: 2", "twice")])
def test_a_file_that_cannot_be_read_is_refused_with_its_place(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        litellm.load(path, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        litellm.load(tmp_path / "none.yaml", os.environ)


def test_the_environment_file_reads_back_as_it_was(tmp_path: Path) -> None:
    import subprocess

    value = "a $b `c` \"d\" \\e 'f' # g"
    found = imported(tmp_path, settings("environment_variables", f"V: {yaml.safe_dump(value, default_style=chr(34)).strip()}"))
    file = tmp_path / "e.env"
    file.write_text(found.environment_text())
    assert subprocess.run(["/bin/sh", "-c", f'. {file}; printf %s "$V"'], capture_output=True, text=True, check=True).stdout == value
