"""The gateway's own rate and places, over gateways that share a Redis, and each one's part of them while it is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.faults.conftest import wait_until
from tests.integration.limits.test_gateways import BODY, SLOW, ask, gateway
from tests.integration.protocol.wire import one, request
from tests.support.background import Scripted
from tests.support.engines import Valkey
from tests.support.gateway import GatewayProcess
from tests.support.offering import Got, offer

pytestmark = pytest.mark.alone

FREE = "key-of-the-free"


class Pair:
    """Two gateways, their model server and their Redis."""

    def __init__(self, gateways: list[GatewayProcess], server: Scripted, valkey: Valkey) -> None:
        self.gateways = gateways
        self.server = server
        self.valkey = valkey

    def redis(self, running: GatewayProcess) -> str:
        """What a gateway says of Redis."""
        answer = one(running.port, request(b"", method="GET", path="/healthz/deps", length=False, key=""))
        return str(json.loads(answer.body)["details"]["redis"])

    async def at_once(self, each: int) -> list[list[Got]]:
        """So many requests at once to each; the server takes long over them."""
        backend = self.server.backend
        assert backend is not None
        backend.first_token_s = 2.0
        try:
            return await asyncio.gather(*(offer([running.port], each * 2, 0.5, FREE, BODY) for running in self.gateways))
        finally:
            backend.first_token_s = 0.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    more = "performance: {rate_limiting_enabled: true, rate_limit_rps: 20, max_concurrent_requests: 4}\n" + SLOW
    server = Scripted("openai", models=("tiny:1b",))
    with ExitStack() as stack:
        valkey, backend = stack.enter_context(Valkey()), stack.enter_context(server)
        found = Pair([], server, valkey)
        for name in ("one", "two"):
            folder: Path = tmp_path_factory.mktemp(name)
            found.gateways.append(stack.enter_context(gateway(backend.url, "{}", more, folder=folder, REDIS_URL=valkey.url)))
        wait_until(lambda: all("2 gateways" in found.redis(running) for running in found.gateways), 30)
        yield found
        assert all("Traceback" not in running.log for running in found.gateways)


async def test_one_rate_and_one_number_of_places_for_both(pair: Pair) -> None:
    seconds = 3.0
    found = await offer([running.port for running in pair.gateways], 100, seconds, FREE, BODY)
    passed = [got for got in found if got.status == 200]
    assert {got.code for got in found if got.status != 200} == {"rate_limit_exceeded"}
    spread = max(got.at_s for got in passed) - min(got.at_s for got in passed)
    assert 0.8 * 20 * (seconds - 1) <= len(passed) <= 20 + 20 * spread + 1.5, len(passed)

    await asyncio.sleep(1.5)  # the burst is there again
    of_each = await pair.at_once(4)
    assert sum(got.status == 200 for found in of_each for got in found) == 4
    assert {got.code for found in of_each for got in found if got.status != 200} == {"overloaded"}
    wait_until(lambda: ask(pair.gateways[0], FREE).status == 200, 10)


async def test_each_takes_its_part_while_redis_is_away(pair: Pair) -> None:
    pair.valkey.stop()
    wait_until(lambda: all(pair.redis(running).startswith("away") for running in pair.gateways), 30)
    await asyncio.sleep(1.5)
    of_each = await pair.at_once(4)
    assert [sum(got.status == 200 for got in found) for found in of_each] == [2, 2]
    pair.valkey.start()
    wait_until(lambda: all(pair.redis(running).startswith("ok") for running in pair.gateways), 30)
    assert all(ask(running, FREE).status == 200 for running in pair.gateways)
