"""Everything from SQLite into Postgres 18 and back: equal by checksums, killed on the way, while more comes; never over something else."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, update
from tests.unit.ledger.records import a_record

from hx_gateway.core.identifiers import new_id
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.stores.sql import migrate, usage
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.migrate import Moved, Refused
from hx_gateway.stores.sql.schema import (
    ARTIFACTS,
    AUDIT,
    BODIES,
    FEEDBACK,
    JOURNAL_POSITIONS,
    KEYS,
    LEARNED,
    REGISTRY,
    ROUTED,
    USAGE,
    USAGE_DAILY,
    USAGE_HOURLY,
    VERSIONS,
)
from hx_gateway.stores.sql.upgrade import upgrade

KILLS = int(os.environ.get("HX_ROUNDS", "2"))
"""How often a migration is killed."""
DAY_MS = 86_400_000
BEGIN_MS = 1_735_689_600_000  # 2025-01-01
TABLES = [
    "usage", "usage_hourly", "usage_daily", "bodies", "routed", "feedback", "artifacts", "learned", "audit", "registry", "versions", "keys",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "hx_gateway", "migrate"]


def records(count: int, start: int = 0, days: int = 40) -> list[UsageRecord]:
    """Records with everything that a driver could change on the way."""
    chance = random.Random(start)
    found = []
    for number in range(start, start + count):
        at_ms = BEGIN_MS + chance.randrange(days * DAY_MS)
        whole: dict[str, Any] = {
            "id": new_id(at_ms / 1000),
            "at_ms": at_ms,
            "user": chance.choice(["", "ä \U0001f600 '\"\\", "x" * 256, "\t\n\r"]),
            "cost": chance.choice([0.1 + 0.2, 1e-300, 0.0, 123456789.123]),
            "ttft_ms": chance.choice([None, 0.0, 1 / 3]),
            "duration_ms": chance.random() * 1000,
            "prompt_tokens": chance.choice([None, 0, (1 << 62) // 10**6]),
            "trail": chance.choice([None, [("one", "upstream_reset", 1.5)]]),
            "tags": chance.choice([None, ["a", "ö"]]),
            "stream": chance.choice([True, False]),
        }
        found.append(a_record(number, **whole))
    return found


async def filled(store: Store, rows: list[UsageRecord]) -> None:
    """Something in every table."""
    await usage.keep(store, "a segment", 0, 8, rows)
    key = {"owner": "o", "team": "t", "tags": "[]", "limits": "{}", "hint": "hx-", "created_ms": 1, "admin": False, "show_endpoints": True}
    async with store.writing() as connection:
        for number in range(7):
            await connection.execute(insert(KEYS).values(id=new_id(number), name=f"key {number}", hash=bytes([number]) * 32, **key))
            deed = {"actor": "a", "action": "b", "subject": "c", "detail": '{"x": null}', "address": ""}
            await connection.execute(insert(AUDIT).values(id=new_id(number), at_ms=number, **deed))
            await connection.execute(insert(BODIES).values(id=rows[number].id, at_ms=rows[number].at_ms, request=b"\0\xff", response=None))
            routed = {"grp": "g", "model": "m", "features": b"\0\1", "detail": "{}"}
            await connection.execute(insert(ROUTED).values(id=rows[number].id, at_ms=rows[number].at_ms, **routed))
            judged = {"grp": "g", "model": "m", "key_name": "k", "score": 0.5, "comment": "", "applied": number or None}
            await connection.execute(insert(FEEDBACK).values(id=rows[number].id, at_ms=number, **judged))
        await connection.execute(insert(ARTIFACTS).values(grp="g", version="ab", created_ms=1, data=b"\0\xff"))
        await connection.execute(insert(LEARNED).values(grp="g", revision=3, standing=b"\0", updated_ms=1))
        await connection.execute(update(VERSIONS).values(value=7))
        served = {"provider": "ollama", "digest": "d", "capabilities": "[]", "context_length": None, "first_seen_ms": 1, "seen_ms": 2}
        await connection.execute(insert(REGISTRY).values(name="n", endpoint="e", model="m", **served))


async def moved(source: str, target: str) -> dict[str, Moved]:
    async with migrate.between(source, target) as (old, new):
        assert new is not None
        return {one.table: one for one in await migrate.move(old, new)}


async def count(url: str, table: Any = USAGE) -> int:
    store = Store(url)
    try:
        async with store.reading() as connection:
            return await connection.scalar(select(func.count()).select_from(table)) or 0
    finally:
        await store.close()


@pytest.fixture
async def old(tmp_path: Path):
    """A SQLite file with something in every table, as an open store."""
    url = f"sqlite:///{tmp_path / 'old.db'}"
    await upgrade(url)
    store = Store(url)
    await filled(store, records(2500))
    yield store
    await store.close()


async def test_there_and_back_again(old: Store, empty_postgres_url: str, tmp_path: Path) -> None:
    there = await moved(old.url, empty_postgres_url)
    assert list(there) == TABLES
    back = await moved(empty_postgres_url, f"sqlite:///{tmp_path / 'new.db'}")
    for table in TABLES:
        assert there[table].source == there[table].target == back[table].source == back[table].target, table
        assert there[table].target.rows > 0 and there[table].later == 0
    assert there["usage"].target.rows == there["usage"].copied == 2500
    # Bit by bit, and not only by the sums that the migration itself makes.
    copy = Store(f"sqlite:///{tmp_path / 'new.db'}")
    try:
        for table in (USAGE, USAGE_HOURLY, BODIES, ROUTED, FEEDBACK, ARTIFACTS, LEARNED, AUDIT, REGISTRY, VERSIONS, KEYS):
            async with old.reading() as one, copy.reading() as other:
                rows = select(table).order_by(*table.primary_key.columns)
                assert (await one.execute(rows)).all() == (await other.execute(rows)).all()
    finally:
        await copy.close()


async def test_a_changed_row_changes_the_checksum(old: Store, empty_postgres_url: str) -> None:
    first = (await moved(old.url, empty_postgres_url))["usage"]
    store = Store(empty_postgres_url)
    try:
        async with store.writing() as connection:
            one = select(func.min(USAGE.c.id)).scalar_subquery()
            await connection.execute(update(USAGE).where(USAGE.c.id == one).values(cost=USAGE.c.cost + 0.001))
    finally:
        await store.close()
    again = (await moved(old.url, empty_postgres_url))["usage"]
    assert again.target == again.source == first.source, "its day was found out and written anew"
    assert 0 < again.copied < 2500


@pytest.mark.parametrize("direction", ["out", "back"])
async def test_killed_again_and_again(old: Store, empty_postgres_url: str, tmp_path: Path, direction: str) -> None:
    source, target = old.url, empty_postgres_url
    if direction == "back":
        await moved(source, target)
        source, target = target, f"sqlite:///{tmp_path / 'new.db'}"
    kills = 0
    chance = random.Random(1)
    for _ in range(60):
        process = subprocess.Popen([*COMMAND, "--from", source, "--to", target], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if kills < KILLS:
            # From the moment when there is something in the target.
            give_up_s = time.monotonic() + 60
            before = await count(target) if kills else 0
            while process.poll() is None and time.monotonic() < give_up_s:
                try:
                    if await count(target) > before:
                        break
                except Exception:  # the tables are still to be made
                    pass
                time.sleep(0.01)
            time.sleep(chance.random() / 20)
            process.send_signal(signal.SIGKILL)
        said, wrong = process.communicate(timeout=100)
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0, wrong.decode()
        assert b"DIFFERENT" not in said
        break
    assert kills >= 1
    again = await moved(source, target)
    assert all(one.source == one.target for one in again.values()) and again["usage"].copied == 0 and again["usage"].target.rows == 2500


async def test_what_comes_meanwhile_comes_with_the_next_run(old: Store, empty_postgres_url: str) -> None:
    await moved(old.url, empty_postgres_url)
    late = records(300, start=5000, days=50)
    await usage.keep(old, "a segment", 8, 16, late)
    async with old.writing() as connection:
        await connection.execute(update(KEYS).where(KEYS.c.name == "key 3").values(revoked_ms=5))
        await connection.execute(update(VERSIONS).values(value=8))
        # Meanwhile the retention of the source has gone on.
        await connection.execute(delete(USAGE).where(USAGE.c.at_ms < BEGIN_MS + DAY_MS * 3 // 2))
    again = await moved(old.url, empty_postgres_url)
    assert all(one.source == one.target for one in again.values())
    assert again["usage"].target.rows == await count(old.url) and again["keys"].target.rows == 7


async def test_growth_under_way_is_told(old: Store, empty_postgres_url: str) -> None:
    rows = records(1, start=9000)
    async with migrate.between(old.url, empty_postgres_url) as (source, target):
        assert target is not None
        at = 8

        async def grow() -> None:
            nonlocal at
            await usage.keep(old, "a segment", at, at + 8, records(1, start=9000 + at))
            at += 8

        import asyncio

        tasks = []
        found = await migrate.move(
            source, target, lambda table, count: tasks.append(asyncio.ensure_future(grow())) if len(tasks) < 1 else None
        )
        await asyncio.gather(*tasks)
    assert rows and found[0].later + found[1].later >= 1
    assert all(one.source == one.target for one in found)
    again = await moved(old.url, empty_postgres_url)
    assert again["usage"].later == 0 and again["usage"].target.rows == 2501


async def test_targets_that_are_not_written_over(old: Store, postgres_url: str, empty_postgres_url: str, tmp_path: Path) -> None:
    used = Store(postgres_url)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    await upgrade(other)
    try:
        async with used.writing() as connection:
            await connection.execute(insert(BODIES).values(id="x", at_ms=1))
        with pytest.raises(Refused, match="not empty, its table bodies"):
            await moved(old.url, postgres_url)
        await usage.keep(used, "a segment of another", 0, 8, records(1, start=77))
        with pytest.raises(Refused, match="has written usage"):
            await moved(old.url, postgres_url)
        await moved(old.url, empty_postgres_url)
        with pytest.raises(Refused, match="filled from another"):
            await moved(other, empty_postgres_url)
        with pytest.raises(Refused, match="the same database"):
            await moved(old.url, old.url)
        with pytest.raises(Refused, match="no such SQLite file"):
            await moved(f"sqlite:///{tmp_path / 'none.db'}", empty_postgres_url)
        assert not (tmp_path / "none.db").exists()
    finally:
        await used.close()


@pytest.mark.parametrize("same_day", [True, False])
async def test_a_target_that_a_gateway_has_used_since(old: Store, empty_postgres_url: str, same_day: bool) -> None:
    """It was switched to, and its segments are shipped and gone: its own requests are not lost by one more run."""
    await moved(old.url, empty_postgres_url)
    store = Store(empty_postgres_url)
    try:
        own = records(1, start=3, days=30)[0] if same_day else a_record(3, at_ms=BEGIN_MS + 400 * DAY_MS, id=new_id(0))
        await usage.keep(store, "its segment", 0, 8, [own])
        async with store.writing() as connection:
            await connection.execute(delete(JOURNAL_POSITIONS))
        with pytest.raises(Refused, match="1 requests of its own"):
            await moved(old.url, empty_postgres_url)
        assert await count(empty_postgres_url) == 2501
        async with store.writing() as connection:
            await connection.execute(delete(USAGE).where(USAGE.c.id == own.id))
            await connection.execute(update(VERSIONS).values(value=100))
        with pytest.raises(Refused, match="keys of the target"):
            await moved(old.url, empty_postgres_url)
    finally:
        await store.close()


def ran(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=100, env={**os.environ, **(environment or {})})


async def test_the_command(old: Store, empty_postgres_url: str, tmp_path: Path) -> None:
    dry = ran("--from", old.url, "--to", empty_postgres_url, "--dry-run", "--json")
    assert json.loads(dry.stdout) == {
        "rows": {"usage": [2500, 0], "usage_hourly": [await count(old.url, USAGE_HOURLY), 0],
                 "usage_daily": [await count(old.url, USAGE_DAILY), 0], "bodies": [7, 0], "routed": [7, 0],
                 "feedback": [7, 0], "artifacts": [1, 0], "learned": [1, 0], "audit": [7, 0],
                 "registry": [1, 0], "versions": [1, 0], "keys": [7, 0]},
        "begun": False,
    }  # fmt: skip
    done = ran("--json", environment={"HX_MIGRATE_FROM": old.url, "HX_MIGRATE_TO": empty_postgres_url})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["equal"] is True and [row["table"] for row in told["tables"]] == TABLES and len(told["tables"][0]["checksum"]) == 32
    dry = ran("--from", old.url, "--to", empty_postgres_url, "--dry-run")
    assert "goes on" in dry.stdout and "2,500" in dry.stdout
    plain = ran("--from", old.url, "--to", empty_postgres_url, "--hold", str(tmp_path))
    assert plain.returncode == 0 and told["tables"][0]["checksum"] in plain.stdout
    assert ran("--from", old.url, "--to", old.url).returncode == 1
    assert ran("--from", "mysql://x", "--to", old.url).returncode == 2
    word = "a-secret-word"
    closed = ran("--from", old.url, "--to", f"postgresql://someone:{word}@127.0.0.1:1/x")
    assert closed.returncode == 1 and word not in closed.stderr and "Traceback" not in closed.stderr
