"""What no single setting can tell: names, places, keys, and the open door."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hx_gateway.access.snapshot import Snapshot, StoredKey, write
from hx_gateway.config.addresses import header_fault, host_fault, is_loopback, url_fault
from hx_gateway.config.load import ConfigError, Problem, load_text
from hx_gateway.config.weak_keys import PUBLIC_KEYS

# No endpoint of it discovers models, so every name has to be in the file.
FLEET = """
endpoints: {e: {url: "http://e:1", discover: false}}
models: {one: {endpoint: e, aliases: [uno]}, two: {endpoint: "http://f:1"}}
groups: {pair: {models: [one, two], aliases: [both]}}
"""
LONG = "a-good-long-key"


def levels(text: str) -> dict[str, list[Problem]]:
    try:
        loaded = load_text(text, "f.yaml", {})
    except ConfigError as error:
        return {"error": list(error.problems), "warning": [], "blocker": []}
    return {"error": [], "warning": list(loaded.warnings), "blocker": list(loaded.blockers)}


def errors(text: str) -> list[tuple[str, str]]:
    return [(problem.path, problem.message) for problem in levels(text)["error"]]


def warnings(text: str) -> list[tuple[str, str]]:
    found = levels(text)
    assert found["error"] == []
    return [(problem.path, problem.message) for problem in found["warning"]]


def only(found: list[tuple[str, str]], path: str, words: str) -> None:
    assert [one[0] for one in found] == [path], found
    assert words in found[0][1]


def test_a_sound_fleet_has_no_problem() -> None:
    text = FLEET + "aliases: {a: b, b: pair, c: uno, d: both}\ngateway: {default_model: a}"
    assert levels(text) == {"error": [], "warning": [], "blocker": []}


@pytest.mark.parametrize(
    ("more", "path", "words"),
    [
        ("gateway: {default_model: tow}", "gateway.default_model", "there is no model, alias or group called tow; did you mean two?"),
        ("gateway: {model_routing_enabled: false}", "gateway.default_model", "is needed when model_routing_enabled is false"),
        ("aliases: {a: nowhere}", "aliases.a", "there is no model, alias or group called nowhere"),
        ("aliases: {a: a}", "aliases.a", "goes in a circle: a -> a"),
        ("aliases: {one: two}", "aliases.one", "taken already by the model"),
        ("aliases: {uno: two}", "aliases.uno", "taken already by the alias under models.one"),
        ("aliases: {both: two}", "aliases.both", "taken already by the alias under groups.pair"),
        ("gateway: {default_upstream: f}", "gateway.default_upstream", "there is no entry of this name in endpoints"),
        ("gateway: {default_upstream: 'ftp://f'}", "gateway.default_upstream.url", "http:// or https://"),
        ("gateway: {default_upstream: {url: 'http://u:p@f'}}", "gateway.default_upstream.url", "put the credential into api_key"),
        ("keys: {api_keys: [{name: k, key: a-good-long-key, models: [tree]}]}", "keys.api_keys[0].models[0]", "called tree"),
        ("keys: {api_keys: [{name: k}]}", "keys.api_keys[0]", "needs either key or key_hash"),
        ("keys: {api_keys: [{name: master, key: a-good-long-key}]}", "keys.api_keys[0].name", "is taken"),
        ("load_balancer: {algorithm: leastbusy}", "load_balancer.algorithm", "did you mean least_busy?"),
        ("monitoring: {metrics_endpoint: /health}", "monitoring.metrics_endpoint", "is the path of monitoring.health_check_endpoint"),
        ("monitoring: {metrics_endpoint: /v1/metrics}", "monitoring.metrics_endpoint", "is the path of the API"),
        ("monitoring: {health_check_endpoint: /healthz}", "monitoring.health_check_endpoint", "the liveness probe"),
        ("monitoring: {prometheus_port: 8000}", "monitoring.prometheus_port", "is service.port"),
        ("cors: {allow_credentials: true}", "cors.allow_origins", "should list origins by name"),
        ("service: {host: 'http://127.0.0.1'}", "service.host", "without scheme, brackets and port"),
    ],
)
def test_what_is_refused(more: str, path: str, words: str) -> None:
    found = errors(FLEET + more)
    assert found[0][0] == path
    assert words in found[0][1]


def test_groups() -> None:
    base = "endpoints: {e: {url: 'http://e:1', discover: false}}\nmodels: {one: {endpoint: e, aliases: [uno]}}\n"
    only(errors(base + "groups: {g: {models: [on]}}"), "groups.g.models[0]", "there is no model called on; did you mean one?")
    only(errors(base + "groups: {g: {models: [one, one]}}"), "groups.g.models[1]", "one is listed twice")
    only(errors(base + "groups: {g: {models: [one]}, h: {models: [g]}}"), "groups.h.models[0]", "g is a group; a group holds models only")
    only(errors(base + "groups: {one: {models: [one]}}"), "groups.one", "taken already by the model")
    only(errors(base + "groups: {g: {models: [one], policy: wighted}}"), "groups.g.policy", "did you mean weighted?")
    assert errors(base + "groups: {g: {models: [uno], policy: my.module:Policy}}") == []


def test_models_that_help_a_group_to_learn() -> None:
    text = "endpoints: {e: {url: 'http://e:1', discover: false}}\nmodels: {one: {endpoint: e}, two: {endpoint: e}, vec: {endpoint: e, mode: embedding}}\n"
    learned = text + "groups: {g: {models: [one, two], learned: {quality: 1, embedding: %s}}}\n"
    only(errors(learned % "vek"), "groups.g.learned.embedding", "called vek; did you mean vec?")
    assert warnings(learned % "vec") == []
    unread = warnings(learned % "vec" + "pipeline: {stages: [authenticate, inspect, resolve]}")
    only(unread, "pipeline.stages", "does not list embed: learned.embedding does nothing")
    judge = "ledger: {bodies: {enabled: true}}\ngroups: {g: {models: [one, two], learned: {quality: 1, judge: {model: critic, api_key: 'env:JUDGE'}}}}"
    assert ("groups.g.learned.judge.model", "there is no model, alias or group called critic") in errors(text + judge)


def test_a_circle_of_aliases_is_reported_at_each_of_them_but_not_at_what_leads_there() -> None:
    found = errors(FLEET + "aliases: {a: b, b: c, c: b}")
    assert [path for path, _ in found] == ["aliases.b", "aliases.c"]
    assert "b -> c -> b" in found[0][1]


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        ("{}", "models.m", "needs an endpoint, a list of endpoints, or a path"),
        ("{endpoint: e, path: /x.gguf}", "models.m", "has endpoint and path; keep one"),
        ("{endpoint: e, endpoints: [e]}", "models.m", "has endpoint and endpoints"),
        ("{endpoint: f}", "models.m.endpoint", "there is no entry of this name in endpoints"),
        ("{endpoint: llm-01.example}", "models.m.endpoint", "an address starts with http://"),
        ("{endpoints: [e, 'http://x:99999']}", "models.m.endpoints[1]", "host or port is malformed"),
        ("{endpoints: [e, e]}", "models.m.endpoints[1]", "is listed twice"),
        ("{endpoint: 'http://u:p@e'}", "models.m.endpoint", "put the credential into api_key"),
        ("{endpoint: e, aliases: ['a b']}", "models.m.aliases[0]", "no spaces"),
        ("{endpoint: e, aliases: [m]}", "models.m.aliases[0]", "taken already by the model"),
    ],
)
def test_where_models_are(model: str, path: str, words: str) -> None:
    only(errors(f"endpoints: {{e: {{url: 'http://e:1', discover: false}}}}\nmodels: {{m: {model}}}"), path, words)


def test_names_that_discovery_may_bring_are_only_warned_about() -> None:
    text = "endpoints: {e: {url: 'http://e:1'}}\nmodels: {phi3: }\ngateway: {default_model: ph3}\ngroups: {g: {models: [gemma]}}"
    found = dict(warnings(text))
    assert set(found) == {"gateway.default_model", "groups.g.models[0]"}
    assert "only once discovery finds it; did you mean phi3?" in found["gateway.default_model"]
    only(warnings("gateway: {default_model: anything}"), "gateway.default_model", "discovery")


def test_headers_of_endpoints() -> None:
    def endpoint(headers: str) -> str:
        return f"endpoints: {{e: {{url: 'http://e:1', headers: {headers}}}}}"

    only(errors(endpoint("{Host: a}")), "endpoints.e.headers.Host", "set by the gateway itself")
    only(errors(endpoint("{'a b': c}")), 'endpoints.e.headers."a b"', "no valid header name")
    only(errors(endpoint("{x-team: 'é'}")), "endpoints.e.headers.x-team", "ASCII")
    only(warnings(endpoint("{x-api-key: abc, x-team: ops}")), "endpoints.e.headers.x-api-key", "move it to env:NAME")


def test_files_that_are_not_there_are_warned_about(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert warnings(f"models: {{m: {{path: {tmp_path}/m.gguf}}}}") == []
    only(warnings(f"models: {{m: {{path: {tmp_path}/n.gguf}}}}"), "models.m.path", "no such file")
    found = warnings("service: {tls: {cert_file: /no/c.pem, key_file: /no/k.pem}}")
    assert [path for path, _ in found] == ["service.tls.cert_file", "service.tls.key_file"]


def test_other_warnings() -> None:
    only(warnings("performance: {rate_limiting_enabled: true}"), "performance.rate_limit_rps", "nothing is limited")
    only(warnings("endpoints: {e: {url: 'https://e', tls_verify: false}}"), "endpoints.e.tls_verify", "read and change")
    only(warnings("keys: {master_key: a-good-long-key}"), "keys.master_key", "move it to env:NAME or file:PATH")


@pytest.mark.parametrize(
    "key", ["sk-1234", "sk-hx-dev-1234", "changeme", "ChangeMe", "password", "sk-master", "sk-litellm-master-key", "my-secret-key"]
)
def test_keys_that_everybody_knows_are_refused_with_the_remedy(key: str) -> None:
    for text in (f"keys: {{master_key: {key}}}", f"keys: {{api_keys: [{{name: a, key: {key}}}]}}"):
        ((_, said),) = errors(text)
        assert "publicly known" in said
        assert "secrets.token_urlsafe(32)" in said
        assert key not in said


def test_their_hashes_are_refused_too() -> None:
    digest = hashlib.sha256(b"sk-1234").hexdigest()
    only(errors(f"keys: {{api_keys: [{{name: a, key_hash: 'sha256:{digest}'}}]}}"), "keys.api_keys[0].key_hash", "publicly known")


def test_the_list_of_known_keys_is_compared_in_lower_case() -> None:
    assert all(key == key.lower() for key in PUBLIC_KEYS)
    assert "sk-bench" not in PUBLIC_KEYS


@pytest.mark.parametrize(
    ("key", "words"), [("sk-abc1", "shorter than 8"), ("schlüssel-lang", "ASCII"), (" padded-key ", "without spaces at the ends")]
)
def test_keys_that_do_not_hold(key: str, words: str) -> None:
    only(errors(f"keys: {{master_key: '{key}'}}"), "keys.master_key", words)


def test_one_key_stands_for_one_caller() -> None:
    digest = hashlib.sha256(LONG.encode()).hexdigest().upper()
    text = f"keys: {{master_key: {LONG}, api_keys: [{{name: a, key: {LONG}}}, {{name: b, key_hash: 'sha256:{digest}'}}, {{name: b, key: another-long-key}}]}}"
    found = errors(text)
    assert [path for path, _ in found] == ["keys.api_keys[0].key", "keys.api_keys[1].key_hash", "keys.api_keys[2].name"]
    assert "the same key as the master key" in found[0][1]


@pytest.mark.parametrize(
    ("host", "open_door"),
    [
        ("127.0.0.1", False),
        ("127.1.2.3", False),
        ("::1", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("::", True),
        ("gateway.example", True),
        ("192.0.2.7", True),
    ],
)
def test_a_door_without_a_key_opens_to_this_machine_only(host: str, open_door: bool) -> None:
    text = f"service: {{host: '{host}'}}"
    found = levels(text)["blocker"]
    assert [problem.path for problem in found] == (["service.host"] if open_door else [])
    assert all("keys.master_key" in problem.message and "127.0.0.1" in problem.message for problem in found)
    assert levels(text + f"\nkeys: {{api_keys: [{{name: a, key: {LONG}}}]}}")["blocker"] == []


@pytest.mark.parametrize("url", ["http://a", "https://a:1/v1", "http://[::1]:11434", "a:80", "http://a_b/x/", "http://192.0.2.1"])
def test_addresses_that_can_be_used(url: str) -> None:
    assert url_fault(url) == ""


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "http://",
        "http://:80",
        "http://a:0",
        "http://a:65536",
        "http://a:x",
        "http://[::1",
        "http://a b",
        "http://u@a",
        "http://a/?q",
        "http://a/#f",
        "http://ä",
        "http://a\n",
    ],
)
def test_addresses_that_cannot(url: str) -> None:
    said = url_fault(url)
    assert said
    assert "u@a" not in said


def test_hosts_and_headers() -> None:
    assert [host_fault(host) for host in ("0.0.0.0", "::", "fe80::1%eth0", "my-host.example")] == [""] * 4
    assert all(host_fault(host) for host in ("http://a", "a/b", "a b", "a:80", "[::1]", ""))
    assert not is_loopback("not an address")
    assert [header_fault(name) for name in ("x-a", "Authorization")] == ["", ""]
    assert all(header_fault(name) for name in ("", "a b", "a:", "Content-Length", "é"))


def test_a_stage_that_is_left_out_is_missed_where_it_has_something_to_do() -> None:
    all_of_them = "authenticate, inspect, resolve, limits, cache, admission"
    settings = (
        "cache: {enabled: true}\nperformance: {rate_limiting_enabled: true, rate_limit_rps: 5, max_concurrent_requests: 3}\n"
        "keys: {master_key: 'env:K'}\n"
    )
    environ = {"K": "a-good-key-for-the-tests-0123456789"}

    def found(stages: str, more: str) -> list[str]:
        loaded = load_text(f"pipeline: {{stages: [{stages}]}}\n{more}", "f.yaml", environ)
        return [str(problem) for problem in loaded.warnings if "pipeline" in str(problem)]

    assert found(all_of_them, settings) == [] == found("authenticate, inspect, resolve", "")
    for stage in all_of_them.split(", "):
        (said,) = found(", ".join(name for name in all_of_them.split(", ") if name != stage), settings)
        assert said.startswith("f.yaml:1:20: pipeline.stages") and f"does not list {stage}: " in said


def test_keys_of_the_store_open_the_door_as_well(tmp_path: Path) -> None:
    text = f"service: {{host: 0.0.0.0}}\nstorage: {{state_directory: {tmp_path}}}\n"
    assert "no key is configured; set keys.master_key" in levels(text)["blocker"][0].message
    with_store = text.replace("storage: {", "storage: {database_url: 'sqlite:////nowhere/own.db', ")
    assert levels(with_store)["blocker"] == []
    assert any("only keys of the store are let in" in message for _, message in warnings(with_store))
    write(tmp_path, Snapshot("here", 1, ()))
    assert len(levels(text)["blocker"]) == 1
    write(tmp_path, Snapshot("here", 2, (StoredKey(id="1", name="app", hash=b"\0" * 32, hint="hx-abcde"),)))
    assert levels(text)["blocker"] == [] and warnings(text) == []
    (tmp_path / "keys.json").write_bytes(b"{")
    assert len(levels(text)["blocker"]) == 1


def test_hidden_names_and_policies_of_models_are_those_there_are() -> None:
    hidden = errors(FLEET + "gateway: {hidden: [uno, pair, oen]}")
    assert hidden == [("gateway.hidden[2]", "there is no model, alias or group called oen; did you mean one?")]
    assert errors(FLEET.replace("aliases: [uno]", "policy: least_token")) == [
        ("models.one.policy", "there is no balancing policy called least_token; did you mean least_tokens?")
    ]


def test_tags_that_nobody_has_are_a_warning() -> None:
    text = FLEET + "load_balancer: {tag_filtering: any}"
    assert [path for path, _ in warnings(text)] == ["load_balancer.tag_filtering"]
    assert warnings(text.replace("aliases: [uno]", "tags: [x]")) == []
