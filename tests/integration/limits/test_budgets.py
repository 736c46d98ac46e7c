"""Budgets of gateways that share a database and no Redis, and when keys were used last."""

from __future__ import annotations

import time
from pathlib import Path

from tests.faults.conftest import wait_until
from tests.support.keyed import Keyed, keyed
from tests.unit.ledger.records import a_record

from hx_gateway.access.account import key_of
from hx_gateway.access.keys import digest_of, hint_of
from hx_gateway.access.snapshot import StoredKey
from hx_gateway.access.table import State, Table
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.context import KeyLimits
from hx_gateway.core.identifiers import new_id
from hx_gateway.stores.key_usage import Budgets, LastUse
from hx_gateway.stores.known_keys import renew
from hx_gateway.stores.sql import keys, usage
from hx_gateway.stores.sql.engine import Store


def today() -> int:
    """The day's number, as a table of limits counts days."""
    return int(time.time()) // 86400


def state_of(folder: Path, id: str) -> State | None:
    """What a machine counts for a key; None where it has no place for it."""
    table = Table(folder / "limits.map", counts=False)
    try:
        index, state = table.find(key_of(id), today(), make=False), State()
        return state if index >= 0 and table.read(index, state) else None
    finally:
        table.close()


def test_what_is_spent_on_one_machine_is_spent_on_the_other(postgres_url: str, tmp_path: Path) -> None:
    with keyed(tmp_path / "one", postgres_url) as first, keyed(tmp_path / "two", postgres_url) as second:
        body = {"name": "app", "limits": {"month_tokens": 400, "day_cost": 1e6}}
        status, made = first.ask("POST", "/admin/keys", body)
        assert status == 201

        def spend(gateway: Keyed) -> list[tuple[int, str]]:
            return [gateway.chat(made["key"]) for _ in range(200)]

        wait_until(lambda: second.chat(made["key"])[0] == 200)
        found = spend(first)
        assert (200, "ok") in found and found[-1] == (429, "insufficient_quota"), found[-1]

        def known() -> bool:
            here, there = state_of(first.state, made["id"]), state_of(second.state, made["id"])
            return here is not None and there is not None and there.month_tokens >= here.month_tokens > 0

        wait_until(known, 60)
        assert second.chat(made["key"]) == (429, "insufficient_quota")
        assert first.process.log.count("budgets failed") == second.process.log.count("budgets failed") == 0


async def test_sums_are_raised_and_never_lowered(database_url: str, tmp_path: Path) -> None:
    store = Store(database_url)
    now_ms = int(time.time() * 1000)
    text = "a-key-of-the-tests-for-the-app"
    key = StoredKey(
        id=new_id(time.time()), name="app", hash=digest_of(text), hint=hint_of(text), limits=KeyLimits(day_tokens=100), created_ms=now_ms
    )
    try:
        await keys.create(store, key, keys.By("test", ""))
        await renew(store, tmp_path)
        rows = [
            a_record(1, key_id=key.id, key_name="app", at_ms=now_ms, prompt_tokens=30, completion_tokens=12, cost=0.25),
            a_record(2, key_id=key.id, key_name="app", at_ms=now_ms, prompt_tokens=1000, completion_tokens=1000, cached="hit"),
            a_record(3, key_name="unlimited", at_ms=now_ms, prompt_tokens=7, completion_tokens=0),
        ]
        await usage.keep(store, "one.seg", 64, 128, rows)
        duty = Budgets(GatewayConfig(), tmp_path, database_url)
        Table(tmp_path / "limits.map").close()
        assert await duty.run(store) == {"raised": 1}
        state = state_of(tmp_path, key.id)
        assert state is not None and (state.day_tokens, state.month_tokens, state.day_cost) == (42, 42, 250_000_000)
        assert state_of(tmp_path, "unlimited") is None, "who has no budget and was never here takes no place"
        assert await duty.run(store) is None

        table = Table(tmp_path / "limits.map")
        index = table.find(key_of(key.id), today())
        assert table.acquire(index) and table.read(index, state)
        state.day_tokens = 50
        table.write(index, state)
        table.release(index)
        table.close()
        assert await duty.run(store) is None
        after = state_of(tmp_path, key.id)
        assert after is not None and after.day_tokens == 50, "what is not in the store yet counts"

        assert (await keys.get(store, "app")).used_ms is None
        use = LastUse(tmp_path, database_url)
        assert use.pending() and await use.run(store) == {"used": 1}
        assert (await keys.get(store, "app")).used_ms == now_ms
        await usage.keep(store, "one.seg", 128, 192, [a_record(4, key_id=key.id, key_name="app", at_ms=now_ms - 1000)])
        await use.run(store)
        assert (await keys.get(store, "app")).used_ms == now_ms, "never back"
    finally:
        await store.close()
