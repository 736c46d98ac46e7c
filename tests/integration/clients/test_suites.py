"""The tests that OpenAI and LangChain wrote for their own clients, with the gateway in the place of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.clients import suites
from tests.integration.clients.obliging import Obliging
from tests.integration.clients.suites import Expected
from tests.support import required
from tests.support.background import Background, scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny

pytestmark = pytest.mark.timeout(900)  # the first run fetches packages

OPENAI_KEY = "My API Key"  # what OpenAI's tests send
OPENAI_NAMES = "[gpt-6-astra, gpt-3.5-turbo-instruct, text-embedding-3-small]"  # the models they ask for
OPENAI_FILES = ("chat/test_completions.py", "test_completions.py", "test_embeddings.py", "test_models.py")

STRICT_BASE64 = Expected(
    r".*\.Test(Async)?Embeddings\.test_(method|raw_response|streaming_response)_create\[(strict|aiohttp)\]",
    9,
    "Input should be a valid list",
    "the SDK asks for base64 by itself, and when told to validate strictly refuses the base64 it gets",
)
DELETE_MODEL = Expected(
    r".*\.Test(Async)?Models\.test_(method|raw_response|streaming_response)_delete\[.*\]",
    15,
    "405",
    "the gateway has no models of its own that a client could delete",
)
LLAMACPP_LOGPROBS = Expected(
    r".*\.chat\.test_completions\.Test(Async)?Completions\.test_method_create_with_all_params_overload_2\[.*\]",
    5,
    "logprobs is not supported with tools + stream",
    "llama.cpp refuses logprobs in a stream with tools",
)
OLLAMA_TOOL_CHOICE = Expected(
    r".*TestGateway\.test_tool_choice",
    1,
    "assert []",
    "Ollama knows no tool_choice: a model that says hello when it is greeted cannot be made to call a tool",
)


def _brought(bring: object) -> Path:
    try:
        return bring()  # type: ignore[operator,no-any-return]
    except suites.Unavailable as error:
        required.missing(f"needs a package index the first time: {error}")


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python that has the suites' packages."""
    return _brought(suites.environment)


@pytest.fixture(scope="session")
def openai_sources() -> Path:
    """OpenAI's SDK with its tests."""
    return _brought(suites.openai_sources)


@pytest.fixture(params=["scripted", "llama.cpp"])
def openai_gateway(request: pytest.FixtureRequest) -> Iterator[GatewayProcess]:
    """A gateway that serves the names which OpenAI's tests ask for."""
    if request.param == "scripted":
        with (
            scripted("openai", models=["everything"]) as backend,
            GatewayProcess(f'models: {{everything: {{endpoint: "{backend.url}", aliases: {OPENAI_NAMES}}}}}', key=OPENAI_KEY) as gateway,
        ):
            yield gateway
    else:
        required.llamacpp()
        path = json.dumps(str(tiny.path()))
        config = f"""\
models:
  tiny: {{path: {path}, mode: chat, slots: 4, threads: 1, aliases: [gpt-6-astra, gpt-3.5-turbo-instruct]}}
  tiny-embed: {{path: {path}, mode: embedding, threads: 1, truncate_dimensions: true, aliases: [text-embedding-3-small]}}
"""
        with GatewayProcess(config, key=OPENAI_KEY) as gateway:
            yield gateway


def test_openais_own_suite(request: pytest.FixtureRequest, python: Path, openai_sources: Path, openai_gateway: GatewayProcess) -> None:
    files = [f"tests/api_resources/{name}" for name in OPENAI_FILES]
    environ = {"TEST_API_BASE_URL": f"{openai_gateway.url}/v1"}
    result = suites.run(python, openai_sources, environ, *files, "-k", "create or Models or Embeddings")
    expected = [STRICT_BASE64, DELETE_MODEL]
    if "llama.cpp" in request.node.name:
        expected.append(LLAMACPP_LOGPROBS)
    assert suites.unexplained(result, expected) == [], openai_gateway.log[-3000:]
    assert len(result.passed) >= 120
    assert not result.skipped


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
def test_langchains_standard_tests(dialect: str, python: Path) -> None:
    suite = Path(__file__).with_name("langchain_suite.py")
    with (
        Background(lambda: Obliging(dialect, models=["first:1b", "second:1b"])) as backend,
        GatewayProcess(f'endpoints: {{scripted: {{url: "{backend.url}"}}}}') as gateway,
    ):
        environ = {
            "GATEWAY_URL": f"{gateway.url}/v1",
            "GATEWAY_KEY": gateway.key,
            "GATEWAY_MODEL": "first:1b",
            "GATEWAY_OTHER_MODEL": "second:1b",
        }
        result = suites.run(python, suite.parent, environ, "--noconftest", suite)
        paths = {request.path for request in backend.requests if b'"messages"' in request.body}
        assert suites.unexplained(result, [OLLAMA_TOOL_CHOICE] if dialect == "ollama" else []) == [], gateway.log[-3000:]
    assert paths == {"/v1/chat/completions" if dialect == "openai" else "/api/chat"}
    assert len(result.passed) >= 44
    # what OpenAI's chat route itself cannot carry, or LangChain tests only with recordings
    assert all(any(word in name for word in ("pdf", "audio", "anthropic", "stream_time")) for name in result.skipped), result.skipped
