"""The log of a running gateway: one line a request, as JSON, and its level changed at run time in all workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.support.background import Scripted
from tests.support.gateway import KEY, GatewayProcess

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{solo: {{endpoint: one, upstream_model: "tiny:1b"}}}}
load_balancer: {{health_check_interval: 3600}}
monitoring: {{log_format: json, log_level: {level}}}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GatewayProcess, str]]:
    state = tmp_path_factory.mktemp("state")
    with Scripted() as backend, GatewayProcess(
        CONFIG.format(url=backend.url, level="INFO"), {"XDG_STATE_HOME": str(state)}, workers=2
    ) as process:  # fmt: skip
        yield process, backend.url


def requests(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """The lines about requests so far."""
    lines = [json.loads(line) for line in gateway.log.splitlines()]
    return [line for line in lines if line["logger"] == "hx_gateway.requests"]


def level(gateway: GatewayProcess, wanted: str = "", key: str = KEY) -> Any:
    """The level of the log, set if one is ``wanted``: status and answer."""
    headers = {"Authorization": f"Bearer {key}", "content-type": "application/json"}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)) as connection:
        connection.request("PUT" if wanted else "GET", "/admin/log-level", json.dumps({"level": wanted}) if wanted else None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_each_request_has_one_line_without_its_words(gateway: tuple[GatewayProcess, str]) -> None:
    process, _ = gateway
    before = len(requests(process))
    ids = {chat(process.port, f"a secret number {number}").header("x-request-id") for number in range(20)}
    wait_until(lambda: len(requests(process)) >= before + 20, 20)
    found = requests(process)[before:]
    assert {line["id"] for line in found} == ids and len(found) == 20
    assert {line["status"] for line in found} == {200} and all(line["duration_ms"] > 0 for line in found)
    assert "secret" not in process.log and KEY not in process.log


def test_the_level_is_changed_in_all_workers_while_they_run(gateway: tuple[GatewayProcess, str]) -> None:
    process, url = gateway
    assert level(process) == (200, {"level": "INFO"})
    assert level(process, "warning") == (200, {"level": "WARNING"})
    wait_until(lambda: all(level(process)[1] == {"level": "WARNING"} for _ in range(10)), 30)
    chat(process.port, "quiet")
    assert level(process, "LOUD")[0] == 422
    assert level(process, "DEBUG", key="nobody")[0] == 401

    process.path.write_text(CONFIG.format(url=url, level="ERROR"))
    os.kill(process.pid, signal.SIGHUP)
    wait_until(lambda: all(level(process)[1] == {"level": "ERROR"} for _ in range(10)), 30)
    process.path.write_text(CONFIG.format(url=url, level="INFO"))
    wait_until(lambda: all(level(process)[1] == {"level": "INFO"} for _ in range(10)), 30)
    known = len(requests(process))
    answered = chat(process.port, "heard").header("x-request-id")
    wait_until(lambda: answered in {line["id"] for line in requests(process)[known:]}, 20)
    assert "at the next start" not in process.log
    process.path.write_text(CONFIG.format(url=url, level="INFO") + "ledger: {retention_days: 9, end_user_keys: [someone]}\n")
    wait_until(lambda: "at the next start: ledger" in process.log, 30)
