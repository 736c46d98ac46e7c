"""The environment: fixed names, <MODEL>_ENDPOINT, and HX__ for everything else."""

from __future__ import annotations

import pytest

from hx_gateway.config.environment import NAMES, endpoint_variable, general_variable
from hx_gateway.config.load import ConfigError, Loaded, load_text
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.shape import at, settings

FLEET = """
models:
  mixtral-8x7b: {endpoint: "http://llm-09:11400", weight: 0.5}
  openchat-3.5: {endpoints: ["http://llm-09:11402", "http://llm-09:11403"]}
  a__b: {endpoint: "http://llm-09:11404"}
"""
KEY = "a-good-long-key"


def loaded(text: str, **environ: str) -> Loaded:
    return load_text(text, "f.yaml", environ)


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    return str(caught.value).splitlines()


FIXED = {
    "API_GATEWAY_PORT": ("8080", 8080),
    "API_GATEWAY_HOST": ("localhost", "localhost"),
    "API_GATEWAY_WORKERS": ("3", 3),
    "API_GATEWAY_MEMORY_GB": ("2", 2.0),
    "API_GATEWAY_CPU_CORES": ("4", 4),
    "LOAD_BALANCER_ALGORITHM": ("weighted", "weighted"),
    "HEALTH_CHECK_INTERVAL": ("12.5", 12.5),
    "CIRCUIT_BREAKER_THRESHOLD": ("7", 7),
    "CIRCUIT_BREAKER_TIMEOUT": ("9", 9.0),
    "DEFAULT_MODEL": ("mixtral-8x7b", "mixtral-8x7b"),
    "MODEL_ROUTING_ENABLED": ("yes", True),
    "INTELLIGENT_ROUTING": ("1", True),
    "COST_OPTIMIZATION_ENABLED": ("True", True),
    "DISABLE_ADMIN_UI": ("true", True),
    "REQUEST_TIMEOUT_SECONDS": ("30", 30.0),
    "MAX_CONCURRENT_REQUESTS": ("100", 100),
    "RATE_LIMITING_ENABLED": ("off", False),
    "RATE_LIMIT_RPS": ("50", 50.0),
    "PROMETHEUS_PORT": ("9090", 9090),
    "HEALTH_CHECK_ENDPOINT": ("/status", "/status"),
    "METRICS_ENDPOINT": ("/m", "/m"),
    "LITELLM_CONFIG": ("/etc/litellm.yaml", "/etc/litellm.yaml"),
    "LITELLM_MASTER_KEY": (KEY, KEY),
    "MASTER_KEY": (KEY, KEY),
    "EMBEDDING_MODEL": ("emb", "emb"),
    "EMBEDDING_AUTH_HEADER": ("Bearer x", "Bearer x"),
    "GATEWAY_BASE": ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    "DATABASE_URL": ("sqlite:///x.db", "sqlite:///x.db"),
    "REDIS_URL": ("redis://cache:6379", "redis://cache:6379"),
    "QDRANT_URL": ("http://vec:6333", "http://vec:6333"),
    "QDRANT_API_KEY": ("q-key", "q-key"),
    "QDRANT_COLLECTION": ("docs", "docs"),
}


@pytest.mark.parametrize(("variable", "path"), NAMES)
def test_every_fixed_name_sets_its_setting(variable: str, path: tuple[str, ...]) -> None:
    raw, expected = FIXED[variable]
    outcome = loaded(FLEET, **{variable: raw})
    value: object = outcome.config
    for part in path:
        value = getattr(value, part)
    assert (value.reveal() if hasattr(value, "reveal") else value) == expected
    assert outcome.sources[".".join(path)] == variable
    assert outcome.warnings == ()  # a secret from the environment is not one written out in a file


def test_the_table_is_complete_and_leads_somewhere() -> None:
    assert {variable for variable, _ in NAMES} == set(FIXED)
    assert all(at(path) is not None for _, path in NAMES)


def test_the_file_gives_way_and_an_empty_variable_does_not_count() -> None:
    text = "service: {port: 1, host: localhost}"
    outcome = loaded(text, API_GATEWAY_PORT="2", API_GATEWAY_HOST="")
    assert (outcome.config.service.port, outcome.config.service.host) == (2, "localhost")


def test_the_gateways_own_master_key_wins_over_litellms() -> None:
    config = loaded("", MASTER_KEY="our-own-long-key", LITELLM_MASTER_KEY="their-long-key").config
    assert config.keys.master_key is not None
    assert config.litellm.master_key is not None
    assert (config.keys.master_key.reveal(), config.litellm.master_key.reveal()) == ("our-own-long-key", "their-long-key")


def test_a_wrong_value_names_its_variable() -> None:
    assert problems("service: {port: 1}", API_GATEWAY_PORT="http") == ["API_GATEWAY_PORT: service.port: should be a whole number, not text"]
    assert problems("", HX__SERVICE__WORKERS="0") == ["HX__SERVICE__WORKERS: service.workers: should be at least 1"]
    said = problems("", MASTER_KEY="changeme")
    assert said[0].startswith("MASTER_KEY: keys.master_key: is a publicly known key")


def test_a_secret_in_the_wrong_variable_is_not_repeated() -> None:
    for variable in ("API_GATEWAY_PORT", "HX__SERVICE__PORT", "HX__MODELS", "HX__CORS", "RATE_LIMITING_ENABLED"):
        assert "tell-nobody" not in "".join(problems("", **{variable: "sk-tell-nobody"}))


def test_a_models_endpoint_replaces_all_the_file_says_about_its_place() -> None:
    config = loaded(FLEET, MIXTRAL_8X7B_ENDPOINT="http://other:1", OPENCHAT_3_5_ENDPOINT="http://other:2").config
    assert (config.models["mixtral-8x7b"].endpoint, config.models["mixtral-8x7b"].weight) == ("http://other:1", 0.5)
    assert (config.models["openchat-3.5"].endpoint, config.models["openchat-3.5"].endpoints) == ("http://other:2", ())
    outcome = loaded("models: {tiny: {path: /m.gguf, slots: 2}}", TINY_ENDPOINT="http://other:3")
    assert (outcome.config.models["tiny"].path, outcome.config.models["tiny"].endpoint) == (None, "http://other:3")
    assert outcome.sources["models.tiny.endpoint"] == "TINY_ENDPOINT"


def test_a_model_without_settings_can_be_placed_by_its_variable() -> None:
    assert loaded("models: {tiny: }", TINY_ENDPOINT="http://other:3").config.models["tiny"].endpoint == "http://other:3"


def test_endpoint_variables_of_others_are_ignored_unless_they_are_near() -> None:
    assert loaded(FLEET, AWS_ENDPOINT="http://x:1", OTEL_EXPORTER_OTLP_ENDPOINT="http://x:2").warnings == ()
    (warning,) = loaded(FLEET, MIXTRAL_8X78_ENDPOINT="http://x:1").warnings
    assert str(warning) == "MIXTRAL_8X78_ENDPOINT: matches no model and is ignored; did you mean MIXTRAL_8X7B_ENDPOINT?"


def test_a_fixed_name_is_never_a_models_endpoint() -> None:
    config = loaded("models: {metrics: {endpoint: 'http://m:1'}}", METRICS_ENDPOINT="/numbers").config
    assert (config.models["metrics"].endpoint, config.monitoring.metrics_endpoint) == ("http://m:1", "/numbers")


def test_two_models_with_one_variable() -> None:
    text = "models: {phi-3: {endpoint: 'http://a:1'}, phi_3: {endpoint: 'http://a:1'}}"
    assert ["PHI_3_ENDPOINT" in str(warning) for warning in loaded(text).warnings] == [True]
    assert "PHI_3_ENDPOINT would override both this model and phi-3" in problems(text, PHI_3_ENDPOINT="http://b:1")[0]


@pytest.mark.parametrize(
    ("variable", "raw", "path", "value"),
    [
        ("HX__SERVICE__PORT", "81", "service.port", 81),
        ("HX__service__port", "81", "service.port", 81),
        ("HX__SERVICE__NAME", "81", "service.name", "81"),
        ("HX__SERVICE__NAME", "'quoted'", "service.name", "quoted"),
        ("HX__SERVICE__NAME", "a # b: c", "service.name", "a # b: c"),
        ("HX__SERVICE", "{port: 5, workers: 2}", "service.workers", 2),
        ("HX__CORS__ALLOW_ORIGINS", "http://a, http://b", "cors.allow_origins", ("http://a", "http://b")),
        ("HX__CORS__ALLOW_ORIGINS", "[http://a]", "cors.allow_origins", ("http://a",)),
        ("HX__MODELS__mixtral-8x7b__WEIGHT", "2", "models.mixtral-8x7b.weight", 2.0),
        ("HX__MODELS__MIXTRAL_8X7B__WEIGHT", "2", "models.mixtral-8x7b.weight", 2.0),
        ("HX__MODELS__A__B__WEIGHT", "3", "models.a__b.weight", 3.0),
        ("HX__MODELS__new__ENDPOINT", "http://n:1", "models.new.endpoint", "http://n:1"),
        ("HX__MODELS__new", "{endpoint: 'http://n:1'}", "models.new.endpoint", "http://n:1"),
        ("HX__MODELS__MIXTRAL_8X7B__KEEP_ALIVE", "-1", "models.mixtral-8x7b.keep_alive", -1),
        ("HX__ALIASES__gpt-4", "mixtral-8x7b", "aliases.gpt-4", "mixtral-8x7b"),
        ("HX__ENDPOINTS__e__URL", "http://e:1", "endpoints.e.url", "http://e:1"),
        ("HX__GATEWAY__DEFAULT_UPSTREAM", "http://u:1", "gateway.default_upstream.url", "http://u:1"),
        ("HX__MONITORING__PROMETHEUS_PORT", "", "monitoring.prometheus_port", None),
    ],
)
def test_the_general_form(variable: str, raw: str, path: str, value: object) -> None:
    found: object = loaded(FLEET, **{variable: raw}).config
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_the_general_form_reaches_every_setting() -> None:
    for path, _, shape in settings():
        real = tuple(0 if part == "<n>" else "mixtral-8x7b" if part == "<name>" else part for part in path)
        variable = general_variable(real)
        try:
            load_text(FLEET, "f", {variable: "{" if shape.nested else "x"})
        except ConfigError as error:
            assert not any("there is no setting" in problem.message and problem.path == "" for problem in error.problems), variable


def test_the_general_form_wins_over_fixed_names() -> None:
    outcome = loaded(
        FLEET,
        API_GATEWAY_PORT="1",
        HX__SERVICE__PORT="2",
        MIXTRAL_8X7B_ENDPOINT="http://a:1",
        HX__MODELS__MIXTRAL_8X7B__ENDPOINT="http://b:1",
    )
    assert outcome.config.service.port == 2
    assert outcome.config.models["mixtral-8x7b"].endpoint == "http://b:1"
    assert outcome.sources["service.port"] == "HX__SERVICE__PORT"


def test_parts_of_one_section_come_together() -> None:
    environ = {
        "HX__KEYS__API_KEYS__0__NAME": "one",
        "HX__KEYS__API_KEYS__0__KEY": "the-first-long-key",
        "HX__KEYS__API_KEYS__1": "{name: two, key: 'env:SECOND'}",
        "SECOND": "the-second-long-key",
        "HX__GATEWAY__DEFAULT_UPSTREAM__API_KEY": "upstream-key",
    }
    config = load_text("gateway: {default_upstream: 'http://u:1'}", "f", environ).config
    assert [(key.name, key.key.reveal() if key.key else "") for key in config.keys.api_keys] == [
        ("one", "the-first-long-key"),
        ("two", "the-second-long-key"),
    ]
    assert config.gateway.default_upstream.api_key.reveal() == "upstream-key"  # type: ignore[union-attr]
    assert config.gateway.default_upstream.url == "http://u:1"  # type: ignore[union-attr]


def test_a_reference_in_a_variable_is_followed() -> None:
    key = loaded("", HX__KEYS__MASTER_KEY="env:ELSEWHERE", ELSEWHERE=KEY).config.keys.master_key
    assert key is not None
    assert (key.reveal(), key.reference) == (KEY, "env:ELSEWHERE")


@pytest.mark.parametrize(
    ("variable", "raw", "words"),
    [
        ("HX__SERVICE__PROT", "1", "there is no setting PROT; did you mean port?"),
        ("HX__SERVCE__PORT", "1", "there is no setting SERVCE; did you mean service?"),
        ("HX__", "1", "there is no setting"),
        ("HX__SERVICE__", "1", "there is no setting"),
        ("HX__ALIASES__", "x", "has an empty part"),
        ("HX__SERVICE__PORT__X", "1", "service.port is a single value; nothing is below it"),
        ("HX__MODELS__mixtrl__WEIGHT", "1", "there is no model called mixtrl; did you mean mixtral-8x7b?"),
        ("HX__ENDPOINTS__e__PROVIDER", "ollama", "there is no endpoint called e; to add it, set HX__ENDPOINTS__E__URL"),
        ("HX__KEYS__API_KEYS__3__NAME", "x", "3 is no position in the list; the next free one is 0"),
        ("HX__KEYS__API_KEYS__X__NAME", "x", "X is no position in the list"),
        ("HX__CORS", "{a: [", "YAML syntax"),
    ],
)
def test_names_and_values_that_lead_nowhere(variable: str, raw: str, words: str) -> None:
    said = problems(FLEET, **{variable: raw})
    assert len(said) == 1
    assert said[0].startswith(f"{variable}: {words}")


def test_two_variables_for_one_setting() -> None:
    said = problems("", HX__SERVICE__PORT="1", HX__service__port="2")
    assert said == ["HX__service__port: sets the same as HX__SERVICE__PORT; keep one of them"]


def test_a_variable_that_could_mean_two_models() -> None:
    text = "models: {phi-3: {endpoint: 'http://a:1'}, phi_3: {endpoint: 'http://a:1'}}"
    assert "could mean phi-3 or phi_3" in problems(text, **{"HX__MODELS__PHI.3__WEIGHT": "1"})[0]
    assert loaded(text, **{"HX__MODELS__phi-3__WEIGHT": "4"}).config.models["phi-3"].weight == 4


def test_other_variables_are_left_alone() -> None:
    assert loaded("", PATH="/bin", HX_CONFIG="x", HX_DEMO_KEY="y", hx__service__port="1").config == GatewayConfig()


def test_how_names_become_variables() -> None:
    assert endpoint_variable("mixtral-8x7b") == "MIXTRAL_8X7B_ENDPOINT"
    assert endpoint_variable("llama3.2:3b") == "LLAMA3_2_3B_ENDPOINT"
    assert general_variable(("models", "llama3.2:3b", "weight")) == "HX__MODELS__LLAMA3_2_3B__WEIGHT"
