"""The gateway without any configuration: it serves what listens on this machine's usual ports, or says what to do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.background import scripted
from tests.support.gateway import free_port

from hx_gateway.health.discovery import USUAL_PORTS

COMMAND = Path(sys.executable).with_name("hx-gateway")


def is_free(port: int) -> bool:
    """Whether nobody has the port; the tests below need the real ones, and leave them to whoever has them."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


pytestmark = [
    pytest.mark.skipif(not all(map(is_free, USUAL_PORTS)), reason="a usual port of model servers is taken on this machine"),
    pytest.mark.skipif(Path("/etc/hx-gateway/config.yaml").exists(), reason="this machine has a configuration of its own"),
]


def ask(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@contextlib.contextmanager
def unconfigured(folder: Path) -> Iterator[tuple[int, Path]]:
    """``hx-gateway serve`` where no configuration is; its port and its log."""
    port, log = free_port(), folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HX_") and name != "MASTER_KEY"}
    with log.open("wb") as written:
        process = subprocess.Popen([COMMAND, "serve", "--port", str(port)], cwd=folder, env=environment, stdout=written, stderr=written)
    try:
        give_up_s = time.monotonic() + 60
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_s, log.read_text()
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ask(port, "/readyz")[0] == 200:
                    break
            time.sleep(0.03)
        yield port, log
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()


def test_what_listens_is_served(tmp_path: Path) -> None:
    with (
        scripted("ollama", models=["ollama-model:1b"], port=11434),
        scripted("openai", models=["vendor/other-model"], port=8080),
        unconfigured(tmp_path) as (port, log),
    ):
        _, models = ask(port, "/v1/models")
        assert {model["id"] for model in models["data"]} == {"ollama-model:1b", "vendor/other-model"}, log.read_text()
        for name in ("ollama-model:1b", "vendor/other-model"):
            status, answer = ask(port, "/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "ping"}]})
            assert (status, answer["model"], answer["choices"][0]["message"]["content"]) == (200, name, "pong")


def test_nothing_found_says_what_to_do_and_goes_on_looking(tmp_path: Path) -> None:
    with unconfigured(tmp_path) as (port, log):
        assert "no model server was found" in log.read_text()
        assert "Ollama" in log.read_text()
        assert "configuration file" in log.read_text()
        assert ask(port, "/health")[1]["status"] == "unhealthy"
        assert ask(port, "/healthz")[0] == 200
        status, answer = ask(port, "/v1/chat/completions", {"model": "any", "messages": []})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        with scripted("ollama", models=["late:1b"], port=11434):
            give_up_s = time.monotonic() + 60
            while not ask(port, "/v1/models")[1]["data"]:
                assert time.monotonic() < give_up_s, log.read_text()
                time.sleep(0.1)
            assert ask(port, "/v1/chat/completions", {"model": "late:1b", "messages": [{"role": "user", "content": "ping"}]})[0] == 200
