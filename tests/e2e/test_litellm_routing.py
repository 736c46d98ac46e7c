"""What a LiteLLM file says about routing has the same effect here: tags, limits of a minute, hidden names; at the real LiteLLM, too, where HX_LITELLM names it."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.e2e.test_litellm import PROGRAM, hx, litellm
from tests.support.background import scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.testing.backend import Backend

KEY = "sk-" + "a-key-of-the-suite"
CONFIG = """
model_list:
  - {{model_name: tagged, litellm_params: {{model: openai/m, api_base: "{a}/v1", api_key: none, tags: [free, slow]}}}}
  - {{model_name: tagged, litellm_params: {{model: openai/m, api_base: "{b}/v1", api_key: none, tags: [paid, default]}}}}
  - {{model_name: plain, litellm_params: {{model: openai/m, api_base: "{a}/v1", api_key: none}}}}
  - {{model_name: limited, litellm_params: {{model: openai/m, api_base: "{a}/v1", api_key: none, rpm: 3}}}}
  - {{model_name: limited, litellm_params: {{model: openai/m, api_base: "{b}/v1", api_key: none, rpm: 5}}}}
router_settings:
  routing_strategy: usage-based-routing-v2
  num_retries: 0
  enable_tag_filtering: true
  model_group_alias: {{shown: plain, quiet: {{model: plain, hidden: true}}}}
general_settings: {{master_key: os.environ/LITELLM_MASTER_KEY}}
"""
Ask = Callable[..., tuple[int, str]]


def ask(url: str, a: Backend, b: Backend, model: str, *tags: str, header: str = "") -> tuple[int, str]:
    """Status of a chat, and which of the two servers had it."""
    before = [len(server.requests) for server in (a, b)]
    connection = http.client.HTTPConnection(urlsplit(url).hostname or "", urlsplit(url).port, timeout=60)
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **({"metadata": {"tags": tags}} if tags else {})}
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", **({"x-litellm-tags": header} if header else {})}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    asked = [name for name, server, count in zip("ab", (a, b), before, strict=True) if len(server.requests) > count]
    return answer.status, "".join(asked)


def check(url: str, a: Backend, b: Backend, fewer: int = 0) -> None:
    """The same of either proxy; ``fewer`` requests than its limit pass at each server."""
    assert ask(url, a, b, "tagged", "free") == (200, "a")
    assert ask(url, a, b, "tagged", "paid") == (200, "b")
    assert ask(url, a, b, "tagged", header="free,fast") == (200, "a")
    assert ask(url, a, b, "tagged") == (200, "b"), "the default"
    assert ask(url, a, b, "tagged", "unheard") == (200, "b"), "the default"
    status, asked = ask(url, a, b, "tagged", "paid", "!default")
    assert status >= 400 and not asked
    passed = Counter(ask(url, a, b, "limited") for _ in range(8 - 2 * fewer))
    assert passed == {(200, "a"): 3 - fewer, (200, "b"): 5 - fewer}
    connection = http.client.HTTPConnection(urlsplit(url).hostname or "", urlsplit(url).port, timeout=60)
    connection.request("GET", "/v1/models", headers={"authorization": f"Bearer {KEY}"})
    names = {model["id"] for model in json.loads(connection.getresponse().read())["data"]}
    connection.close()
    assert {"tagged", "plain", "limited", "shown"} <= names and "quiet" not in names
    assert ask(url, a, b, "quiet") == (200, "a"), "it works, though it is not listed"


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Backend, Backend]]:
    """Two model servers."""
    with scripted("openai", models=["m"]) as a, scripted("openai", models=["m"]) as b:
        yield a, b


@pytest.fixture
def config(servers: tuple[Backend, Backend], tmp_path: Path) -> Path:
    """LiteLLM's file for them."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(a=servers[0].url, b=servers[1].url))
    return path


def test_the_gateway_routes_as_the_file_says(servers: tuple[Backend, Backend], config: Path, tmp_path: Path) -> None:
    ours = hx("import-litellm", config)
    assert ours.exit_code == 0, ours.stderr
    assert "unsupported" not in ours.stderr
    text = f"{ours.stdout}\nstorage: {{state_directory: {tmp_path}}}\nqueue: {{max_waiting: 0}}\n"
    with GatewayProcess(
        text.replace("load_balancer:", "load_balancer:\n  health_check_interval: 600"), {"LITELLM_MASTER_KEY": KEY}, key=""
    ) as gateway:
        check(gateway.url, *servers)
        assert ask(gateway.url, *servers, "limited")[0] in (200, 429)
        assert ask(gateway.url, *servers, "tagged", "paid", "!default")[0] == 400


@pytest.mark.timeout(300)
@pytest.mark.skipif(not PROGRAM, reason="HX_LITELLM names LiteLLM's program; it is too large for every run")
def test_and_so_does_the_real_litellm(servers: tuple[Backend, Backend], config: Path) -> None:
    with litellm(PROGRAM, config, KEY) as theirs:
        check(theirs, *servers, fewer=1)  # it counts the request that is to be sent twice
