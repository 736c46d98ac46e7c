"""The fleet of the contract in small: real llama.cpp for chat in three groups, and an Ollama with a model of 1024 dimensions."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.support import required
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.script import Model


@dataclass
class Answer:
    """What came back."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class House:
    """What runs."""

    gateway: GatewayProcess
    orc: Backend
    old: Backend


Ask = Callable[..., Answer]


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The gateway and, behind it, what the contract names."""
    required.llamacpp()
    path = json.dumps(str(tiny.path()))
    orc = Scripted("ollama", models=[Model("mxbai-embed-large:latest", dimensions=1024, capabilities=("embedding",))])
    old = Scripted("ollama", models=[Model("nomic:latest", dimensions=16)], legacy_embeddings=True, version="0.1.30")
    with orc as orc_backend, old as old_backend:
        config = f"""\
service: {{name: unified-api-gateway}}
storage: {{state_directory: "{tmp_path_factory.mktemp("state")}"}}
gateway: {{default_model: hx-chat}}
models:
  qwen3-1.7b: {{path: {path}, mode: chat, slots: 2, threads: 1}}
  llama3.2-3b: {{path: {path}, mode: chat, slots: 2, threads: 1}}
  mistral-small: {{path: {path}, mode: chat, slots: 2, threads: 1}}
  emb-premium: {{endpoint: orc, upstream_model: mxbai-embed-large, mode: embedding, dimensions: 1024}}
  emb-old: {{endpoint: old, upstream_model: nomic, mode: embedding, dimensions: 16}}
endpoints:
  orc: {{url: "{orc_backend.url}"}}
  old: {{url: "{old_backend.url}"}}
groups:
  hx-chat-fast: {{models: [qwen3-1.7b], tier: fast}}
  hx-chat: {{models: [llama3.2-3b, qwen3-1.7b], tier: balanced}}
  hx-chat-premium: {{models: [mistral-small], tier: premium}}
"""
        with GatewayProcess(config) as gateway:
            yield House(gateway, orc_backend, old_backend)


def _by_curl(url: str, headers: dict[str, str], body: bytes | None) -> Answer:
    command = ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}", url]
    for name, value in headers.items():
        command += ["--header", f"{name}: {value}"]
    if body is not None:
        command += ["--data-binary", "@-"]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    text, _, status = done.stdout.rpartition(b"\n")
    return Answer(int(status), text)


def _by_http_client(url: str, headers: dict[str, str], body: bytes | None) -> Answer:
    address, slash, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", slash + path, body, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
    finally:
        connection.close()


@pytest.fixture(params=["curl", "http.client"])
def ask(request: pytest.FixtureRequest, house: House) -> Ask:
    """Asks the gateway: ``ask(path, body, **headers)``; a body given as anything but bytes is sent as JSON, None means GET."""
    if request.param == "curl":
        required.program("curl")
    send = _by_curl if request.param == "curl" else _by_http_client

    def asked(path: str, body: Any = None, **headers: str) -> Answer:
        lines = {"Authorization": f"Bearer {house.gateway.key}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            lines["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        return send(house.gateway.url + path, {name: value for name, value in lines.items() if value}, body)

    return asked
