"""`hx-gateway check --live`: what real and scripted servers tell is compared with the file, and nothing is generated or loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support import required
from tests.support.background import llamacpp, scripted
from tests.support.gateway import free_port
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.local import tiny
from hx_gateway.local.server import API_KEY_VARIABLE
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.script import Model

FREE = {"/v1/models", "/health", "/props", "/slots", "/metrics", "/version", "/api/version", "/api/tags", "/api/ps", "/api/show"}


@pytest.fixture
def running() -> Iterator[ExitStack]:
    """Servers for the length of a test."""
    with ExitStack() as stack:
        yield stack


def run(folder: Path, config: str, *words: str) -> Any:
    path = folder / "gateway.yaml"
    path.write_text(config)
    return CliRunner().invoke(application(), ["check", "--live", *words, str(path)])


def look(folder: Path, config: str) -> tuple[int, dict[str, Any], list[tuple[str, str, str]]]:
    """Exit code, the endpoints by name, and the findings as level, setting and message."""
    done = run(folder, config, "--json")
    assert done.exit_code in (0, 1), done.exception
    plan = json.loads(done.stdout)
    assert plan["ok"] is (done.exit_code == 0)
    findings = [(one["level"], one["path"], one["message"]) for one in plan["live"]["findings"]]
    return done.exit_code, {one["name"]: one for one in plan["live"]["endpoints"]}, findings


def asked_nothing_dear(*servers: Backend) -> bool:
    return all({request.path for request in server.requests} <= FREE for server in servers)


def test_a_fleet_that_is_as_configured(running: ExitStack, tmp_path: Path) -> None:
    models = [Model("qwen3:1.7b", ("completion", "tools"), 40_960), Model("mxbai:latest", ("embedding",), 512, dimensions=1024)]
    ollama = running.enter_context(scripted("ollama", models=models, loaded=False))
    vllm = running.enter_context(scripted("openai", models=["large"], api_key="their-own-key"))
    config = f"""\
endpoints:
  llm-01: {{url: "{ollama.url}", provider: ollama}}
  llm-09: {{url: "{vllm.url}", api_key: their-own-key}}
models:
  small: {{endpoint: llm-01, upstream_model: "qwen3:1.7b", mode: chat}}
  emb: {{endpoint: llm-01, upstream_model: mxbai, mode: embedding, dimensions: 1024}}
  large: {{endpoint: llm-09}}
placement: {{small: {{keep: [llm-01]}}}}
"""
    code, endpoints, findings = look(tmp_path, config)
    assert (code, findings) == (0, [])
    first, second = endpoints["llm-01"], endpoints["llm-09"]
    assert (first["reachable"], first["dialect"], first["key"]) == (True, {"configured": "ollama", "found": "ollama"}, "none")
    assert (second["dialect"], second["key"]) == ({"configured": None, "found": "openai"}, "accepted")
    told = {model["model"]: model for model in first["models"]}
    assert all(told[name]["offered"] for name in ("small", "emb"))
    assert told["small"]["capabilities"] == ["completion", "tools"]
    assert (told["small"]["context_length"], told["small"]["in_memory"]) == (40_960, False)
    assert told["small"]["digest"] == models[0].digest
    assert told["emb"]["dimensions"] == 1024
    assert ollama.loaded == set()  # the plan of what is kept in memory is not carried out by a check
    assert asked_nothing_dear(ollama, vllm)

    done = run(tmp_path, config)
    assert done.exit_code == 0, done.output
    assert "their-own-key" not in done.output
    row = next(line for line in done.stdout.splitlines() if "small" in line and "qwen3:1.7b" in line and "yes" in line)
    assert models[0].digest[:12] in row


def test_a_dead_endpoint_and_a_silent_one(running: ExitStack, tmp_path: Path) -> None:
    silent = running.enter_context(scripted("openai"))
    silent.fault = "hang"
    config = f"""\
endpoints:
  dead: {{url: "http://127.0.0.1:{free_port()}"}}
  silent: {{url: "{silent.url}"}}
models: {{one: {{endpoint: dead}}, two: {{endpoint: silent}}}}
"""
    code, endpoints, findings = look(tmp_path, config)
    assert code == 1
    assert {(level, path) for level, path, _ in findings} == {("error", "endpoints.dead.url"), ("error", "endpoints.silent.url")}
    assert all("cannot be reached" in message and "start the server, or correct the address" in message for _, _, message in findings)
    assert "refused; nothing listens there" in findings[0][2] and "no answer within" in findings[1][2]
    assert not any(one["reachable"] or one["models"][0]["offered"] for one in endpoints.values())


def test_each_finding_names_the_line_of_the_file(tmp_path: Path) -> None:
    config = f'models:\n  one:\n    weight: 2\n    endpoint: "http://127.0.0.1:{free_port()}"\n'
    done = run(tmp_path, config)
    assert done.exit_code == 1
    assert f"problem: {tmp_path / 'gateway.yaml'}:4: models.one.endpoint: 127.0.0.1" in done.stderr


@pytest.mark.parametrize("given", ["", ", api_key: not-the-right-one"])
@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_a_refused_key(running: ExitStack, tmp_path: Path, dialect: str, given: str) -> None:
    server = running.enter_context(scripted(dialect, models=["m"], api_key="the-right-one"))
    code, endpoints, findings = look(tmp_path, f'endpoints: {{e: {{url: "{server.url}"{given}}}}}\nmodels: {{m: {{endpoint: e}}}}')
    ((level, path, message),) = findings
    assert (code, level, path, endpoints["e"]["key"]) == (1, "error", "endpoints.e.api_key", "refused")
    assert ("correct the key" if given else "give the key it wants") in message
    assert "not-the-right-one" not in message


def test_a_missing_model(running: ExitStack, tmp_path: Path) -> None:
    ollama = running.enter_context(scripted("ollama", models=["llama3.2:3b"]))
    vllm = running.enter_context(scripted("openai", models=["large"]))
    config = f"""\
models:
  typo: {{endpoint: "{ollama.url}", upstream_model: "lama3.2:3b"}}
  gone: {{endpoint: "{ollama.url}", upstream_model: "zephyr:7b"}}
  other: {{endpoint: "{vllm.url}", upstream_model: hermes}}
"""
    code, _, findings = look(tmp_path, config)
    assert code == 1
    said = {path: message for _, path, message in findings}
    assert "it offers llama3.2:3b; did you mean llama3.2:3b?" in said["models.typo.upstream_model"]
    assert "ollama pull zephyr:7b" in said["models.gone.upstream_model"]
    assert "it offers large" in said["models.other.upstream_model"]


def test_a_wrong_dialect(running: ExitStack, tmp_path: Path) -> None:
    ollama = running.enter_context(scripted("ollama", models=["m"]))
    vllm = running.enter_context(scripted("openai", models=["n"]))
    config = f"""\
endpoints: {{a: {{url: "{ollama.url}", provider: openai}}}}
models: {{m: {{endpoint: a}}, n: {{endpoint: "{vllm.url}", provider: ollama}}}}
"""
    code, _, findings = look(tmp_path, config)
    assert code == 1
    (error, warning) = findings
    assert (error[0], error[1]) == ("error", "models.n.provider")
    assert "configured as ollama and speaks openai" in error[2]
    assert "set provider: openai" in error[2]
    assert (warning[0], warning[1]) == ("warning", "endpoints.a.provider")


def test_what_a_model_is_not(running: ExitStack, tmp_path: Path) -> None:
    models = [Model("emb:latest", ("embedding",), 512, dimensions=768), Model("chat:latest", ("completion",), 4096)]
    server = running.enter_context(scripted("ollama", models=models))
    config = f"""\
endpoints: {{e: {{url: "{server.url}"}}}}
models:
  vectors: {{endpoint: e, upstream_model: emb, mode: embedding, dimensions: 1024}}
  cut: {{endpoint: e, upstream_model: emb, mode: embedding, dimensions: 256, truncate_dimensions: true}}
  wrong: {{endpoint: e, upstream_model: emb, mode: chat}}
  long: {{endpoint: e, upstream_model: chat, num_ctx: 8192}}
  pinned: {{endpoint: e, upstream_model: chat, digest: "0123456789ab"}}
"""
    code, _, findings = look(tmp_path, config)
    assert code == 1
    said = {path: (level, message) for level, path, message in findings}
    assert set(said) == {"models.vectors.dimensions", "models.wrong.mode", "models.long.num_ctx", "models.pinned.digest"}
    assert "have 768 dimensions, not 1024" in said["models.vectors.dimensions"][1]
    assert said["models.long.num_ctx"][0] == "warning"
    assert models[1].digest[:12] in said["models.pinned.digest"][1]


def test_names_left_to_discovery_that_nobody_offers(running: ExitStack, tmp_path: Path) -> None:
    server = running.enter_context(scripted("ollama", models=["here:latest"]))
    config = f"""\
gateway: {{default_model: nowhere}}
endpoints: {{e: {{url: "{server.url}"}}}}
models: {{absent: {{}}, here: {{}}}}
groups: {{g: {{models: [here, lost]}}}}
"""
    code, endpoints, findings = look(tmp_path, config)
    assert code == 1
    assert {path for _, path, _ in findings} == {"models.absent", "groups.g.models[1]", "gateway.default_model"}
    assert [model["model"] for model in endpoints["e"]["models"]] == ["here", "here:latest"]


def test_a_real_llamacpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required.llamacpp()
    monkeypatch.setenv(API_KEY_VARIABLE, "key-of-the-server")
    with llamacpp(tiny.path(), "--alias", "tiny", "--slots", "2") as url:
        config = f'endpoints: {{own: {{url: "{url}", api_key: key-of-the-server}}}}\nmodels: {{tiny: {{endpoint: own}}}}'
        code, endpoints, findings = look(tmp_path, config)
        assert (code, findings) == (0, [])
        own = endpoints["own"]
        assert (own["engine"], own["slots"], own["key"], own["dialect"]["found"]) == ("llamacpp", 2, "accepted", "openai")
        (model,) = own["models"]
        assert model["offered"] is True
        assert model["context_length"] > 0
        # It lists its model to anybody; only what it guards tells that the key is wrong.
        code, endpoints, findings = look(tmp_path, config.replace("key-of-the-server", "another"))
        assert (code, [path for _, path, _ in findings]) == (1, ["endpoints.own.api_key"])
