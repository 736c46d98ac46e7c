"""What is past its time goes, on both engines; sums stay; Postgres has its partitions before they are needed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text
from tests.unit.ledger.records import a_record

from hx_gateway.config.ledger import LedgerSettings
from hx_gateway.core.identifiers import new_id
from hx_gateway.stores.retention import Retention
from hx_gateway.stores.sql import pruning, usage
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.partitions import month_of, partitions_of
from hx_gateway.stores.sql.schema import AUDIT, BODIES, USAGE, USAGE_DAILY, USAGE_HOURLY

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
async def store(database_url: str):
    """A store with the newest schema; once for each engine."""
    opened = Store(database_url)
    yield opened
    await opened.close()


async def fill(store: Store, ages_days: list[float]) -> None:
    """One request, one deed and one body of each age."""
    now = now_ms()
    ids = [new_id((now - age * DAY_MS) / 1000) for age in ages_days]
    records = [a_record(n, id=ids[n], at_ms=now - int(age * DAY_MS)) for n, age in enumerate(ages_days)]
    await usage.keep(store, "a segment", 0, 8, records)
    async with store.writing() as connection:
        for record in records:
            deed = {"actor": "a", "action": "b", "subject": "c", "detail": "{}", "address": ""}
            await connection.execute(insert(AUDIT).values(id=record.id, at_ms=record.at_ms, **deed))
            await connection.execute(insert(BODIES).values(id=record.id, at_ms=record.at_ms, request=b"x"))


async def counts(store: Store) -> dict[str, int]:
    async with store.reading() as connection:
        tables = (USAGE, AUDIT, BODIES)
        return {table.name: await connection.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


async def months(store: Store) -> list[str]:
    async with store.reading() as connection:
        return [month.partition for month in await connection.run_sync(partitions_of)]


async def test_what_is_past_its_time_goes_and_sums_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_BATCH", 3)
    monkeypatch.setattr(pruning, "_PAUSE_S", 0.0)
    await fill(store, [0.0, 1.0, 8.5, 29.0, *[200.0 + n / 10 for n in range(10)], 500.0])
    settings = LedgerSettings(retention_days=30, audit_retention_days=100, bodies_retention_days=7)
    retention = Retention(settings, store.url)
    assert retention.pending()
    found = await retention.run(store)
    assert found is not None and found["audit"] == 11 and found["bodies"] == 13
    # No age lies in a month that ended less than 30 days ago and yet is older than that.
    assert await counts(store) == {"usage": 4, "audit": 4, "bodies": 2}
    assert found["deleted"] == (11 if store.kind == "sqlite" else 0) and (found["dropped"] > 0) is (store.kind != "sqlite")
    async with store.reading() as connection:
        assert await connection.scalar(select(func.sum(USAGE_HOURLY.c.requests))) == 15
    assert await retention.run(store) is None


async def test_sums_go_later_than_rows_and_whole_days_at_a_time(store: Store) -> None:
    await fill(store, [0.0, 50.0, 100.0, 200.0])
    await Retention(LedgerSettings(sums_retention_days=10), store.url).run(store)
    tables = (USAGE_HOURLY, USAGE_DAILY)

    async def kept() -> list[int | None]:
        async with store.reading() as connection:
            return [await connection.scalar(select(func.sum(table.c.requests))) for table in tables]

    assert await kept() == [4, 4], "never while rows are kept for ever"
    found = await Retention(LedgerSettings(retention_days=30, sums_retention_days=10), store.url).run(store)
    assert found is not None and found["sums"] == 4 and await kept() == [2, 2], "never before the rows of the same month"
    await Retention(LedgerSettings(retention_days=10, sums_retention_days=45), store.url).run(store)
    assert await kept() == [1, 1]


async def test_nothing_goes_that_nobody_told_to_go(store: Store) -> None:
    await fill(store, [0.0, 3000.0])
    await Retention(LedgerSettings(bodies_retention_days=0), store.url).run(store)
    assert await counts(store) == {"usage": 2, "audit": 2, "bodies": 2}


def test_the_file_that_nobody_needed_yet_is_not_made(tmp_path: Path) -> None:
    assert not Retention(LedgerSettings(), f"sqlite:///{tmp_path / 'x.db'}").pending()
    assert Retention(LedgerSettings(), "postgresql://x/y").pending()


async def test_partitions_are_made_ahead_and_take_their_rows(postgres_url: str) -> None:
    store = Store(postgres_url)
    try:
        await fill(store, [0.0, 1000.0, 1000.1, 2000.0])
        await pruning.part_ahead(store, now_ms())
        made = await months(store)
        this = month_of(now_ms())
        following = month_of(month_of(this.to_ms).to_ms)
        assert {this.partition, month_of(this.to_ms).partition, following.partition} <= set(made)
        assert month_of(now_ms() - 2000 * DAY_MS).partition in made
        async with store.reading() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM usage_default")) == 0
            assert await connection.scalar(text("SELECT count(*) FROM usage")) == 4
            # Each has the indexes of the whole, as parts of them.
            parts = "SELECT inhparent::regclass::text, count(*) FROM pg_inherits WHERE inhparent::regclass::text LIKE 'usage_%' GROUP BY 1"
            found = dict((await connection.execute(text(parts))).all())
        assert set(found.values()) == {len(made) + 1} and len(found) == 5
        assert await pruning.part_ahead(store, now_ms()) == 0
        # A year later, and a row from the far future of a clock gone wrong.
        await usage.keep(store, "another", 0, 8, [a_record(9, id="x" * 26, at_ms=now_ms() + 4000 * DAY_MS)])
        assert await pruning.part_ahead(store, now_ms() + 365 * DAY_MS) == 4
    finally:
        await store.close()


async def test_a_long_report_is_not_waited_for(postgres_url: str) -> None:
    """Dropping a partition needs the table for itself: while someone reads it is put off, so that nobody queues up behind."""
    from hx_gateway.stores.sql.engine import StoreError

    store, other = Store(postgres_url), Store(postgres_url)
    try:
        await fill(store, [0.0, 400.0])
        await pruning.part_ahead(store, now_ms())
        async with other.reading() as connection:
            await connection.execute(text("SELECT count(*) FROM usage"))
            with pytest.raises(StoreError, match="lock"):
                await pruning.prune_usage(store, now_ms() - 90 * DAY_MS)
        assert (await pruning.prune_usage(store, now_ms() - 90 * DAY_MS))["dropped"] == 1
    finally:
        await store.close()
        await other.close()
