"""From LiteLLM to the gateway: its file is imported, verified and served, and both are compared; with the real LiteLLM where HX_LITELLM names it."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import required
from tests.support.background import llamacpp, scripted
from tests.support.gateway import KEY, GatewayProcess, free_port
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.config.load import load_text
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.script import Model

PROGRAM = os.environ.get("HX_LITELLM", "")
OWNERS = Path(__file__).parents[1] / "data" / "litellm" / "owner.yaml"
HOSTS = {
    "llm-01:11434": ("ollama", ("llama3.2:3b", "qwen3:1.7b", "mistral-small3.2")),
    "llm-02:11434": ("ollama", ("phi3", "gemma2:2b")),
    "orc:11434": ("ollama", (Model("mxbai-embed-large", dimensions=1024),)),
    "llm-09:11400": ("openai", ("mixtral-8x7b",)),
    "llm-09:11401": ("openai", ("hermes-2",)),
    "llm-09:11402": ("openai", ("openchat-3.5",)),
    "llm-09:11403": ("openai", ("phi-3-mini",)),
}


def hx(*words: object, **environ: str) -> Any:
    """The command line, in this process: exit code, standard output and standard error."""
    return CliRunner().invoke(application(), list(map(str, words)), env=environ)


@pytest.fixture(scope="module")
def fleet() -> Iterator[dict[str, Backend]]:
    """A scripted server for each host and port of the owner's fleet."""
    with ExitStack() as running:
        yield {host: running.enter_context(scripted(dialect, models=list(models))) for host, (dialect, models) in HOSTS.items()}


@pytest.fixture(scope="module")
def theirs(fleet: dict[str, Backend], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The owner's file, with those servers in it."""
    text = OWNERS.read_text()
    for host, server in fleet.items():
        text = text.replace(f"http://{host}", server.url)
    path = tmp_path_factory.mktemp("litellm") / "config.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def gateway(theirs: Path) -> Iterator[GatewayProcess]:
    """The gateway started on LiteLLM's file directly, by the environment alone."""
    process = GatewayProcess("", environment={"LITELLM_CONFIG": str(theirs), "LITELLM_MASTER_KEY": KEY}, key="")
    process.path.unlink()
    process._command.remove(str(process.path))
    process.key = KEY
    with process:
        yield process


def ask(gateway: GatewayProcess, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, {"authorization": f"Bearer {gateway.key}"})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


def test_the_owners_file_is_imported_checked_and_verified(theirs: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "hx.yaml", tmp_path / "report.json"
    done = hx("import-litellm", theirs, "--out", out, "--report", report, "--verify")
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "3 ignored-by-LiteLLM" in done.stdout and "to be set there: LITELLM_MASTER_KEY" in done.stdout
    found = json.loads(report.read_text())
    assert found["counts"]["ignored-by-LiteLLM"] == 3 and found["problems"] == []
    offered = {model["model"]: model for endpoint in found["verified"]["endpoints"] for model in endpoint["models"]}
    assert len(offered) == 10 and all(model["offered"] for model in offered.values())
    assert offered["phi3"]["digest"] and offered["phi3"]["context_length"]
    assert (tmp_path / "hx.yaml.env").stat().st_mode & 0o777 == 0o600
    checked = hx("check", out, LITELLM_MASTER_KEY=KEY)
    assert checked.exit_code == 0, checked.stderr
    assert "hx-chat  group" in checked.stdout
    again = hx("import-litellm", theirs, "--out", out)
    assert again.exit_code == 1 and "--force" in again.stderr
    assert hx("import-litellm", theirs, "--out", out, "--report", tmp_path / "r.md", "--force").exit_code == 0
    assert "| `router_settings.model_group.hx-chat` | `groups.hx-chat` |" in (tmp_path / "r.md").read_text()


def test_verify_names_what_a_server_does_not_have(theirs: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(theirs.read_text().replace("ollama/phi3", "ollama/phi33"))
    done = hx("import-litellm", wrong, "--verify")
    assert done.exit_code == 1
    assert "does not offer phi33" in done.stderr and "did you mean phi3" in done.stderr
    load_text(done.stdout, "made.yaml", {"LITELLM_MASTER_KEY": KEY})  # what is printed is the configuration alone


def test_the_file_is_served_as_it_is(gateway: GatewayProcess, fleet: dict[str, Backend]) -> None:
    _, _, listed = ask(gateway, "/v1/models")
    names = {model["id"] for model in listed["data"]}
    assert {"hx-chat-fast", "hx-chat", "hx-chat-premium", "emb-premium", "mixtral-8x7b"} <= names
    for name in sorted(names - {"emb-premium"}):
        status, headers, answer = ask(gateway, "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "ping"}]})
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "pong"), answer
        if name == "hx-chat-fast":
            assert headers["x-hx-model"] == "qwen3:1.7b"
    status, _, answer = ask(gateway, "/v1/embeddings", {"model": "emb-premium", "input": "HX-OK"})
    assert (status, len(answer["data"][0]["embedding"])) == (200, 1024)
    asked = {request.path for request in fleet["llm-01:11434"].requests}
    assert "/api/chat" in asked and "/api/generate" not in asked
    assert "imported" not in gateway.log  # nothing of it is a warning


def test_defaults_of_a_row_are_sent_where_the_client_sends_none(tmp_path: Path) -> None:
    with scripted("openai", models=["o"]) as server, scripted("ollama", models=["l"]) as local:
        file = tmp_path / "c.yaml"
        file.write_text(
            f"model_list:\n"
            f"  - {{model_name: o, litellm_params: {{model: openai/o, api_base: '{server.url}/v1', temperature: 0.25, max_tokens: 7}}}}\n"
            f"  - {{model_name: l, litellm_params: {{model: ollama/l, api_base: '{local.url}', temperature: 0.25, num_predict: 7}}}}\n"
        )
        made = hx("import-litellm", file)
        assert made.exit_code == 0, made.stderr
        with GatewayProcess(made.stdout) as gateway:
            messages = [{"role": "user", "content": "ping"}]
            for name in ("o", "l"):
                assert ask(gateway, "/v1/chat/completions", {"model": name, "messages": messages})[0] == 200
            assert (
                ask(gateway, "/v1/chat/completions", {"model": "o", "messages": messages, "temperature": 1, "max_completion_tokens": 9})[0]
                == 200
            )
        sent = [json.loads(request.body) for request in server.requests if request.path == "/v1/chat/completions"]
        assert (sent[0]["temperature"], sent[0]["max_tokens"]) == (0.25, 7)
        assert (sent[1]["temperature"], sent[1]["max_completion_tokens"]) == (1, 9) and "max_tokens" not in sent[1]
        native = next(json.loads(request.body) for request in local.requests if request.path == "/api/chat")
        assert (native["options"]["temperature"], native["options"]["num_predict"]) == (0.25, 7)


def test_compare_finds_the_same_and_what_differs(gateway: GatewayProcess, fleet: dict[str, Backend], tmp_path: Path) -> None:
    direct = fleet["llm-09:11400"].url
    words = ("compare", "--a", direct, "--b", gateway.url, "--json")
    done = hx(*words, COMPARE_KEY_B=KEY)
    found = json.loads(done.stdout)
    different = [case for case in found["cases"] if case["differences"]]
    # The scripted server lets anybody in; the gateway does not. Everything else is the same.
    assert (done.exit_code, [case["name"] for case in different]) == (3, ["a wrong key"]), found
    assert different[0]["differences"][0] == "status: 200 and 401"
    assert any("header" in note and "x-hx-model" in note for case in found["cases"] for note in case["notes"])
    assert found["median_seconds"]["b"] > 0
    same = hx(
        "compare",
        "--a",
        gateway.url,
        "--b",
        gateway.url,
        "--model",
        "hx-chat",
        "--embedding",
        "emb-premium",
        COMPARE_KEY_A=KEY,
        COMPARE_KEY_B=KEY,
    )
    assert same.exit_code == 0 and "0 of 9 differ" in same.stdout, same.stdout
    other = hx("compare", "--a", direct, "--b", fleet["llm-09:11401"].url, "--model", "mixtral-8x7b")
    assert other.exit_code == 3 and "status: 200 and 404" in other.stdout
    gone = hx("compare", "--a", f"http://127.0.0.1:{free_port()}", "--b", direct)
    assert gone.exit_code == 1 and "refused" in gone.stderr
    assert hx("compare", "--a", "file:///etc/passwd", "--b", direct).exit_code == 2


def test_a_change_of_the_file_is_taken_over(gateway: GatewayProcess, theirs: Path) -> None:
    theirs.write_text(theirs.read_text().replace("router_settings:", "router_settings:\n  model_group_alias: {new-name: phi3}"))
    give_up_s = time.monotonic() + 60
    while "new-name" not in {model["id"] for model in ask(gateway, "/v1/models")[2]["data"]}:
        assert time.monotonic() < give_up_s, gateway.log
        time.sleep(0.1)


@contextmanager
def litellm(program: str, config: Path, key: str) -> Iterator[str]:
    """The address of a real LiteLLM proxy."""
    port = free_port()
    environ = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key, "NO_PROXY": "*"}
    log = config.with_suffix(".log").open("wb")
    process = subprocess.Popen(
        [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
        env=environ,
        stdout=log,
        stderr=log,
        cwd=config.parent,
    )
    try:
        give_up_s = time.monotonic() + 100
        while time.monotonic() < give_up_s and process.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", "/health/liveliness")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                time.sleep(0.3)
            finally:
                connection.close()
        else:
            raise AssertionError(config.with_suffix(".log").read_text()[-3000:])
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


@pytest.mark.timeout(300)
@pytest.mark.skipif(not PROGRAM, reason="HX_LITELLM names LiteLLM's program; it is too large for every run")
def test_with_a_real_litellm_beside_the_gateway_and_behind_it(tiny_model: Path, tmp_path: Path) -> None:
    required.llamacpp()
    key = "sk-" + "a-key-of-the-suite"
    with llamacpp(tiny_model) as model:
        config = tmp_path / "config.yaml"
        row = f"{{model_name: tiny, litellm_params: {{model: openai/tiny, api_base: '{model}/v1', api_key: none}}}}"
        config.write_text(f"model_list:\n  - {row}\ngeneral_settings: {{master_key: os.environ/LITELLM_MASTER_KEY}}\n")
        with litellm(PROGRAM, config, key) as theirs:
            ours = hx("import-litellm", config)
            assert ours.exit_code == 0, ours.stderr
            behind = tmp_path / "behind.yaml"
            behind.write_text(
                f"model_list: [{{model_name: tiny, litellm_params: {{model: litellm_proxy/tiny, api_base: '{theirs}', api_key: os.environ/OLD}}}}]"
            )
            upstream = hx("import-litellm", behind)
            keys = {"LITELLM_MASTER_KEY": key}
            # As the other side, over the same llama.cpp, and as the gateway's own model server.
            for text, environ in ((ours.stdout, keys), (upstream.stdout, {**keys, "OLD": key})):
                with GatewayProcess(text, environment=environ, key="") as gateway:
                    done = hx("compare", "--a", theirs, "--b", gateway.url, "--repeat", "5", "--json", COMPARE_KEY_A=key, COMPARE_KEY_B=key)
                    found = json.loads(done.stdout)
                    print(done.stdout)  # shown by pytest -s
                    chats = [case for case in found["cases"] if case["name"].startswith("tiny")]
                    assert len(chats) == 5
                    assert [case["differences"] for case in chats] == [[]] * 5, chats
