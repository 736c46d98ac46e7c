"""Every server of a model is down and fifty clients ask at once: one trial at a time, and a true word for everybody else."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from tests.faults.conftest import status_of
from tests.support.gateway import KEY, GatewayProcess
from tests.support.raw import RawServer

HEADERS = {"Authorization": f"Bearer {KEY}"}
CLIENTS = 50
WHOLE = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "pong"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
).encode()
MODELS = b'{"object":"list","data":[{"id":"chat","object":"model"}]}'


class Down(RawServer):
    """A model server that is well, fails every request slowly, or breaks every connection; it counts requests at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.how = "well"
        self.now = self.peak = self.asked = 0

    def forget(self) -> None:
        """Count anew."""
        self.peak = self.asked = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._answer(head, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        await reader.readexactly(length)
        status, body = 200, MODELS
        if head.startswith(b"POST"):
            self.now += 1
            self.asked += 1
            self.peak = max(self.peak, self.now)
            try:
                await asyncio.sleep(0.15 if self.how != "well" else 0.0)
            finally:
                self.now -= 1
            status, body = (200, WHOLE) if self.how == "well" else (500, b'{"error":{"message":"out of order"}}')
        if self.how == "reset":
            return False
        writer.write(b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        return True


@dataclass
class Fleet:
    """A gateway before servers that all serve one model."""

    gateway: GatewayProcess
    servers: list[Down]
    client: httpx.AsyncClient

    async def ask(self) -> httpx.Response:
        """One request."""
        body = {"model": "chat", "messages": [{"role": "user", "content": "ping"}]}
        return await self.client.post(f"{self.gateway.url}/v1/chat/completions", json=body, headers=HEADERS)

    async def break_down(self, how: str) -> None:
        """Let all servers fail until every breaker is open."""
        for server in self.servers:
            server.how = how
        async with asyncio.timeout(30):
            while await asyncio.to_thread(self.closed):
                await self.ask()
        for server in self.servers:
            server.forget()

    def closed(self) -> int:
        """Deployments that requests are sent to as usual."""
        connection = httpx.get(f"{self.gateway.url}/models/status", headers=HEADERS, trust_env=False).json()
        return sum(
            one["breaker"]["state"] == "closed" == one["endpoint_breaker"]["state"]
            for target in connection["models"]
            for one in target["deployments"]
        )


@asynccontextmanager
async def fleet_of(count: int, rest_s: float, threshold: int = 2) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Down()) for _ in range(count)]
        endpoints = "\n".join(
            f'  e{number}: {{url: "{server.url}", provider: openai, discover: false}}' for number, server in enumerate(servers)
        )
        gateway = GatewayProcess(f"""
load_balancer: {{health_check_interval: 3600, circuit_breaker_threshold: {threshold}, circuit_breaker_timeout: {rest_s}, max_attempts: 2}}
endpoints:
{endpoints}
models:
  chat: {{endpoints: [{", ".join(f"e{number}" for number in range(count))}]}}
""")
        await asyncio.to_thread(gateway.start)
        stack.push_async_callback(asyncio.to_thread, gateway.stop)
        limits = httpx.Limits(max_connections=2 * CLIENTS)
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30, limits=limits))
        yield Fleet(gateway, servers, client)


@pytest.mark.parametrize("how", ["error", "reset"])
async def test_one_trial_at_a_time_and_a_true_retry_after_for_everybody_else(how: str) -> None:
    async with fleet_of(4, rest_s=600) as fleet:
        await fleet.break_down(how)
        for _ in range(3):
            before = sum(server.asked for server in fleet.servers)
            answers = await asyncio.gather(*(fleet.ask() for _ in range(CLIENTS)))
            refused = [answer for answer in answers if answer.status_code == 503]
            tried = sum(server.asked for server in fleet.servers) - before
            assert tried >= 1, "a trial is made at once, and not only after the timeout"
            assert 1 <= CLIENTS - len(refused) <= tried, "who is not a trial is sent away at once"
            assert {answer.status_code for answer in answers} == {503, 500 if how == "error" else 502}
            for answer in refused:
                assert answer.json()["error"]["code"] == "no_healthy_deployment"
                wait_s = int(answer.headers["retry-after"])
                assert 1 <= wait_s <= 600 and wait_s == math.ceil(int(answer.headers["retry-after-ms"]) / 1000)
        assert [server.peak for server in fleet.servers if server.peak > 1] == [], "two trials at once"
        for server in fleet.servers:
            server.how = "well"
        async with asyncio.timeout(30):
            while (await fleet.ask()).status_code != 200:
                await asyncio.sleep(0.05)
        answers = await asyncio.gather(*(fleet.ask() for _ in range(CLIENTS)))
        assert {answer.status_code for answer in answers} == {200}
        assert not any(one["in_flight"] for one in status_of(fleet.gateway).values())


async def test_who_comes_again_after_retry_after_is_let_in() -> None:
    async with fleet_of(2, rest_s=2) as fleet:
        await fleet.break_down("error")
        answers = await asyncio.gather(*(fleet.ask() for _ in range(CLIENTS)))
        waits_s = [int(answer.headers["retry-after"]) for answer in answers if answer.status_code == 503]
        assert waits_s and max(waits_s) <= 2
        await asyncio.sleep(max(waits_s))
        assert (await fleet.ask()).status_code == 500, "it is the trial"


async def test_a_good_probe_ends_it_early_without_any_request() -> None:
    """Nobody asks: the servers are found well again by probes out of turn, and are used as usual from then on."""
    async with fleet_of(3, rest_s=600) as fleet:
        await fleet.break_down("reset")
        for server in fleet.servers:
            server.how = "well"
        async with asyncio.timeout(60):
            while await asyncio.to_thread(fleet.closed) < 3:
                await asyncio.sleep(0.1)
        assert sum(server.asked for server in fleet.servers) == 0
        answers = await asyncio.gather(*(fleet.ask() for _ in range(CLIENTS)))
        assert {answer.status_code for answer in answers} == {200}


async def test_a_dead_endpoint_gets_no_traffic_after_two_failed_connections() -> None:
    """Whatever the threshold of its models is; its load goes elsewhere and no client notices."""
    async with fleet_of(2, rest_s=600, threshold=5) as fleet:
        dead, well = fleet.servers
        dead.how = "reset"
        answers = [await fleet.ask() for _ in range(40)]
        assert {answer.status_code for answer in answers} == {200}
        assert dead.asked == 2, "after two failures in a row nothing is sent there"
        assert well.asked == 40
