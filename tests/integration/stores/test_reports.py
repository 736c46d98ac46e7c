"""Reports on both engines against the same sums made by hand, and pages of the log against the log itself."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import delete, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.unit.ledger.records import a_record

from hx_gateway.core.identifiers import new_id
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.reports import Filter, Page, Place
from hx_gateway.stores.sql import reports, usage
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.reports import DAY_MS, HOUR_MS
from hx_gateway.stores.sql.schema import BODIES, REGISTRY, USAGE, USAGE_DAILY

BEGIN_MS = int(datetime(2025, 1, 30, tzinfo=UTC).timestamp()) * 1000


def some_records(count: int = 800) -> list[UsageRecord]:
    """Records of some weeks over two turns of months, the same every time; some at the same moment."""
    chance = random.Random(4)
    found = []
    for number in range(count):
        at_ms = BEGIN_MS + chance.randrange(40 * DAY_MS) // 500_000 * 500_000
        outcome = chance.choice(["ok"] * 6 + ["upstream_error", "rate_limit_exceeded"])
        found.append(
            a_record(
                number,
                id=new_id(at_ms / 1000),
                at_ms=at_ms,
                duration_ms=float(chance.randrange(1, 2000)),
                ttft_ms=chance.choice([None, 5.0, 7.5]),
                route=chance.choice(["chat", "embeddings"]),
                key_name=chance.choice(["anna", "bert", ""]),
                team=chance.choice(["a team", "b"]) if number != 333 else "rare",
                user=chance.choice(["", "carl"]),
                model=chance.choice(["tiny", "large"]),
                group=chance.choice(["", "hx-chat"]),
                endpoint=chance.choice(["one", "two"]),
                outcome=outcome,
                status=200 if outcome == "ok" else 502,
                stream=chance.choice([True, False]),
                cached=chance.choice(["", "", "hit"]),
                prompt_tokens=chance.choice([None, 3, 17]),
                cost=chance.randrange(100) / 8,
            )
        )
    return found


RECORDS = some_records()
FILTERS = [
    Filter(),
    Filter(key="anna"),
    Filter(model="tiny", endpoint="two"),
    Filter(outcome="ok", key="bert"),
    Filter(outcome="upstream_error"),
    Filter(team="rare"),
    Filter(team="nobody"),
    Filter(group="hx-chat", cached="hit", route="chat"),
    Filter(status=502, stream=True),
    Filter(user="carl", min_ms=1500.0, key="anna"),
    Filter(from_ms=BEGIN_MS + 2 * DAY_MS, to_ms=BEGIN_MS + 9 * DAY_MS),
    Filter(from_ms=BEGIN_MS + 2 * DAY_MS + 1, to_ms=BEGIN_MS + 30 * DAY_MS + 7 * HOUR_MS + 1_000_000, team="b"),
    Filter(from_ms=BEGIN_MS + DAY_MS + 1, to_ms=BEGIN_MS + DAY_MS + 2_000_000),
    Filter(from_ms=BEGIN_MS + 500_000, model="large", status=200),
]


def meant(asked: Filter, record: UsageRecord) -> bool:
    """Whether a filter lets a record pass, by hand."""
    if not (asked.from_ms or 0) <= record.at_ms < (asked.to_ms or 1 << 62) or record.duration_ms < (asked.min_ms or 0):
        return False
    names = {name: "key_name" if name == "key" else name for name in asked.given() if name != "min_ms"}
    return all(getattr(record, field) == getattr(asked, name) for name, field in names.items())


def begin(at_ms: int, bucket: str) -> int:
    """Where the bucket of a moment begins, by the calendar."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC).replace(minute=0, second=0, microsecond=0)
    moment = moment if bucket == "hour" else moment.replace(hour=0)
    return int((moment.replace(day=1) if bucket == "month" else moment).timestamp()) * 1000


@pytest.fixture
async def store(database_url: str):
    """A store with the records; once for each engine."""
    opened = Store(database_url)
    await usage.keep(opened, "a segment", 0, 8, RECORDS)
    yield opened
    await opened.close()


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that look at few rows, and have no time for a second look."""
    monkeypatch.setattr(reports, "_SCAN", 7)
    monkeypatch.setattr(reports, "_BUDGET_S", 0.0)


async def summed(store: Store, asked: Filter, by: list[str], bucket: str | None = None) -> list[dict[str, Any]]:
    async with store.reading() as connection:
        await reports.prepare(connection)
        return await reports.usage(connection, asked, by, bucket, 100_000)


async def log(store: Store, asked: Filter, limit: int) -> tuple[list[str], int]:
    """Ids of all rows, page by page, and how many pages they took."""
    ids: list[str] = []
    place, pages = None, 0
    while True:
        async with store.reading() as connection:
            await reports.prepare(connection)
            found: Page = await reports.page(connection, asked, place, limit)
        assert len(found.rows) <= limit
        ids += [row["id"] for row in found.rows]
        pages += 1
        if found.next is None:
            return ids, pages
        assert place is None or found.next < place
        place = found.next


async def test_sums_are_those_of_the_records(store: Store) -> None:
    for asked in FILTERS:
        for by, bucket in (
            ([], None),
            (["model", "key"], None),
            (["outcome", "group", "cached"], "day"),
            (["team"], "month"),
            ([], "hour"),
        ):
            expected: dict[tuple[Any, ...], list[Any]] = {}
            for record in RECORDS:
                if meant(asked, record):
                    group = [getattr(record, "key_name" if name == "key" else name) for name in by]
                    sums = expected.setdefault((bucket and begin(record.at_ms, bucket), *group), [0] * 7)
                    known = (record.prompt_tokens or 0, record.ttft_ms or 0.0, record.ttft_ms is not None)
                    for place, value in enumerate((1, record.cost, record.outcome != "ok", record.duration_ms, *known)):
                        sums[place] += value
            found = await summed(store, asked, by, bucket)
            names = ("requests", "cost", "failed", "duration_ms", "prompt_tokens", "ttft_ms", "ttft_count")
            assert {(row["at_ms"], *(row[name] for name in by)): [row[name] for name in names] for row in found} == expected, (asked, by)
            order = [(row["at_ms"] or 0, -row["cost"], -row["requests"]) for row in found]
            assert order == sorted(order)


async def test_pages_are_the_log_newest_first(store: Store) -> None:
    for asked in FILTERS:
        expected = [one.id for one in sorted(RECORDS, key=lambda one: (one.at_ms, one.id), reverse=True) if meant(asked, one)]
        for limit in (50, 1000):
            assert (await log(store, asked, limit))[0] == expected, asked


@pytest.mark.usefixtures("short_looks")
async def test_pages_that_look_at_little_miss_nothing(store: Store) -> None:
    for asked in FILTERS:
        expected = [one.id for one in sorted(RECORDS, key=lambda one: (one.at_ms, one.id), reverse=True) if meant(asked, one)]
        assert (await log(store, asked, 5))[0] == expected, asked


@pytest.mark.usefixtures("short_looks")
async def test_what_is_rare_is_found_at_once(store: Store) -> None:
    """The roll-up knows the hour: the rows above it are not looked at."""
    ids, pages = await log(store, Filter(team="rare"), 5)
    assert len(ids) == 1 and pages <= 2
    assert (await log(store, Filter(team="nobody"), 5)) == ([], 1)
    assert (await log(store, Filter(status=418), 5))[1] > 50, "without a roll-up everything is looked at, a little by each page"


async def test_whole_hours_come_from_the_roll_up_alone(store: Store) -> None:
    before = await summed(store, Filter(team="b"), ["model"], "day")
    async with store.writing() as connection:
        await connection.execute(delete(USAGE))
    assert await summed(store, Filter(team="b"), ["model"], "day") == before
    assert await summed(store, Filter(status=200), []) == []


async def test_one_request_with_all_that_is_kept_of_it(store: Store) -> None:
    at_ms = BEGIN_MS + DAY_MS
    whole = a_record(
        9000, id=new_id(at_ms / 1000 - 100), at_ms=at_ms, trail=[("one", "upstream_reset", 1.5)], tags=["x"], model="m", endpoint="e"
    )
    await usage.keep(store, "a segment", 8, 16, [whole])
    served = {"name": "n", "model": "m", "endpoint": "e", "provider": "p", "capabilities": "[]", "first_seen_ms": 1, "seen_ms": 2}
    async with store.writing() as connection:
        await connection.execute(insert(REGISTRY).values(**served, digest="abc"))
        await connection.execute(insert(BODIES).values(id=whole.id, at_ms=at_ms, request=b"{}", response=None))
    async with store.reading() as connection:
        found = await reports.one(connection, whole.id)
        assert found is not None
        assert (found["trail"], found["tags"], found["digest"], found["request"]) == ([["one", "upstream_reset", 1.5]], ["x"], "abc", b"{}")
        other = await reports.one(connection, RECORDS[5].id)
        assert other is not None and other["digest"] is None and other["request"] is None
        for unknown in (new_id(at_ms / 1000), "x", "", "8" * 26, "I" * 26):
            assert await reports.one(connection, unknown) is None


PLANS = [
    Filter(),
    Filter(key="anna"),
    Filter(model="tiny", team="b", status=502),
    Filter(outcome="upstream_error", endpoint="two"),
    Filter(min_ms=1500.0),
]


class Spy:
    """A connection that has each statement explained before it runs."""

    def __init__(self, connection: AsyncConnection, plans: list[str]) -> None:
        self.connection = connection
        self.plans = plans

    async def execute(self, statement: Any) -> Any:
        compiled = str(statement.compile(dialect=self.connection.dialect, compile_kwargs={"literal_binds": True}))
        plan = await self.connection.execute(text("EXPLAIN " + compiled.replace(":", "\\:")))
        self.plans.append("\n".join(plan.scalars()))
        return await self.connection.execute(statement)

    async def scalar(self, statement: Any) -> Any:
        return (await self.execute(statement)).scalar()


@pytest.mark.parametrize("asked", PLANS, ids=range(len(PLANS)))
async def test_a_page_reads_an_index_and_sorts_nothing(postgres_url: str, asked: Filter) -> None:
    """With statistics of a large table over months, Postgres plans each page as walks down indexes, whatever the filter."""
    store = Store(postgres_url)
    explained: list[str] = []
    try:
        async with store.writing() as connection:
            columns = ", ".join(f'"{column.name}"' for column in USAGE.columns)
            for month in range(1, 5):
                await connection.execute(
                    text(
                        f"CREATE TABLE usage_2001_0{month} PARTITION OF usage FOR VALUES FROM ({month * 10**9}) TO ({(month + 1) * 10**9})"
                    )
                )
            await connection.execute(
                text(
                    f"INSERT INTO usage ({columns}) SELECT 'i' || i, 1000000000 + i * 150000::bigint, 1, 1, 0, 0, 'chat', '', "
                    "(ARRAY['anna', 'bert'])[1 + i % 2], 'a', '', 'm', (ARRAY['tiny', 'large'])[1 + i % 2], '', "
                    "(ARRAY['one', 'two'])[1 + i % 2], 1, NULL, 200, CASE WHEN i % 50 = 0 THEN 'upstream_error' ELSE 'ok' END, false, '', "
                    "1, 1, NULL, false, 0, 0, NULL FROM generate_series(1, 20000) AS s (i)"
                )
            )
        async with store.writing() as connection:
            await connection.execute(text("ANALYZE usage"))
        async with store.reading() as connection:
            await reports.prepare(connection)
            await reports.page(cast("AsyncConnection", Spy(connection, explained)), asked, Place(3_900_000_000, "i"), 50)
    finally:
        await store.close()
    assert explained
    pages = [plan for plan in explained if "usage_hourly" not in plan]
    for plan in pages:
        assert "Index" in plan and "Sort  (" not in plan and "Seq Scan on usage_2001" not in plan, plan
        assert "usage_2001_04" not in plan, "a month beyond the page's place is not looked at"


async def test_the_roll_up_has_the_sums_of_all(store: Store) -> None:
    (whole,) = await summed(store, Filter(), [])
    assert whole["requests"] == len(RECORDS) and isinstance(whole["requests"], int)
    async with store.writing() as connection:
        await connection.execute(delete(USAGE_DAILY))
    assert await summed(store, Filter(), []) == []
    assert (await summed(store, Filter(), [], "hour"))[0]["requests"], "those by the hour come from hours"
