"""A real llama.cpp behind an Ollama face, started once for all tests of this folder."""

import json
import subprocess
import sys

import pytest
from tests.support import required

from hx_gateway.local import tiny
from hx_gateway.testing.ollama_face import OllamaFace


def _llamacpp(*extra):
    command = [sys.executable, "-m", "hx_gateway.local.server", "--path", str(tiny.path()), "--context", "1024", "--threads", "1", *extra]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def llamacpp_urls():
    """Addresses of a chat server and an embedding server."""
    required.llamacpp()
    processes = [_llamacpp("--slots", "4"), _llamacpp("--embedding", "--pooling", "mean")]
    try:
        lines = [process.stdout.readline() for process in processes]
        assert all(lines), [process.stderr.read() for process, line in zip(processes, lines, strict=True) if not line]
        yield [json.loads(line)["address"] for line in lines]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.communicate(timeout=30)


@pytest.fixture
async def face(llamacpp_urls):
    """The Ollama face over both."""
    async with OllamaFace(*llamacpp_urls, model="hx-tiny:latest") as started:
        yield started
