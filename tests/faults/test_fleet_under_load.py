"""One of four servers misbehaves under 200 requests a second: no request fails that another server could have answered."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx
import pytest
from tests.faults.processes import ServerProcess
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend

pytestmark = pytest.mark.alone

HEADERS = {"Authorization": f"Bearer {KEY}"}
RATE = 200.0
SECONDS = float(os.environ.get("HX_LOAD_SECONDS", "2"))
"""How long each scenario runs; the trouble fills the middle half of it."""


MOST_LATE_S = 0.25
"""A machine that let this process wait longer than that had the servers wait, too: what was seen then says nothing."""


class Void(Exception):
    """The machine was too busy for the load, or stood still under it."""


@dataclass
class Seen:
    """What clients saw."""

    answered: Counter[str] = field(default_factory=Counter)  # by endpoint
    failed: list[str] = field(default_factory=list)
    broken: int = 0  # streams that broke after their first event, and said so
    late: Counter[str] = field(default_factory=Counter)  # answers to requests sent after the trouble


def _config(urls: list[str], policy: str) -> str:
    endpoints = "\n".join(f'  e{number}: {{url: "{url}", provider: openai, discover: false}}' for number, url in enumerate(urls))
    return f"""
load_balancer: {{algorithm: {policy}, health_check_interval: 1, circuit_breaker_threshold: 5, circuit_breaker_timeout: 1}}
performance: {{request_timeout_seconds: 1, connect_timeout_seconds: 1}}
endpoints:
{endpoints}
models:
  chat: {{endpoints: [{", ".join(f"e{number}" for number in range(len(urls)))}]}}
"""


async def _one(client: httpx.AsyncClient, gateway: GatewayProcess, number: int, seen: Seen, late: bool) -> None:
    stream = number % 2 == 1
    body = {"model": "chat", "messages": [{"role": "user", "content": f"Return exactly the text: n{number}"}], "stream": stream}
    try:
        async with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS) as answer:
            text = (await answer.aread()).decode()
    except httpx.HTTPError as error:
        seen.failed.append(f"{number}: {type(error).__name__} {error}")
        return
    endpoint = answer.headers.get("x-hx-endpoint", "")
    if answer.status_code != 200:
        seen.failed.append(f"{number}: {answer.status_code} {text[:200]}")
    elif stream and not text.rstrip().endswith("data: [DONE]"):
        if '"stream_broken"' in text or '"stream_stalled"' in text:
            seen.broken += 1  # it had begun: nobody else could have finished it
        else:
            seen.failed.append(f"{number}: a stream without end and without an error: {text[-200:]}")
    elif f"n{number}" not in (_content(text) if stream else text):
        seen.failed.append(f"{number}: another's answer: {text[:200]}")
    else:
        seen.answered[endpoint] += 1
        if late:
            seen.late[endpoint] += 1


def _content(text: str) -> str:
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def _load(
    gateway: GatewayProcess,
    trouble: Callable[[], Awaitable[None]],
    heal: Callable[[], Awaitable[None]],
    after_s: float = 4.5,
    back: int = 4,
) -> Seen:
    """Send at the rate; make trouble after a quarter of the time, heal after three quarters, then go on until so many servers answer again."""
    seen = Seen()
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=400)
    async with httpx.AsyncClient(trust_env=False, timeout=30, limits=limits) as client:
        began = loop.time()
        made = healed = False
        number, late_s, turned = 0, 0.0, began
        while (now := loop.time() - began) < SECONDS + after_s and (now < SECONDS + 1.6 or len(seen.late) < back):
            if not made and now > SECONDS / 4:
                made = True
                await trouble()
            if not healed and now > SECONDS * 3 / 4:
                healed = True
                await heal()
            while number < (loop.time() - began) * RATE:
                tasks.append(loop.create_task(_one(client, gateway, number, seen, now > SECONDS + 1.5)))
                number += 1
            await asyncio.sleep(0.005)
            late_s, turned = max(late_s, loop.time() - turned), loop.time()
        await asyncio.gather(*tasks)
    if late_s > MOST_LATE_S or len(tasks) < now * RATE * 0.9:
        raise Void(f"{len(tasks)} requests in {now:.1f} s, and {late_s:.2f} s without a turn of the loop")
    return seen


async def _valid(scenario: Callable[[], Awaitable[None]]) -> None:
    """Play a scenario, and again where the machine was too busy for it."""
    for left in (2, 1, 0):
        try:
            await scenario()
            return
        except Void as void:
            print(f"played again: {void}")
            if not left:
                raise
            await asyncio.sleep(2.0)


async def _attempts(gateway: GatewayProcess, endpoint: str, code: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{gateway.url}/metrics")).text
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith("hx_gateway_attempts_total") and f'endpoint="{endpoint}"' in line and f'code="{code}"' in line
    )


@pytest.mark.parametrize(
    ("kind", "policy"),
    [(kind, "least_busy") for kind in ("refuse", "hang", "black_hole", "errors", "slow", "flap")] + [("refuse", "intelligent")],
)
async def test_trouble_with_one_of_four(kind: str, policy: str) -> None:
    await _valid(lambda: _trouble(kind, policy))


async def _trouble(kind: str, policy: str) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Backend(dialect="openai", models=["chat"], token_s=0.002)) for _ in range(4)]
        gateway = GatewayProcess(_config([server.url for server in servers], policy))
        await asyncio.to_thread(gateway.start)
        ill = servers[0]
        dice = random.Random(7)
        over = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def restless() -> None:
            while not over.is_set():
                if kind == "flap":
                    ill.fault = None if ill.fault else "refuse"
                    await asyncio.sleep(0.25)
                else:
                    ill.fault = "status status=500" if dice.random() < 0.3 else None
                    await asyncio.sleep(0.01)
            ill.fault = None

        async def trouble() -> None:
            if kind in ("flap", "errors"):
                tasks.append(asyncio.get_running_loop().create_task(restless()))
            else:
                ill.fault = "slow delay_s=0.005" if kind == "slow" else kind

        async def heal() -> None:
            over.set()
            await asyncio.sleep(0)
            ill.fault = None

        try:
            # What was slow goes on being slow to the end of each answer; risk and slowness are forgiven with time.
            seen = await _load(gateway, trouble, heal, 4.5 if policy == "least_busy" else 10.0, 0 if kind == "slow" else 4)
            refused = await _attempts(gateway, "e0", "upstream_connect_failed")
        finally:
            over.set()
            await asyncio.to_thread(gateway.stop)
        print(f"{kind}, {policy}: answered {dict(seen.answered)}, broken after the first event {seen.broken}, late {dict(seen.late)}")
        assert not seen.failed, f"{len(seen.failed)} failed, e.g. {seen.failed[:3]}"
        if kind in ("hang", "errors"):
            assert not seen.broken, "nothing had begun that could break"
        if kind == "refuse":
            assert refused < 40, "a dead server is asked again by a few trials and by those who were under way, not by the load"
        if kind != "slow":  # it sends what it had begun to the end, drop by drop
            assert set(seen.late) == {"e0", "e1", "e2", "e3"}, f"the healed server is back in the round: {dict(seen.late)}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_process_that_is_killed_or_stopped(number: signal.Signals) -> None:
    await _valid(lambda: _killed_or_stopped(number))


async def _killed_or_stopped(number: signal.Signals) -> None:
    async with AsyncExitStack() as stack:
        options = ("--dialect", "openai", "--model", "chat", "--token-s", "0.002")
        processes = [stack.enter_context(ServerProcess(*options)) for _ in range(4)]
        gateway = GatewayProcess(_config([process.url for process in processes], "least_busy"))
        await asyncio.to_thread(gateway.start)

        async def trouble() -> None:
            processes[0].signal(number)

        async def heal() -> None:
            if number is signal.SIGSTOP:
                processes[0].signal(signal.SIGCONT)
            else:
                await asyncio.to_thread(stack.enter_context, ServerProcess(*options, port=processes[0].port))

        try:
            seen = await _load(gateway, trouble, heal)
        finally:
            await asyncio.to_thread(gateway.stop)
        print(f"{number.name}: answered {dict(seen.answered)}, broken after the first event {seen.broken}, late {dict(seen.late)}")
        assert not seen.failed, f"{len(seen.failed)} failed, e.g. {seen.failed[:3]}"
        assert set(seen.late) == {"e0", "e1", "e2", "e3"}, f"the healed server is back in the round: {dict(seen.late)}"
