"""Limits of a minute at real model servers behind a real gateway: who has had all it may is passed over, and a refusal tells the wait."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from tests.support.background import Background
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend

HEADERS = {"Authorization": f"Bearer {KEY}"}
CONFIG = """
storage: {{state_directory: {state}}}
queue: {{max_wait_seconds: 5}}
load_balancer: {{algorithm: round_robin, health_check_interval: 600}}
endpoints: {{small: {{url: "{small}", provider: openai, discover: false}}, large: {{url: "{large}", provider: openai, discover: false}}}}
models:
  limited: {{endpoint: small, upstream_model: chat, requests_per_minute: 4}}
  beside: {{endpoint: large, upstream_model: chat}}
  alone: {{endpoint: small, upstream_model: chat, requests_per_minute: 2}}
  wordy: {{endpoint: small, upstream_model: chat, tokens_per_minute: 120}}
  quick: {{endpoint: small, upstream_model: chat, requests_per_minute: 20}}
groups: {{both: {{models: [limited, beside]}}}}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Two workers in front of two servers."""
    with (
        Background(lambda: Backend(dialect="openai", models=["chat"])) as small,
        Background(lambda: Backend(dialect="openai", models=["chat"])) as large,
    ):
        state = tmp_path_factory.mktemp("state")
        process = GatewayProcess(CONFIG.format(small=small.url, large=large.url, state=state), workers=2)
        process.start()
        try:
            yield process
        finally:
            process.stop()


def ask(gateway: GatewayProcess, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=60, trust_env=False, verify=False)


def places(gateway: GatewayProcess, name: str) -> dict[str, dict[str, object]]:
    status = httpx.get(f"{gateway.url}/models/status", headers=HEADERS, timeout=60, trust_env=False, verify=False).json()
    target = next(one for one in status["models"] if one["name"] == name)
    return {one["model"]: one for one in target["deployments"]}


def test_others_take_what_is_beyond_the_limit_and_the_status_tells_what_is_left(gateway: GatewayProcess) -> None:
    before = places(gateway, "both")
    assert (before["limited"]["requests_per_minute"], before["limited"]["requests_left"]) == (4, 4)
    assert before["beside"]["requests_per_minute"] is None
    answers = [ask(gateway, "both") for _ in range(24)]
    assert [answer.status_code for answer in answers] == [200] * 24
    models = [answer.headers["x-hx-model"] for answer in answers]
    assert 4 <= models.count("limited") <= 5, "over both workers; a fifth comes due after 15 seconds"
    left = places(gateway, "both")["limited"]["requests_left"]
    assert left in (0, 1)


def test_when_nobody_may_have_more_the_refusal_tells_the_true_wait(gateway: GatewayProcess) -> None:
    answers = [ask(gateway, "alone") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429], "30 seconds are longer than the queue lets anybody wait"
    assert 20 <= int(answers[2].headers["retry-after"]) <= 30
    error = answers[2].json()["error"]
    assert error["code"] == "upstream_busy"
    assert "requests_per_minute" in error["message"]


def test_what_comes_due_soon_waits_for_it(gateway: GatewayProcess) -> None:
    for _ in range(60):
        answer = ask(gateway, "quick")
        assert answer.status_code == 200
        if "x-hx-queue-ms" in answer.headers:
            return
    raise AssertionError("no request had to wait for its three seconds to pass")


def test_tokens_are_those_of_answers_and_not_those_reserved(gateway: GatewayProcess) -> None:
    assert ask(gateway, "wordy", max_tokens=100).status_code == 200
    give_up_s, left = time.monotonic() + 30, 0
    while not 60 < left < 120:  # what was reserved for an answer of 100 tokens is given back, and written down a moment later
        assert time.monotonic() < give_up_s, left
        told = places(gateway, "wordy")["wordy"]["tokens_left"]
        assert isinstance(told, int)
        left = told
    endpoints = httpx.get(f"{gateway.url}/admin/endpoints", headers=HEADERS, timeout=60, trust_env=False, verify=False).json()["data"]
    minute = {model["model"]: model["minute"] for one in endpoints for model in one["models"]}
    assert minute["wordy"]["tokens"]["of"] == 120 and left <= minute["wordy"]["tokens"]["left"] < 120 and minute["beside"] == {}
    assert minute["limited"].keys() == {"requests"}
    assert ask(gateway, "wordy", max_tokens=5).status_code == 200
    more = ask(gateway, "wordy", max_tokens=100)  # and all that was used has to be forgotten first
    assert more.status_code == 429 or "x-hx-queue-ms" in more.headers
