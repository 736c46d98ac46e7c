"""A fleet of real llama.cpp servers, and a scripted one, behind a real gateway; started once for all tests of this folder."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import openai
import pytest
from tests.support import required
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.testing.script import Model

LIMITED_KEY = "limited-key-of-the-suite"


@dataclass(frozen=True)
class Fleet:
    """What runs.

    Args:
        gateway: The gateway.
        scripted: The scripted server behind the models ``scripted`` and ``scripted-embed``.
        slow: One that takes 20 ms for each token, behind ``slow``.
    """

    gateway: GatewayProcess
    scripted: Scripted
    slow: Scripted

    @property
    def base_url(self) -> str:
        """What an SDK is given."""
        return f"{self.gateway.url}/v1"


def configuration(scripted_url: str, slow_url: str) -> str:
    path = json.dumps(str(tiny.path()))
    return f"""\
gateway: {{default_model: hx-chat}}
load_balancer: {{algorithm: round_robin}}
keys: {{api_keys: [{{name: limited, key: "env:LIMITED_KEY", models: [tiny-fast], show_endpoints: false}}]}}
models:
  tiny: {{path: {path}, mode: chat, replicas: 2, slots: 4, threads: 1, aliases: ["vendor/tiny:1m"]}}
  tiny-fast: {{path: {path}, mode: chat, slots: 4, threads: 1}}
  tiny-embed: {{path: {path}, mode: embedding, dimensions: {tiny.EMBEDDING_LENGTH}, threads: 1}}
  scripted: {{endpoint: "{scripted_url}", mode: chat}}
  scripted-embed: {{endpoint: "{scripted_url}", mode: embedding, truncate_dimensions: true}}
  slow: {{endpoint: "{slow_url}", mode: chat}}
groups:
  hx-chat: {{models: [tiny, tiny-fast], tier: balanced}}
  hx-chat-fast: {{models: [tiny-fast], tier: fast}}
"""


@pytest.fixture(scope="session")
def fleet() -> Iterator[Fleet]:
    """Three chat servers and one for embeddings, all llama.cpp, and two scripted servers, behind one gateway."""
    required.llamacpp()
    scripted = Scripted(models=[Model("scripted"), Model("scripted-embed", dimensions=24)])
    slow = Scripted(models=["slow"], token_s=0.02)
    with (
        scripted as one,
        slow as other,
        GatewayProcess(configuration(one.url, other.url), environment={"LIMITED_KEY": LIMITED_KEY}) as gateway,
    ):
        yield Fleet(gateway, scripted, slow)


@pytest.fixture
def client(fleet: Fleet) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK with the master key."""
    with openai.OpenAI(base_url=fleet.base_url, api_key=fleet.gateway.key, max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(fleet: Fleet) -> AsyncIterator[openai.AsyncOpenAI]:
    """The same for asyncio."""
    async with openai.AsyncOpenAI(base_url=fleet.base_url, api_key=fleet.gateway.key, max_retries=0) as made:
        yield made
