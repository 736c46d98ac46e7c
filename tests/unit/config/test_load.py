"""Loading: all problems at once, each with its place, its rule and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.config.load import ConfigError, Loaded, find, load, load_text
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.shape import settings


def problems(text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_text(text, "f.yaml", environ or {})
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("servcie: {port: 1}", "f.yaml:1:1: servcie: unknown setting; did you mean service?"),
        ("service:\n  prot: 1", "f.yaml:2:3: service.prot: unknown setting; did you mean port?"),
        ("service: {max_body_bytes: 9999}", "f.yaml:1:11: service.max_body_bytes: unknown setting; it belongs under http"),
        ("service: {port: http}", "f.yaml:1:17: service.port: should be a whole number, not text"),
        ("service: {port: 99999}", "f.yaml:1:17: service.port: should be at most 65535"),
        ("service: {name: 5}", "f.yaml:1:17: service.name: should be text, not a number; put it in quotes"),
        ("service: {port: }", "f.yaml:1:17: service.port: should be a whole number, not nothing; leave the line out for the default"),
        ("service: [1]", "f.yaml:1:10: service: should be a mapping of settings, not a list"),
        ("cors: {enabled: perhaps}", "f.yaml:1:17: cors.enabled: should be true or false, not text"),
        ("cors: {allow_origins: x}", "f.yaml:1:23: cors.allow_origins: should be a list, e.g. [a, b], not text"),
        ("models: 5", "f.yaml:1:9: models: should be a mapping of names to settings, not a number"),
        ("performance: {rate_limit_rps: .inf}", "f.yaml:1:31: performance.rate_limit_rps: should be a finite number, not an infinite one"),
        ("performance: {cpu_cores: 1.5}", "f.yaml:1:26: performance.cpu_cores: should be a whole number, not a fraction"),
        ("performance: {request_timeout_seconds: 0}", "f.yaml:1:40: performance.request_timeout_seconds: should be more than 0"),
        ("monitoring: {log_format: jsn}", "f.yaml:1:26: monitoring.log_format: should be one of console, json; did you mean json?"),
        (
            "monitoring: {metrics_endpoint: m}",
            "f.yaml:1:32: monitoring.metrics_endpoint: should be a path that starts with / and has no query",
        ),
        ("endpoints:\n  a: {provider: ollama}", "f.yaml:2:3: endpoints.a.url: is missing, and needed"),
        ("groups: {g: {models: []}}", "f.yaml:1:22: groups.g.models: should not be empty"),
        ("models: {'a b': {endpoint: 'http://e:1'}}", 'f.yaml:1:10: models."a b": should have no spaces and no control characters'),
        ("pipeline: {stages: [1]}", "f.yaml:1:21: pipeline.stages[0]: should be text, not a number; put it in quotes"),
        (
            "keys: {api_keys: [{name: a, key_hash: x}]}",
            "f.yaml:1:39: keys.api_keys[0].key_hash: should be sha256: and 64 hexadecimal digits",
        ),
        (
            "models: {m: {endpoint: 'http://e:1', keep_alive: []}}",
            "f.yaml:1:50: models.m.keep_alive: should be text or a whole number or a number, not a list",
        ),
        (
            "gateway: {default_upstream: 5}",
            "f.yaml:1:29: gateway.default_upstream: should be a mapping of settings or text, not a number",
        ),
        (
            "gateway: {default_upstream: {url: 'http://a:1', key: x}}",
            "f.yaml:1:49: gateway.default_upstream.key: unknown setting; did you mean api_key?",
        ),
        ("a: [", "f.yaml:2:1: YAML syntax: did not find expected node content"),
        ("- a", "f.yaml:1:1: the file should hold a mapping of sections, e.g. models:"),
        ("service: {port: 1}\nservice: {port: 2}", "f.yaml:2:1: service: appears twice; the first is on line 1"),
    ],
)
def test_each_kind_of_problem_is_said_in_plain_words(text: str, expected: str) -> None:
    said = problems(text)
    if "YAML syntax" in expected:
        assert said[0].partition("YAML syntax")[1] == "YAML syntax"
        assert len(said) == 1
    else:
        assert said == [expected]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = """\
service: {prot: 1, workers: many}
models:
  one: {endpoint: "ftp://x", weight: -1}
  two: {endpoint: nowhere}
groups:
  g: {models: [one, tow]}
aliases: {a: b, b: a}
gateway: {default_model: thre}
keys: {master_key: changeme}
cors: {allow_credentials: true}
"""
    assert [line.split(": ")[0] + " " + line.split(": ")[1] for line in problems(text, {"RATE_LIMIT_RPS": "fast"})] == [
        "f.yaml:1:11 service.prot",
        "f.yaml:1:29 service.workers",
        "f.yaml:3:19 models.one.endpoint",
        "f.yaml:3:38 models.one.weight",
        "f.yaml:4:19 models.two.endpoint",
        "f.yaml:6:21 groups.g.models[1]",
        "f.yaml:7:14 aliases.a",
        "f.yaml:7:20 aliases.b",
        "f.yaml:8:26 gateway.default_model",
        "f.yaml:9:20 keys.master_key",
        "f.yaml:10:1 cors.allow_origins",
        "RATE_LIMIT_RPS performance.rate_limit_rps",
    ]


def test_what_follows_from_another_problem_is_not_reported() -> None:
    assert problems(
        "model: {m: {endpoint: 'http://e:1'}}\ngroups: {g: {models: [m]}}\nendpoints: {e: {url: 'http://e:1', discover: false}}"
    ) == ["f.yaml:1:1: model: unknown setting; did you mean models?"]
    assert problems("models: {m: {endpiont: 'http://e:1'}}") == ["f.yaml:1:14: models.m.endpiont: unknown setting; did you mean endpoint?"]
    assert problems("service: {host: 0.0.0.0}\nkeys: {master_key: env:NOT_THERE}") == [
        "f.yaml:2:20: keys.master_key: the environment variable NOT_THERE is not set; set it, or leave the setting out"
    ]
    assert problems("endpoints: {e: {uri: x}}\nmodels: {m: {endpoint: e}}") == [
        "f.yaml:1:13: endpoints.e.url: is missing, and needed",
        "f.yaml:1:17: endpoints.e.uri: unknown setting; did you mean url?",
    ]


def test_an_open_door_is_told_along_with_errors() -> None:
    said = problems("service: {host: 0.0.0.0, prot: 1}")
    assert len(said) == 2
    assert "bind to 127.0.0.1" in said[0] + said[1]


def test_sources_name_line_variable_or_default() -> None:
    loaded = load_text("service:\n  port: 1\nmodels:\n  a.b: {endpoint: 'http://e:1'}\n", "f.yaml", {"RATE_LIMIT_RPS": "5"})
    assert loaded.sources["service.port"] == "f.yaml:2"
    assert loaded.sources['models."a.b".endpoint'] == "f.yaml:4"
    assert loaded.sources["performance.rate_limit_rps"] == "RATE_LIMIT_RPS"
    assert loaded.sources["service.host"] == "default"


def test_settings_of_later_releases_are_named() -> None:
    loaded = load_text("litellm: {config: /etc/litellm.yaml}", "f", {"GATEWAY_BASE": "http://elsewhere:4000"})
    assert loaded.unused == ("embeddings.gateway_base",)


def test_a_file_is_found_by_argument_variable_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find(Path("a.yaml"), {"HX_CONFIG": "b.yaml"}) == Path("a.yaml")
    assert find(None, {"HX_CONFIG": "b.yaml"}) == Path("b.yaml")
    (tmp_path / "hx-gateway.yaml").write_text("service: {port: 1234}")
    assert find(None, {}) == Path("hx-gateway.yaml")
    loaded = load(None, {})
    assert loaded.config.service.port == 1234
    assert loaded.path == Path("hx-gateway.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path, {})
        return str(caught.value)

    assert said(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    assert said(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    assert said(tmp_path / "latin.yaml") == f"{tmp_path}/latin.yaml:2:1: is not UTF-8 text; save it as UTF-8"
    (tmp_path / "big.yaml").write_bytes(b"#" * (4 * 1024 * 1024 + 1))
    assert said(tmp_path / "big.yaml") == f"{tmp_path}/big.yaml: is larger than 4 MiB"
    (tmp_path / "mark.yaml").write_bytes(b"\xef\xbb\xbfservice: {port: 77}")
    assert load(tmp_path / "mark.yaml", {}).config.service.port == 77


NAMES = sorted({str(part) for path, _, _ in settings() for part in path} - {"<name>", "<n>"})
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["http://e:1", "env:X", "file:x", "round_robin", "*", "a", "b", "0.0.0.0", "http://[", "sha256:" + "0" * 64])
    | st.text(max_size=12),
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "a", "b", "a b"]) | st.text(max_size=6), inside, max_size=5)
    ),
    max_leaves=30,
)


def settled(text: str, environ: dict[str, str]) -> Loaded | ConfigError:
    """What became of ``text``: nothing but the two outcomes there are."""
    try:
        return load_text(text, "f.yaml", environ)
    except ConfigError as error:
        return error


@given(st.text(max_size=300))
def test_any_text_loads_or_is_a_configuration_error(text: str) -> None:
    outcome = settled(text, {})
    assert isinstance(outcome, Loaded) or outcome.problems


@given(st.dictionaries(st.sampled_from(sorted(GatewayConfig.model_fields)), values, max_size=6))
def test_any_structure_loads_or_is_a_configuration_error(data: dict[str, object]) -> None:
    outcome = settled(yaml.safe_dump(data), {})
    if isinstance(outcome, ConfigError):
        assert outcome.problems
        for problem in outcome.problems:
            assert problem.message
            assert "\n" not in str(problem)
            assert problem.line, str(problem)
    else:
        assert set(outcome.config.models) == set(data.get("models") or {})


@given(
    st.dictionaries(st.sampled_from(sorted(GatewayConfig.model_fields)), values, max_size=3),
    st.dictionaries(
        st.lists(st.sampled_from([*NAMES, "a", "0", "1", "x"]), min_size=1, max_size=4).map(
            lambda parts: "HX__" + "__".join(parts).upper()
        ),
        st.sampled_from(["1", "a", "[a]", "{a: 1}", "{", "true", "'", "http://e:1", "a, b"]) | st.text(max_size=8),
        max_size=4,
    ),
)
def test_any_environment_loads_or_is_a_configuration_error(data: dict[str, object], environ: dict[str, str]) -> None:
    outcome = settled(yaml.safe_dump(data), environ)
    if isinstance(outcome, ConfigError):
        assert all(problem.source in {"f.yaml", *environ} for problem in outcome.problems)
