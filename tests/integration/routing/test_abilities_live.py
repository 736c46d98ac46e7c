"""A running gateway sends what asks for an ability, or for much context, to models that have it, and says why and who else could."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.testing.backend import Backend
from hx_gateway.testing.script import Model

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
LONG = "The quick brown fox jumps over the lazy dog. " * 1500  # 13,500 words


class Fleet:
    """A gateway before a model that only writes, one that can do all, and one with much context."""

    def __init__(self, gateway: GatewayProcess, plain: Backend, able: Backend, long: Backend) -> None:
        self.gateway = gateway
        self.plain, self.able, self.long = plain, able, long

    def ask(self, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {self.gateway.key}", "content-type": "application/json"}
        request = urllib.request.Request(f"{self.gateway.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, dict(answer.headers), json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), json.load(error)

    def chat(self, model: str, content: Any = "ping", path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, dict[str, str], Any]:
        return self.ask(path, {"model": model, "messages": [{"role": "user", "content": content}], **fields})

    def answered(self) -> list[int]:
        counts = [sum(one.path in ("/api/chat", "/v1/chat/completions") for one in server.requests) for server in self.servers]
        for server in self.servers:
            server.forget()
        return counts

    @property
    def servers(self) -> tuple[Backend, ...]:
        return self.plain, self.able, self.long


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with (
        Scripted("ollama", models=[Model("plain", ("completion",), context_length=2048)]) as plain,
        Scripted("ollama", models=[Model("able", ("completion", "vision", "tools", "thinking"), context_length=2048)]) as able,
        Scripted("openai", models=[Model("long", context_length=200_000)]) as long,
    ):
        config = f"""
load_balancer: {{algorithm: round_robin, health_check_interval: 0.3}}
endpoints:
  p: {{url: "{plain.url}", provider: ollama}}
  a: {{url: "{able.url}", provider: ollama}}
  l: {{url: "{long.url}", provider: openai}}
groups: {{both: {{models: [plain, able]}}}}
fallbacks: {{plain: {{context: [able, long]}}}}
"""
        with GatewayProcess(config) as gateway:
            found = Fleet(gateway, plain, able, long)
            give_up_s = time.monotonic() + 30
            while True:
                models = {one["name"]: one["deployments"][0]["facts"] for one in found.ask("/models/status")[2]["models"]}
                known = [models.get(name, {}) for name in ("plain", "able", "long")]
                if all(facts.get("context_length") for facts in known) and all(facts.get("capabilities") for facts in known[:2]):
                    break
                assert time.monotonic() < give_up_s, models
                time.sleep(0.05)
            # The registry follows what probes found a moment later.
            while found.chat("plain", [IMAGE], "/v1/route/explain")[0] != 400 or stands_in(found) != "long":
                assert time.monotonic() < give_up_s
                time.sleep(0.05)
            found.answered()
            yield found


def stands_in(fleet: Fleet) -> str:
    """Who is asked for a prompt that is too long for the model it names."""
    return str(fleet.chat("plain", LONG, "/v1/route/explain")[2].get("target"))


def test_images_and_tools_go_to_whom_can_do_them(fleet: Fleet) -> None:
    for fields in ({"content": [IMAGE]}, {"tools": [TOOL]}, {"reasoning_effort": "high"}):
        for _ in range(4):
            status, headers, _ = fleet.chat("both", **fields)
            assert (status, headers["x-hx-model"]) == (200, "able")
    assert fleet.answered() == [0, 12, 0]
    for _ in range(4):
        assert fleet.chat("both")[0] == 200
    assert fleet.answered() == [2, 2, 0]


def test_what_the_model_asked_for_cannot_do_is_refused_with_who_could(fleet: Fleet) -> None:
    status, _, body = fleet.chat("plain", [IMAGE])
    assert (status, body["error"]["type"], body["error"]["param"]) == (400, "invalid_request_error", "messages")
    assert "does not take images; send text only, or use 'able' or 'both'" in body["error"]["message"]
    status, _, body = fleet.chat("plain", tools=[TOOL])
    assert (status, body["error"]["param"]) == (400, "tools") and "'able'" in body["error"]["message"]
    assert fleet.chat("plain", [IMAGE], "/v1/route/explain")[0] == 400
    assert fleet.answered() == [0, 0, 0]


def test_a_prompt_too_long_goes_to_the_name_that_stands_in_at_once(fleet: Fleet) -> None:
    status, headers, _ = fleet.chat("plain", LONG)
    assert (status, headers["x-hx-model"], headers["x-hx-fallback-from"]) == (200, "long", "plain")
    assert fleet.answered() == [0, 0, 1]  # nobody was asked in vain
    explained = fleet.chat("plain", LONG, "/v1/route/explain")[2]
    assert (explained["target"], explained["stands_in_for"], explained["choice"]["endpoint"]) == ("long", "plain", "l")


def test_explain_says_who_could_not_and_why(fleet: Fleet) -> None:
    explained = fleet.chat("both", [IMAGE], "/v1/route/explain")[2]
    assert explained["choice"]["model"] == "able"
    assert {one["model"]: one["removed"] for one in explained["candidates"]} == {
        "able": None,
        "plain": "its model is known not to take images",
    }
    assert any("plain on p could be chosen if not: its model is known not to take images" in line for line in explained["would_change"])
