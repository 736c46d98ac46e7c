"""OpenAI's own package for Node against the demo: npm brings it the first time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support import required

from hx_gateway.cli.demo import free_port

HERE = Path(__file__).parent
COMMAND = Path(sys.executable).with_name("hx-gateway")
INSTALLED = HERE / "node_modules" / "openai"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def node() -> str:
    """Node, with OpenAI's package in the version that package.json names."""
    found = required.program("node")
    version = json.loads((HERE / "package.json").read_text())["dependencies"]["openai"]
    described = INSTALLED / "package.json"
    if described.exists() and json.loads(described.read_text())["version"] == version:
        return found
    command = [
        required.program("npm"),
        "install",
        "--prefix",
        str(HERE),
        "--no-package-lock",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        required.missing(f"npm cannot bring OpenAI's package: {done.stderr[-500:]}")
    return found


@pytest.fixture
async def gateway() -> AsyncIterator[dict[str, str]]:
    """The demo, running; what a client needs to know of it."""
    port = free_port()
    demo = await asyncio.create_subprocess_exec(
        COMMAND,
        "demo",
        "--port",
        str(port),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    assert demo.stdout is not None
    try:
        key = ""
        while not key:
            line = (await demo.stdout.readline()).decode()
            assert line, "the demo ended before it was ready"
            _, _, key = line.strip().partition("export KEY=")
        yield {"BASE_URL": f"http://127.0.0.1:{port}/v1", "API_KEY": key}
    finally:
        if demo.returncode is None:
            demo.terminate()
        await demo.communicate()


async def test_nodes_openai_package_gets_what_it_expects(node: str, gateway: dict[str, str]) -> None:
    client = await asyncio.create_subprocess_exec(
        node, HERE / "openai_client.mjs", env=dict(os.environ) | gateway, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    seen = json.loads(out)
    assert {"hx-chat", "hx-chat-fast", "hx-chat-premium", "emb-premium"} <= set(seen["models"])
    assert (seen["chat"], seen["model"]) == ("HX-OK", "hx-chat")
    assert seen["usage"] > 0
    assert seen["stream"] == " ".join(str(number) for number in range(1, 21))
    assert seen["pieces"] > 20
    assert seen["streamUsage"] > 0
    assert seen["embeddings"] == [128, 128]
    assert seen["farthest"] < 1e-6
    assert (seen["unknownModel"], seen["wrongKey"]) == ("model_not_found", "invalid_api_key")
