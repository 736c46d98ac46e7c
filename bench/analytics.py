"""Reports over millions of requests: how long each takes on a real database, `python -m bench --analytics ROWS`."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text
from tests.support.engines import Postgres

from hx_gateway.ledger.reports import Filter, Place
from hx_gateway.stores.sql import reports
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.partitions import month_of, part
from hx_gateway.stores.sql.schema import DIMENSIONS, USAGE, USAGE_HOURLY
from hx_gateway.stores.sql.upgrade import upgrade

DAYS = 90
DAY_MS = 86_400_000
CHUNK = 500_000
TIMES = 7
# 100 keys of 20 teams, each with one of 12 models on two endpoints, one in fifty fails; all of them busy in every hour. `n` counts from 1.
VALUES = {
    "id": "{id}",
    "at_ms": "{start} + n * {step}",
    "duration_ms": "100 + n % 4000",
    "ttft_ms": "CASE WHEN n % 50 = 0 THEN NULL ELSE 20 + n % 300 END",
    "queued_ms": "0",
    "load_ms": "0",
    "route": "'chat'",
    "key_id": "'k' || (n * 7919 % 100)",
    "key_name": "'key-' || (n * 7919 % 100)",
    "team": "'team-' || (n * 7919 % 20)",
    "user": "''",
    "asked": "'hx-chat'",
    "model": "'model-' || (n * 7919 % 100 % 12)",
    "grp": "'hx-chat'",
    "endpoint": "'endpoint-' || (n * 7919 % 100 % 12 * 2 + n / 100 % 2)",
    "attempts": "1",
    "trail": "NULL",
    "status": "CASE WHEN n % 50 = 0 THEN 502 ELSE 200 END",
    "outcome": "CASE WHEN n % 50 = 0 THEN 'upstream_error' ELSE 'ok' END",
    "stream": "n % 2 = 0",
    "cached": "''",
    "prompt_tokens": "n % 3000",
    "completion_tokens": "n % 500",
    "cached_tokens": "NULL",
    "estimated": "1 = 0",
    "cost": "(n % 100) / 1000.0",
    "engine_ms": "100 + n % 4000",
    "tags": "NULL",
}
ID = {
    "postgresql": "'01' || upper(lpad(to_hex(n), 24, '0'))",
    "sqlite": "'01' || printf('%024X', n)",
}
SERIES = {
    "postgresql": "SELECT n FROM generate_series(CAST(:first AS bigint), :last) AS s (n)",
    "sqlite": "WITH RECURSIVE s (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM s WHERE n < :last) SELECT n FROM s",
}
SUMS = {"requests": "count(*)", "ttft_count": "count(ttft_ms)", "hour_ms": "at_ms - at_ms % 3600000"}


async def fill(store: Store, rows: int, now_ms: int) -> None:
    """Rows of the last months up to now, and their sums."""
    start, step = now_ms - DAYS * DAY_MS, max(DAYS * DAY_MS // rows, 1)
    if store.kind == "postgresql":
        for month in sorted({month_of(start + day * DAY_MS) for day in range(DAYS + 1)}):
            async with store.writing() as connection:
                await connection.run_sync(part, month)
    columns = ", ".join(f'"{column.name}"' for column in USAGE.columns)
    values = ", ".join(VALUES[column.name] for column in USAGE.columns).format(id=ID[store.kind], start=start, step=step)
    for first in range(1, rows + 1, CHUNK):
        async with store.writing() as connection:
            insert = f"INSERT INTO usage ({columns}) SELECT {values} FROM ({SERIES[store.kind]}) AS numbers"
            await connection.execute(text(insert), {"first": first, "last": min(first + CHUNK - 1, rows)})
        print(f"  {min(first + CHUNK - 1, rows):>12,} rows", flush=True)
    names = [column.name for column in USAGE_HOURLY.columns]
    sums = ", ".join(SUMS.get(name) or (name if name in DIMENSIONS else f"coalesce(sum({name}), 0)") for name in names)
    groups = ", ".join(SUMS["hour_ms"] if name == "hour_ms" else name for name in DIMENSIONS)
    async with store.writing() as connection:
        await connection.execute(text(f"INSERT INTO usage_hourly ({', '.join(names)}) SELECT {sums} FROM usage GROUP BY {groups}"))
    groups = ", ".join(DIMENSIONS[1:])
    totals = ", ".join(f"sum({name})" for name in names if name not in DIMENSIONS)
    day = f"hour_ms - hour_ms % {DAY_MS}"
    async with store.writing() as connection:
        await connection.execute(
            text(f"INSERT INTO usage_daily SELECT {day}, {groups}, {totals} FROM usage_hourly GROUP BY {day}, {groups}")
        )
    async with store.writing() as connection:
        await connection.execute(text("ANALYZE"))


def questions(now_ms: int, rows: int) -> dict[str, Callable[[Any], Awaitable[Any]]]:
    """What an operator asks, by what it is."""

    def page(asked: Filter, before: Place | None = None) -> Callable[[Any], Awaitable[Any]]:
        return lambda connection: reports.page(connection, asked, before, 100)

    def sums(by: list[str], bucket: str | None, days: int, **given: Any) -> Callable[[Any], Awaitable[Any]]:
        asked = Filter(from_ms=(now_ms - days * DAY_MS) // DAY_MS * DAY_MS, **given)
        return lambda connection: reports.usage(connection, asked, by, bucket, 1000)

    async def one(connection: Any) -> Any:
        return await reports.one(connection, "01" + "0" * 24)

    middle = Place(now_ms - DAYS * DAY_MS // 2, "")
    return {
        "log, first page": page(Filter()),
        "log, a page from the middle": page(Filter(), middle),
        "log of one key": page(Filter(key="key-7")),
        "log of failures": page(Filter(outcome="upstream_error")),
        "log of one key's failures": page(Filter(key="key-7", outcome="upstream_error")),
        "log of one team": page(Filter(team="team-3")),
        "log of one team, from the middle": page(Filter(team="team-3"), middle),
        "log of a model's slow streams": page(Filter(model="model-5", stream=True, min_ms=4050.0)),
        "log of a status nobody had": page(Filter(status=418)),
        "log of a team nobody is in": page(Filter(team="nobody")),
        "an id that is not there": one,
        "usage by key, 30 days": sums(["key"], None, 30),
        "usage by day and model, 30 days": sums(["model"], "day", 30),
        "usage by hour, 7 days": sums([], "hour", 7),
        "usage by month and team, 90 days": sums(["team"], "month", 90),
        "usage of one key by day, 90 days": sums([], "day", 90, key="key-7"),
        "usage of one status, 1 day (rows)": sums(["model"], None, 1, status=502),
    }


async def measure(store: Store, now_ms: int, rows: int) -> None:
    """Ask everything some times and print the middle and the longest."""
    for name, question in questions(now_ms, rows).items():
        took = []
        for _ in range(TIMES):
            began_s = time.perf_counter()
            async with store.reading() as connection:
                await reports.prepare(connection)
                await question(connection)
            took.append((time.perf_counter() - began_s) * 1000)
        print(f"  {name:<36} {statistics.median(took):>8.1f} ms   longest {max(took):>8.1f} ms", flush=True)


async def run(url: str, rows: int) -> None:
    """Fill a database and measure."""
    await upgrade(url)
    store = Store(url, statement_s=3600.0)
    now_ms = int(time.time() * 1000)
    try:
        await fill(store, rows, now_ms)
        print(f"{store.kind}, {rows:,} rows", flush=True)
        await measure(store, now_ms, rows)
    finally:
        await store.close()


def analytics(rows: int) -> None:
    """The whole of it on Postgres, and a tenth of it on SQLite."""
    with tempfile.TemporaryDirectory(prefix="hx-bench-") as folder:
        asyncio.run(run(f"sqlite:///{Path(folder) / 'hx-gateway.db'}", max(rows // 10, 1)))
    with Postgres(shared_buffers="512MB", max_wal_size="4GB", work_mem="16MB") as server:
        asyncio.run(run(server.url(), rows))
