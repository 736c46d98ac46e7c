"""Requests that never repeat themselves, in great number: memory stays where it is, since everything that remembers them is bounded."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import psutil
import pytest
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess
from tests.support.offering import Lane

# Room that is filled before the first look is kept small, so that nothing can grow into it unseen.
CONFIG = """
service: {{name: soak}}
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{tiny: {{endpoint: one, upstream_model: "tiny:1b"}}}}
load_balancer: {{algorithm: intelligent}}
cache: {{enabled: true, max_bytes: 200000}}
ledger: {{segment_bytes: 1048576, journal_max_bytes: 16777216}}
storage: {{state_directory: {state}}}
"""
EACH = 50_000 if os.environ.get("HX_LONG") else 1000
ROUNDS = 20 if os.environ.get("HX_LONG") else 6
MOST_BYTES = 2_500_000  # that the second half of the rounds may add
LANES = 16


def asked(number: int) -> bytes:
    """A request like no other: most are answered, every eighth is of an unknown key, every eighth of an unknown model."""
    key = f"hx-nobody-{number}" if number % 8 == 1 else KEY
    model = f"none-{number}" if number % 8 == 2 else "tiny"
    question = f"{number} " * 40 + "what?"
    body = json.dumps({"model": model, "user": f"user-{number}", "messages": [{"role": "user", "content": question}], "temperature": 0})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: h{number}\r\nauthorization: Bearer {key}\r\nx-title: t{number}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


async def offered(port: int, first: int) -> set[int]:
    """Ask a round; the statuses that came."""
    lanes = [Lane(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(LANES)]

    async def run(place: int, lane: Lane) -> set[int]:
        return {(await lane.ask(asked(number))).status for number in range(first + place, first + EACH, LANES)}

    found = await asyncio.gather(*(run(place, lane) for place, lane in enumerate(lanes)))
    for lane in lanes:
        lane.writer.close()
    return set().union(*found)


@pytest.mark.timeout(3600 if os.environ.get("HX_LONG") else 120)
async def test_requests_that_never_repeat_leave_nothing_behind(tmp_path: Path) -> None:
    with scripted("openai", models=("tiny:1b",)) as backend, GatewayProcess(CONFIG.format(url=backend.url, state=tmp_path)) as gateway:
        process, seen = psutil.Process(gateway.pid), []
        for turn in range(ROUNDS):
            assert await offered(gateway.port, turn * EACH) == {200, 401, 404}
            seen.append(process.memory_full_info().uss)
    assert seen[-1] - seen[ROUNDS // 2 - 1] < MOST_BYTES, f"bytes after each {EACH} requests: {seen}"
