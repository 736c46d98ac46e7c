"""The schema on both engines: made once, from every earlier step, with what is there kept."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, insert, select, text

from hx_gateway.stores.sql import schema
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.partitions import month_of
from hx_gateway.stores.sql.upgrade import VERSION_TABLE, newest, revision_of, steps, upgrade

EVERY = [script.revision for script in reversed(list(steps().walk_revisions()))]
OF_STEP = {
    "0001": [schema.KEYS, schema.VERSIONS, schema.AUDIT],
    "0002": [schema.USAGE, schema.USAGE_HOURLY, schema.JOURNAL_POSITIONS],
    "0003": [schema.BODIES, schema.REGISTRY],
    "0004": [schema.USAGE_DAILY],
    "0005": [schema.ROUTED, schema.FEEDBACK, schema.ARTIFACTS, schema.LEARNED],
}


def differences(connection: Connection) -> list[Any]:
    """What a database has that the tables of the code have not, and the other way round; partitions apart."""

    def ours(_: Any, name: str | None, kind: str, *rest: object) -> bool:
        return kind != "table" or not str(name).startswith("usage_") or name in ("usage_hourly", "usage_daily")

    options = {"version_table": VERSION_TABLE, "compare_type": True, "include_object": ours}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), schema.METADATA))


def row(table: Any, number: int) -> dict[str, Any]:
    """A row with something in every column."""
    made: dict[str, Any] = {}
    for column in table.columns:
        kind = column.type.python_type
        made[column.name] = {str: f"{column.name} {number}", bytes: bytes([number] * 32), bool: True}.get(kind, number)
    if "at_ms" in made:
        made["at_ms"] = int(time.time() * 1000) + number
    return made


async def fill(store: Store, tables: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """Put rows into tables; returns what they hold then."""
    held = {}
    async with store.writing() as connection:
        for table in tables:
            await connection.execute(insert(table), [row(table, number) for number in range(1, 4)])
    async with store.reading() as connection:
        for table in tables:
            rows = await connection.execute(select(table).order_by(*table.primary_key.columns))
            held[table.name] = [dict(found) for found in rows.mappings()]
    return held


def test_there_is_a_chain_of_steps_and_the_test_knows_them() -> None:
    assert list(OF_STEP) == EVERY
    assert {table.name for tables in OF_STEP.values() for table in tables} == set(schema.METADATA.tables)


@pytest.mark.parametrize("before", ["", *EVERY])
async def test_every_earlier_schema_becomes_the_newest_with_its_rows(empty_database_url: str, before: str) -> None:
    store = Store(empty_database_url)
    held: dict[str, list[dict[str, Any]]] = {}
    if before:
        assert (await upgrade(empty_database_url, before)).after == before
        held = await fill(store, [table for step in EVERY[: EVERY.index(before) + 1] for table in OF_STEP[step]])
    done = await upgrade(empty_database_url)
    assert (done.before, done.after) == (before, newest())
    async with store.reading() as connection:
        assert await connection.run_sync(differences) == []
        for name, rows in held.items():
            table = schema.METADATA.tables[name]
            found = await connection.execute(select(table).order_by(*table.primary_key.columns))
            assert [dict(one) for one in found.mappings()] == rows
        if "0002" <= before < "0004":
            daily = select(schema.USAGE_DAILY.c.key_name, schema.USAGE_DAILY.c.requests, schema.USAGE_DAILY.c.cost)
            expected = [(f"key_name {number}", number, float(number)) for number in range(1, 4)]
            assert [tuple(one) for one in await connection.execute(daily.order_by(schema.USAGE_DAILY.c.requests))] == expected
        assert list(await connection.scalars(select(schema.VERSIONS.c.value).where(schema.VERSIONS.c.name == "keys"))) == [0]
    await fill(store, [table for step in EVERY[EVERY.index(before) + 1 if before else 0 :] for table in OF_STEP[step]])
    await store.close()
    if store.path is not None:
        assert (done.backup is not None) == (before not in ("", newest()))
    if done.backup is not None:
        assert store.path is not None and done.backup == store.path.with_name(f"hx-gateway.db.before-{newest()}")
        assert stat.S_IMODE(done.backup.stat().st_mode) == stat.S_IMODE(store.path.stat().st_mode) == 0o600
        with sqlite3.connect(done.backup) as copy:
            assert copy.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()[0] == before
            assert {name: copy.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in held} == {
                name: len(rows) for name, rows in held.items()
            }
        copy.close()


async def test_a_second_upgrade_changes_nothing(database_url: str) -> None:
    done = await upgrade(database_url)
    assert (done.before, done.after, done.backup) == (newest(), newest(), None)


async def test_a_schema_of_a_newer_release_is_refused_and_left_alone(database_url: str) -> None:
    store = Store(database_url)
    async with store.writing() as connection:
        await connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=rf"newer release: its schema is 9999, this release knows up to {newest()}"):
        await upgrade(database_url)
    async with store.reading() as connection:
        assert await connection.run_sync(revision_of) == "9999"
    await store.close()


async def test_tables_of_another_program_are_left_alone(empty_database_url: str) -> None:
    store = Store(empty_database_url)
    async with store.writing() as connection:
        await connection.execute(text("CREATE TABLE audit (theirs TEXT)"))
    with pytest.raises(StoreError, match=r"tables of another program \(audit\)"):
        await upgrade(empty_database_url)
    async with store.reading() as connection:
        assert await connection.run_sync(revision_of) == ""
    await store.close()


UPGRADE = """
import asyncio, sys
from hx_gateway.stores.sql.upgrade import upgrade
sys.stdin.readline()
done = asyncio.run(upgrade(sys.argv[1]))
print(done.before or "empty", done.after)
"""


def test_processes_that_start_together_make_the_schema_once(empty_database_url: str) -> None:
    """Each waits at the same line until all have imported what they need."""
    made = [
        subprocess.Popen([sys.executable, "-c", UPGRADE, empty_database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in made:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in made)
    assert [process.returncode for process in made] == [0, 0, 0]
    assert said == [f"{newest()} {newest()}", f"{newest()} {newest()}", f"empty {newest()}"]

    async def compare() -> list[Any]:
        store = Store(empty_database_url)
        async with store.reading() as connection:
            found = await connection.run_sync(differences)
        await store.close()
        return found

    assert asyncio.run(compare()) == []


async def test_a_step_that_fails_leaves_the_schema_before_it(empty_database_url: str) -> None:
    await upgrade(empty_database_url, "0002")
    store = Store(empty_database_url)
    async with store.writing() as connection:
        await connection.execute(text("CREATE TABLE registry (theirs TEXT)"))  # the last step cannot make its second table
    with pytest.raises(StoreError, match="registry"):
        await upgrade(empty_database_url)
    async with store.reading() as connection:
        assert await connection.run_sync(revision_of) == "0002"
        tables = await connection.run_sync(lambda sync: sync.dialect.get_table_names(sync))
        assert "bodies" not in tables and "usage" in tables
    await store.close()


async def test_usage_lies_in_the_partition_of_its_month(postgres_url: str) -> None:
    now = month_of(int(time.time() * 1000))
    following = month_of(now.to_ms)
    store = Store(postgres_url)
    async with store.writing() as connection:
        times = (now.from_ms, now.to_ms - 1, now.to_ms, now.from_ms - 1)
        rows = [{**row(schema.USAGE, number), "at_ms": at_ms} for number, at_ms in enumerate(times)]
        await connection.execute(insert(schema.USAGE), rows)
    async with store.reading() as connection:
        found = await connection.execute(text("SELECT tableoid::regclass::text, id FROM usage ORDER BY id"))
        assert [partition for partition, _ in found] == [now.partition, now.partition, following.partition, "usage_default"]
    await store.close()


def test_months() -> None:
    december = month_of(1798761599999)  # the last millisecond of 2026
    assert december == ("usage_2026_12", 1796083200000, 1798761600000)
    assert month_of(december.to_ms).partition == "usage_2027_01"
    assert month_of(december.from_ms - 1).partition == "usage_2026_11"


@pytest.mark.parametrize("version", [16])
def test_an_older_postgres(version: int) -> None:
    from tests.support.engines import Databases, Postgres

    async def run(url: str) -> list[Any]:
        await upgrade(url)
        store = Store(url)
        await fill(store, [schema.KEYS, schema.USAGE, schema.REGISTRY])
        async with store.reading() as connection:
            found = await connection.run_sync(differences)
        await store.close()
        return found

    with Postgres(version) as server:
        assert asyncio.run(run(Databases(server.url()).empty())) == []


async def test_no_copy_no_upgrade(tmp_path: Path) -> None:
    """A folder in the place of the copy stands for a disk that is full."""
    url = f"sqlite:///{tmp_path / 'hx-gateway.db'}"
    await upgrade(url, "0001")
    (tmp_path / f"hx-gateway.db.before-{newest()}.part" / "full").mkdir(parents=True)
    with pytest.raises(StoreError, match="nothing was changed"):
        await upgrade(url)
    store = Store(url)
    async with store.reading() as connection:
        assert await connection.run_sync(revision_of) == "0001"
    await store.close()


async def test_an_upgrade_leaves_the_locks_of_open_connections_alone(tmp_path: Path) -> None:
    """Else the next process that looks into the file and leaves would take the log away that is still written to."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    look = f"import sqlite3; c = sqlite3.connect({str(tmp_path / 'x.db')!r}); print(c.execute('SELECT value FROM versions').fetchall()); c.close()"
    await upgrade(url)
    store = Store(url)
    try:
        await store.ping()
        await upgrade(url)
        for value in (1, 2):
            async with store.writing() as connection:
                await connection.execute(text("UPDATE versions SET value = :value"), {"value": value})
            done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
            assert done.stdout.strip() == f"[({value},)]", done.stderr
    finally:
        await store.close()
