"""What the page about extending shows is run: its configuration is served with its files, and its tests pass."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.architecture.sources import ROOT

from hx_gateway import Service
from hx_gateway.config.load import load_text
from hx_gateway.core.context import CHAT, NOBODY, Exchange
from hx_gateway.core.errors import INTERNAL
from hx_gateway.testing.backend import Backend

PAGE = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
ADDED = """
service: {{host: 127.0.0.1, port: 0}}
storage: {{state_directory: "{state}"}}
keys: {{api_keys: [{{name: app, key: a-key-of-this-test-alone}}, {{name: blocked, key: another-key-of-this-test}}]}}
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The page's Python files, imported."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield {name: importlib.import_module(name) for name in FILES}
    for name in FILES:
        del sys.modules[name]


def test_every_block_of_the_page_is_a_file_and_is_used(modules: dict[str, Any]) -> None:
    assert len(FILES) == PAGE.count("```python")
    assert {"acme_stage", "acme_waiting", "acme_routing", "acme_provider", "acme_observer"} <= set(FILES)
    assert all(text.count("def test_") == 1 for name, text in FILES.items() if name.startswith("test_"))


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("test_")])
def test_the_page_s_tests_pass(name: str, modules: dict[str, Any], tmp_path: Path) -> None:
    (test,) = [found for key, found in vars(modules[name]).items() if key.startswith("test_")]
    test(*[tmp_path] * len(inspect.signature(test).parameters))


async def test_the_page_s_configuration_is_served(modules: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_SLOW_S", "0")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    text = text.replace('"acme_stage:build"', '"acme_stage:build", "acme_waiting:build"') + ADDED.format(state=tmp_path / "state")
    async with Backend() as near, Backend() as far, Backend() as acme:
        for number, backend in enumerate((near, far, acme), 1):
            text = text.replace(f"http://llm-0{number}:8000", backend.url)
        async with Service(load_text(text, "page", {}).config) as service, httpx.AsyncClient(base_url=service.url, timeout=60) as client:
            (watch,) = [one for one in service.gateway.proxy.observers if type(one) is modules["acme_observer"].Watch]

            async def say(model: str, key: str = "a-key-of-this-test-alone", path: str = "chat/completions", **more: int) -> httpx.Response:
                body = {"model": model, "messages": [{"role": "user", "content": "ping"}], **more}
                return await client.post(f"/v1/{path}", json=body, headers={"authorization": f"Bearer {key}"})

            # The term, the picker and the provider.
            for model, endpoint in (("chat", "hall-a"), ("steady", "hall-b"), ("acme-chat", "acme")):
                answers = [await say(model, max_tokens=9) for _ in range(4)]
                assert [(answer.status_code, answer.headers["x-hx-endpoint"]) for answer in answers] == [(200, endpoint)] * 4
            explained = (await say("chat", path="route/explain")).json()
            assert "distance" in str(explained)
            sent = [request.json() for request in acme.requests if request.method == "POST"]
            assert [body["max_new_tokens"] for body in sent] == [9] * 4 and not any("max_tokens" in body for body in sent)
            near.fault = "refuse"
            assert (await say("chat")).headers["x-hx-endpoint"] == "hall-b"  # far, and there

            # The stages.
            long = await say("chat", max_tokens=5000)
            assert (long.status_code, long.json()["error"]["param"]) == (400, "max_tokens")
            for _ in range(2):
                blocked = await say("chat", "another-key-of-this-test")
                assert (blocked.status_code, blocked.json()["error"]["code"]) == (403, "blocked")
        assert watch.failures == {("", "invalid_value"): 1, ("", "model_not_allowed"): 2}
        assert {asked for _, asked, _ in watch.slow} == {"chat", "steady", "acme-chat"}


def test_the_observer_keeps_no_more_than_it_says(modules: dict[str, Any]) -> None:
    watch = modules["acme_observer"].Watch()
    for number in range(150):
        exchange = Exchange(str(number), CHAT, b"POST", b"/v1/chat/completions", {}, [], b"", NOBODY, -1e6)
        exchange.outcome = INTERNAL
        watch.finished(exchange)
    assert watch.failures == {("", "internal_error"): 150} and len(watch.slow) == 100
