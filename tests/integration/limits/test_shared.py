"""Limits kept by several gateways in a real Redis: exact together, settled to the token, and kept while it is away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.engines import Valkey
from tests.support.offering import missed

from hx_gateway.access.account import Hold, Refusal
from hx_gateway.access.limiter import Limiter
from hx_gateway.access.shared import PREFIX, Shared
from hx_gateway.core.context import KeyLimits
from hx_gateway.core.errors import Unavailable
from hx_gateway.stores.redis import Redis


class Member:
    """One gateway, as far as its limits go, with a table of its own."""

    def __init__(self, url: str, name: str, limits: KeyLimits, budget_s: float) -> None:
        self.redis = Redis(url, budget_s)
        self.limiter = Limiter(lambda delay_s, work: asyncio.get_running_loop().call_later(delay_s, work))
        self.limiter.open(None)
        self.shared = Shared(self.limiter, self.redis, name, f"{name}-1")
        self.key = self.limiter.account("key:app", "app", limits)

    async def take(self, tokens: int = 0, cost: int = 0) -> Hold | Refusal:
        answer = self.shared.take(self.key, time.monotonic(), tokens, cost)
        return await answer if isinstance(answer, Awaitable) else answer

    async def stored(self) -> dict[str, str]:
        found = await self.redis.call("HGETALL", PREFIX + "key:app")
        words = [word.decode() for word in found]
        return dict(zip(words[::2], words[1::2], strict=True))


@asynccontextmanager
async def members(url: str, count: int, budget_s: float = 1.0, **limits: float) -> AsyncIterator[list[Member]]:
    made = [Member(url, f"gateway-{number}", KeyLimits(**limits), budget_s) for number in range(count)]  # type: ignore[arg-type]
    for member in made:
        await member.redis.start()
        member.shared.start()
    await until(lambda: all(member.redis.available for member in made))
    yield made
    for member in made:
        await member.shared.stop()
        await member.redis.stop()
        member.limiter.close()


async def until(condition: object, within_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.01)


async def comes(look: Callable[[], Awaitable[bool]], within_s: float = 30.0) -> None:
    """Wait until what the store says is so; a store that is too slow to answer is asked again."""
    give_up_s = time.monotonic() + within_s
    while True:
        with contextlib.suppress(Unavailable):
            if await look():
                return
        assert time.monotonic() < give_up_s
        await asyncio.sleep(0.01)


async def test_three_gateways_pass_one_rate_together(redis_url: str) -> None:
    async with members(redis_url, 3, requests_per_second=50, burst=10) as three:
        times: list[float] = []
        asked: list[float] = []
        end_s = time.monotonic() + 3.0

        async def flood(member: Member) -> None:
            while time.monotonic() < end_s:
                asked.append(time.monotonic())
                answers = await asyncio.gather(*(member.take() for _ in range(2)))
                times.extend([time.monotonic()] * sum(isinstance(answer, Hold) for answer in answers))
                await asyncio.sleep(0.005)

        start_s = time.monotonic()
        await asyncio.gather(*(flood(member) for member in three))
        took_s = time.monotonic() - start_s
        assert 0.95 * (10 + 50 * 3.0 - missed([*asked, end_s], 50, 10)) <= len(times) <= 10 + 50 * took_s + 1
        assert sum(member.shared.remembered for member in three) > 100, "what was just refused is not asked about again"


async def test_what_is_asked_at_once_is_one_call(redis_url: str) -> None:
    async with members(redis_url, 1, requests_per_second=0.1, burst=7) as (one,):

        async def calls() -> int:
            found = re.search(rb"cmdstat_evalsha:calls=(\d+)", await one.redis.call("INFO", "commandstats"))
            return int(found[1]) if found else 0

        await one.take()
        before = await calls()
        answers = await asyncio.gather(*(one.take() for _ in range(20)))
        assert [isinstance(answer, Hold) for answer in answers] == [True] * 6 + [False] * 14
        assert await calls() - before <= 2, "one for all of them; the other may be a heartbeat"
        refusal = answers[-1]
        assert isinstance(refusal, Refusal) and refusal.limit == "requests_per_second" and 9.0 < refusal.wait_s <= 10.0


async def test_reservations_become_the_true_figures(redis_url: str) -> None:
    async with members(redis_url, 2, tokens_per_minute=6000, day_tokens=10**6, month_cost=100.0) as (one, two):
        first, second = await one.take(2000, 5 * 10**9), await two.take(3000, 10**9)
        assert isinstance(first, Hold) and isinstance(second, Hold)
        refusal = await one.take(1500)
        assert isinstance(refusal, Refusal) and refusal.limit == "tokens_per_minute"
        one.shared.settle(first, 123, 7)
        two.shared.settle(second, 3456, 10**9 + 1)

        async def settled() -> bool:
            stored = await one.stored()
            used = tuple(stored.get(name) for name in ("dt", "mt", "dc", "mc"))
            return used == ("3579", "3579", "1000000008", "1000000008") and not any(name.startswith("p:") for name in stored)

        await comes(settled)  # to the token, and nothing is under way
        assert isinstance(await one.take(2400), Hold)
        refusal = await two.take(100)
        assert isinstance(refusal, Refusal) and 0 < refusal.wait_s < 60


async def test_budgets_are_one_for_all(redis_url: str) -> None:
    async with members(redis_url, 2, day_tokens=1000) as (one, two):
        assert isinstance(await one.take(600), Hold)
        refusal = await two.take(600)
        assert isinstance(refusal, Refusal) and refusal.limit == "day_tokens" and refusal.wait_s > 0


async def test_places_are_counted_over_gateways_and_come_back_from_the_dead(redis_url: str) -> None:
    async with members(redis_url, 2, max_concurrent=3) as (one, two):
        held = [await one.take(), await one.take(), await two.take()]
        assert all(isinstance(answer, Hold) for answer in held)
        assert isinstance(await two.take(), Refusal)
        assert isinstance(held[0], Hold)
        one.shared.settle(held[0], 0, 0)

        async def passes() -> bool:
            return isinstance(await two.take(), Hold)

        await comes(passes)
        # One that is killed is not heard of again: what it had under way ends with its lease.
        name, value = next((name, value) for name, value in (await one.stored()).items() if name.startswith("p:gateway-0"))
        words = value.split()
        await one.redis.call("HSET", PREFIX + "key:app", "p:killed", " ".join([*words[:3], str(int(words[3]) - 60_000_000)]))
        await one.redis.call("HDEL", PREFIX + "key:app", name)
        await comes(passes)
        assert "p:killed" not in await one.stored()


async def test_who_leaves_while_waiting_leaves_nothing_behind(redis_url: str) -> None:
    async with members(redis_url, 1, max_concurrent=2, tokens_per_minute=1000) as (one,):
        waiting = [asyncio.create_task(one.take(100)) for _ in range(2)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.sleep(0.3)
        assert one.limiter.mine(one.key) == (0, 0, 0)
        assert not [name for name in await one.stored() if name.startswith("p:")]


async def test_while_it_is_away_each_gateway_keeps_its_share_and_then_they_are_one_again(own_valkey: Valkey) -> None:
    async with members(own_valkey.url, 2, 0.02, requests_per_second=10, burst=10, max_concurrent=100, day_tokens=10**6) as (one, two):
        await until(lambda: one.redis.available and two.redis.available)
        await until(lambda: (one.shared.gateways, two.shared.gateways) == (2, 2))  # a heartbeat of each, seen by both
        own_valkey.hang()
        started_s = time.monotonic()
        first = await one.take(5)
        waited_s = time.monotonic() - started_s
        assert isinstance(first, Hold) and not one.redis.available
        assert waited_s < 10.0  # 20 ms, and what a busy machine makes of it
        count = 1
        while isinstance(await one.take(5), Hold):
            count += 1
        assert 5 <= count <= 6 + 5 * (time.monotonic() - started_s), "half of the burst, and half of what comes due meanwhile"
        one.shared.settle(first, 77, 0)
        own_valkey.resume()
        await until(lambda: one.redis.available)
        await asyncio.sleep(0.3)
        assert isinstance(await one.take(5), Hold | Refusal)

        async def told() -> bool:
            return (await one.stored()).get("dt") == "77"

        await comes(told)  # what was used meanwhile


async def test_the_others_leave_its_part_to_one_that_is_away_alone(redis_url: str) -> None:
    async with members(redis_url, 2, requests_per_second=50, burst=10, tokens_per_minute=10**6) as (one, two):
        await until(lambda: one.shared.gateways == two.shared.gateways == 2 and two.shared.room == 1.0)
        await one.redis.stop()
        await until(lambda: two.shared.room == 2.0)
        assert two.shared.gateways == 2
        times: list[float] = []
        asked: list[float] = []
        end_s = time.monotonic() + 1.5

        async def flood(member: Member) -> None:
            while time.monotonic() < end_s:
                asked.append(time.monotonic())
                times.extend([time.monotonic()] * isinstance(await member.take(), Hold))
                await asyncio.sleep(0.004)

        start_s = time.monotonic()
        await asyncio.gather(flood(one), flood(two))
        assert 0.8 * (50 * 1.5 - missed([*asked, end_s], 50, 10)) <= len(times) <= 10 + 50 * (time.monotonic() - start_s) + 1
        await asyncio.sleep(0.5)
        hold = await two.take(900_000)
        assert isinstance(hold, Hold), "what is more than a part may pass where nothing else is used"
        two.shared.settle(hold, 0, 0)
        await one.redis.start()
        await until(lambda: one.shared.room == two.shared.room == 1.0)


async def test_who_leaves_in_order_is_not_waited_for(redis_url: str) -> None:
    async with members(redis_url, 1, requests_per_second=50) as (one,):
        async with members(redis_url, 1, requests_per_second=50) as (two,):
            two.shared.gateway = "another"
            await until(lambda: one.shared.gateways == 2)
        await asyncio.sleep(1.2)
        assert one.shared.room == 1.0


async def test_an_emptied_store_forgets_nothing_that_is_under_way(redis_url: str) -> None:
    async with members(redis_url, 1, max_concurrent=2) as (one,):
        held = [await one.take(), await one.take()]
        await one.redis.call("FLUSHDB")
        await asyncio.sleep(0.05)
        assert isinstance(await one.take(), Refusal)
        assert isinstance(held[0], Hold)
        one.shared.settle(held[0], 0, 0)

        async def passes() -> bool:
            return isinstance(await one.take(), Hold)

        await comes(passes)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+PONG\r\n" * 9, b"*3\r\n:1\r\n", b"", b"-ERR no\r\n"])
async def test_garbage_is_not_believed(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    redis = Redis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await redis.start()
    assert not redis.available
    assert redis.reason and "127.0.0.1" not in redis.reason
    await redis.stop()
    server.close()
