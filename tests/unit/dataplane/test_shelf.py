"""The shelf: bounded whatever comes, least recently used first to go, nothing older than it may be."""

from __future__ import annotations

import asyncio
import tracemalloc
from hashlib import sha256
from time import time
from typing import Any

import pytest

from hx_gateway.core.errors import Unavailable
from hx_gateway.dataplane.shelf import Shelf
from hx_gateway.openai.replay import Recording

NOW_MS = 1_700_000_000_000


def shelf(most: int = 100_000, ttl_s: float = 60.0) -> Shelf:
    made = Shelf()
    made.adopt(most, 10_000, ttl_s)
    return made


def recording(size: int = 100, made_ms: int = NOW_MS) -> Recording:
    return Recording(False, b"x" * size, made_ms)


def test_the_least_recently_used_go_first() -> None:
    room = recording(1000).size
    made = shelf(3 * room)
    for key in (b"a", b"b", b"c"):
        made.put(key, recording(1000))
    assert made.get(b"a", NOW_MS) is not None
    made.put(b"d", recording(1000))
    assert [made.get(key, NOW_MS) is not None for key in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert made.evicted == 1 and made.bytes == 3 * room
    made.put(b"huge", recording(4 * room))
    assert len(made) == 3 and made.get(b"huge", NOW_MS) is None
    made.adopt(room, 10_000, 60.0)
    assert len(made) == 1 and made.bytes == room
    made.adopt(0, 10_000, 60.0)
    assert len(made) == made.bytes == 0


def test_nothing_too_old_is_given_nor_from_a_future_that_no_clock_explains() -> None:
    made = shelf(ttl_s=10.0)
    ages = {b"old": 10_000, b"good": 9_999, b"set back": -30_000, b"future": -60_001}
    for key, age_ms in ages.items():
        made.put(key, recording(made_ms=NOW_MS - age_ms))
    assert [key for key in ages if made.get(key, NOW_MS) is not None] == [b"good", b"set back"]
    assert len(made) == 2


def test_memory_stays_bounded_under_ever_new_answers() -> None:
    made = shelf(2_000_000)

    def many(first: int, last: int) -> None:
        for number in range(first, last):
            made.put(sha256(b"%d" % number).digest(), recording(200 + number % 700))

    many(0, 5000)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    many(5000, 60_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.bytes <= 2_000_000 and made.evicted > 50_000
    assert after - before < 3_000_000, "what is counted is what is taken"


class Redis:
    """A store that a test may hang or take away."""

    def __init__(self) -> None:
        self.available = True
        self.kept: dict[bytes, bytes] = {}
        self.calls = 0

    async def call(self, *words: Any) -> Any:
        self.calls += 1
        await asyncio.sleep(0)
        if not self.available:
            raise Unavailable("gone")
        if words[0] == "SET":
            self.kept[words[1]] = words[2]
            assert words[3] == "PX" and 0 < words[4] <= 60_000
            return b"OK"
        return [self.kept.get(key) for key in words[1:]]


async def test_another_worker_finds_it_in_redis() -> None:
    store, one, two = Redis(), shelf(), shelf()
    one.remote = two.remote = store
    keys = [b"%032d" % number for number in range(70)]
    for key in keys[:50]:
        one.put(key, Recording(False, key, int(time() * 1000)))
    while one.unsaved_bytes or len(store.kept) < 50:
        await asyncio.sleep(0)
    found = await two.fetch(keys)
    assert [item.body if item else None for item in found] == [*keys[:50], *[None] * 20]
    assert len(two) == 50 and two.asks
    store.kept = dict.fromkeys(store.kept, b"what nobody wrote")
    assert await shelf_with(store).fetch(keys[:3]) == [None] * 3


def shelf_with(store: Redis) -> Shelf:
    made = shelf()
    made.remote = store
    return made


async def test_a_store_that_goes_away_is_an_empty_one() -> None:
    store = Redis()
    made = shelf_with(store)
    made.put(b"a", recording())
    store.available = False
    for _ in range(10):
        await asyncio.sleep(0)
    assert made.unsaved_bytes == 0 and not made.asks
    made.put(b"b", recording())
    assert made.unsaved_bytes == 0, "nothing waits for one that is away"
    assert await made.fetch([b"a"]) == [None]
    store.available = True
    made.put(b"c", recording())
    await made.stop()
    assert made.unsaved_bytes == 0


async def test_a_slow_store_is_not_written_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hx_gateway.dataplane.shelf._MOST_UNSAVED", 5000)
    made = shelf_with(Redis())
    for number in range(100):
        made.put(b"%d" % number, recording(1000))
        assert made.unsaved_bytes <= 5000
    assert len(made) > 50
    await made.stop()
