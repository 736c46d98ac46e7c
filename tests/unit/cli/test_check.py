"""`hx-gateway check`: the wiring, the problems, and never a secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.config.load import ConfigError, load_text
from hx_gateway.routing.policies import policy

FILE = """\
service: {port: 8123}
gateway: {default_model: chat, default_upstream: "http://litellm:4000"}
load_balancer: {algorithm: weighted}
endpoints:
  llm-01: {url: "http://llm-01:11434", provider: ollama, api_key: "tell-nobody-upstream"}
models:
  small: {endpoint: llm-01, upstream_model: "qwen3:1.7b", aliases: [mini], weight: 2}
  large: {endpoints: [llm-01, "http://llm-09:11400"], provider: openai, max_concurrent: 4}
  own: {path: /no/model.gguf, replicas: 2}
groups:
  chat: {models: [mini, large, found-later], tier: balanced, policy: latency}
aliases: {gpt-4: chat}
keys:
  master_key: env:THE_MASTER
  api_keys: [{name: app, key: tell-nobody-app}]
storage: {redis_url: "redis://cache:6379"}
embeddings: {gateway_base: "http://elsewhere:4000"}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.yaml"
    path.write_text(FILE)
    return path


def run(*words: object, **environ: str) -> Any:
    return CliRunner().invoke(application(), ["check", *map(str, words)], env=environ)


def test_the_wiring_for_people(file: Path) -> None:
    done = run(file, THE_MASTER="tell-nobody-master", RATE_LIMIT_RPS="9")
    assert done.exit_code == 0, done.output
    output = done.stdout
    for line in (
        "listens on     http://127.0.0.1:8123",
        "default model  chat",
        "keys           master (admin), app",
        "forwards to    http://litellm:4000",
        "  mini  alias of small",
        "  gpt-4  alias of chat",
        "  chat  group, tier balanced, policy latency",
        "    -> small on llm-01 http://llm-01:11434 as qwen3:1.7b (provider ollama, weight 2)",
        "    -> large on http://llm-09:11400 (provider openai, weight 1, at most 4 at once)",
        "    -> found-later, to be discovered",
        "  own  model, policy weighted",
        "read, but not used by this release: embeddings.gateway_base",
    ):
        assert line in output.splitlines(), line
    assert any(line.split() == ["service.port", "8123", f"{file}:1"] for line in output.splitlines())
    assert any(line.split() == ["performance.rate_limit_rps", "9.0", "RATE_LIMIT_RPS"] for line in output.splitlines())
    assert "tell-nobody" not in done.output
    assert "warning:" in done.stderr
    assert "move it to env:NAME or file:PATH" in done.stderr


def test_the_wiring_for_machines(file: Path) -> None:
    done = run(file, "--json", THE_MASTER="tell-nobody-master")
    assert done.exit_code == 0
    assert "tell-nobody" not in done.output
    plan = json.loads(done.stdout)
    assert plan["ok"] is True
    assert plan["listen"] == {"url": "http://127.0.0.1:8123", "workers": 1, "tls": False}
    assert plan["keys"] == {"master": True, "names": ["app"], "stored": 0}
    names = {entry["name"]: entry for entry in plan["names"]}
    assert set(names) == {"small", "mini", "large", "own", "chat", "gpt-4"}
    assert [place["url"] for place in names["large"]["deployments"]] == ["http://llm-01:11434", "http://llm-09:11400"]
    assert [place["model"] for place in names["chat"]["deployments"]] == ["small", "large", "large"]
    assert len(names["own"]["deployments"]) == 2
    assert names["chat"]["to_be_discovered"] == ["found-later"]
    settings = {one["path"]: (one["value"], one["source"]) for one in plan["settings"]}
    assert settings["keys.master_key"] == ("env:THE_MASTER", f"{file}:14")
    assert settings["keys.api_keys[0].key"] == ("********", f"{file}:15")
    assert settings["models.small.weight"] == (2.0, f"{file}:7")
    assert plan["unused"] == ["embeddings.gateway_base"]


def test_problems_are_all_printed_and_fail(file: Path) -> None:
    file.write_text(FILE.replace("port: 8123", "prot: 8123").replace("weight: 2", "weight: heavy"))
    done = run(file)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"{file}:1:11: service.prot: unknown setting; did you mean port?",
        f"{file}:7:84: models.small.weight: should be a number, not text",
        f"{file}:14:15: keys.master_key: the environment variable THE_MASTER is not set; set it, or leave the setting out",
        "3 problems; nothing was started",
    ]


def test_problems_for_machines(file: Path) -> None:
    done = run(file, "--json")
    assert done.exit_code == 1
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["path"], problem["line"], problem["column"], problem["source"]) == ("keys.master_key", 14, 15, str(file))


def test_an_open_door_is_a_problem_though_the_file_loads(tmp_path: Path) -> None:
    path = tmp_path / "open.yaml"
    path.write_text("service: {host: 0.0.0.0}")
    done = run(path)
    assert done.exit_code == 1
    assert "keys           none: nobody is let in" in done.stdout
    assert f"problem: {path}:1:17: service.host: 0.0.0.0 is reachable" in done.stderr
    assert json.loads(run(path, "--json").stdout)["ok"] is False
    assert run(path, MASTER_KEY="a-good-long-key").exit_code == 0


def test_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hx_gateway.config.load.DEFAULT_PATHS", ("hx-gateway.yaml",))
    done = run()
    assert done.exit_code == 0
    assert "none found: defaults" in done.stdout
    assert "names: none configured" in done.stdout


def test_an_ipv6_address_is_shown_in_brackets(tmp_path: Path) -> None:
    path = tmp_path / "six.yaml"
    path.write_text("service: {host: '::1', port: 1}")
    assert "listens on     http://[::1]:1" in run(path).stdout


PLUGGED = """\
pipeline:
  stages: [authenticate, inspect, resolve, "nowhere:build",
           limits, cache, admission, "acme_plugged:NUMBER"]
policies:
  near: {terms: {wait: 1, acme_distance: 1, acme_broken: 1, tokens: 1, "acme_plugged:distanc": 2}}
  odd: {picker: intelligent}
endpoints:
  a: {url: "http://127.0.0.1:9", provider: olama}
models:
  chat: {endpoint: a, policy: "acme_ends:Picker"}
  other: {endpoint: a, policy: "acme_plugged:distance"}
monitoring:
  observers: ["acme_plugged:distance", watch]
"""


def test_what_a_plug_in_s_name_does_not_lead_to_is_found_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_plugged.py").write_text("NUMBER = 1\ndef distance(*_): return 0.0\n")
    (tmp_path / "acme_ends.py").write_text("raise RuntimeError('no licence')\n")
    installed = tmp_path / "acme-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[hx_gateway.term]\nacme_distance = acme_plugged:distance\nacme_broken = acme_plugged:gone\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "gateway.yaml"
    file.write_text(PLUGGED)
    done = run(file, "--json")
    assert done.exit_code == 1
    found = [(one["line"], one["column"], one["path"], one["message"]) for one in json.loads(done.stdout)["problems"]]
    expected = [
        (
            2,
            44,
            "pipeline.stages[3]",
            "cannot load 'nowhere:build': No module named 'nowhere'; a plug-in is named module:attribute, or by its entry point, and is installed or in",
        ),
        (3, 38, "pipeline.stages[7]", "acme_plugged:NUMBER is neither a function nor a class"),
        (5, 45, "policies.near.terms.acme_broken", "cannot load 'acme_broken': "),
        (5, 72, "policies.near.terms.acme_plugged:distanc", "cannot load 'acme_plugged:distanc': "),
        (6, 17, "policies.odd.picker", "no picker is called 'intelligent' (built in: least_busy, "),
        (8, 44, "endpoints.a.provider", "no provider is called 'olama'; did you mean 'ollama'?"),
        (10, 31, "models.chat.policy", "cannot load 'acme_ends:Picker': RuntimeError: no licence"),
        (
            13,
            40,
            "monitoring.observers[1]",
            "no observer is called 'watch' (built in: none); a plug-in is named module:attribute",
        ),
    ]
    assert [one[:3] for one in found] == [one[:3] for one in expected]
    for (*_, message), (*_, begins) in zip(found, expected, strict=True):
        assert message.startswith(begins)


def test_a_term_of_an_installed_package_needs_no_dot_and_a_wrong_one_is_refused_by_every_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "acme-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[hx_gateway.term]\nacme_distance = acme_near:distance\n")
    (tmp_path / "acme_near.py").write_text("def distance(*_): return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_text("policies: {near: {terms: {acme_distance: 1.0}}}", "f.yaml", {}).config
    ((name, term, _),) = policy("near", config.policies).terms
    assert (name, term(None, None, 0.0, 0.0)) == ("acme_distance", 0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="there is no term called acme_distanc; did you mean acme_distance"):
        load_text("policies: {near: {terms: {acme_distanc: 1.0}}}", "f.yaml", {})
