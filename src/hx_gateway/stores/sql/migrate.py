"""Moves everything from one database into another: slice by slice, to be interrupted and run again at any moment, and proven by checksums."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import BigInteger, Column, MetaData, Table, Text, delete, func, insert, inspect, literal, select

from hx_gateway.stores.known_keys import place_of
from hx_gateway.stores.sql import partitions
from hx_gateway.stores.sql.engine import Store, StoreError
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
from hx_gateway.stores.sql.upgrade import newest, opened, ready, revision_of

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

_DAY_MS = 86_400_000
_STATEMENT_S = 600.0
_TRIES = 3
_MARK = Table(
    "hx_gateway_migration", MetaData(), Column("source", Text, primary_key=True), Column("started_ms", BigInteger, nullable=False)
)
"""In the target: where its content comes from."""


class _Plan(NamedTuple):
    """How a table is moved.

    Args:
        table: The table.
        time: The column whose days are its slices; None to move it as one.
        size: What tells, summed over a slice, whether it has changed: rows are added, and never altered but for their sums.
        batch: Rows of one transaction.
    """

    table: Table
    time: Column[Any] | None
    size: ColumnElement[Any]
    batch: int


_COUNT = func.count()
# Keys last: a target that has keys has the rest. Positions in the journal are left out on purpose: the target knows by their ids
# which records it has, while a position that was ahead of the rows would lose some.
_PLANS = (
    _Plan(USAGE, USAGE.c.at_ms, _COUNT, 5000),
    _Plan(USAGE_HOURLY, USAGE_HOURLY.c.hour_ms, func.coalesce(func.sum(USAGE_HOURLY.c.requests), 0), 5000),
    _Plan(USAGE_DAILY, USAGE_DAILY.c.day_ms, func.coalesce(func.sum(USAGE_DAILY.c.requests), 0), 5000),
    _Plan(BODIES, BODIES.c.at_ms, _COUNT, 50),
    _Plan(ROUTED, ROUTED.c.at_ms, _COUNT, 1000),
    _Plan(FEEDBACK, None, _COUNT + func.count(FEEDBACK.c.applied), 5000),
    _Plan(ARTIFACTS, None, _COUNT, 5),
    _Plan(LEARNED, None, func.coalesce(func.sum(LEARNED.c.revision), 0), 5),
    _Plan(AUDIT, None, _COUNT, 5000),
    _Plan(REGISTRY, None, _COUNT, 5000),
    _Plan(VERSIONS, None, _COUNT, 5000),
    _Plan(KEYS, None, _COUNT, 5000),
)


class Checksum(NamedTuple):
    """What rows come to, in whatever order they are read: their number, and the sum of their hashes."""

    rows: int = 0
    sum: int = 0

    def add(self, other: Checksum) -> Checksum:
        """Both together."""
        return Checksum(self.rows + other.rows, (self.sum + other.sum) % (1 << 128))

    def __str__(self) -> str:
        return f"{self.sum:032x}"


_NOTHING = Checksum()


@dataclass(slots=True)
class Moved:
    """What became of one table.

    Args:
        table: Its name.
        source: What was read.
        target: What is there now, as read back.
        copied: Rows written by this run.
        later: What the source has grown by meanwhile, in rows (of the roll-up in requests).
    """

    table: str
    source: Checksum = _NOTHING
    target: Checksum = _NOTHING
    copied: int = 0
    later: int = 0


class Refused(StoreError):
    """The migration cannot be done as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a migration would find.

    Args:
        rows: By table, of the source and of the target.
        begun: Whether the target has been begun from this source.
    """

    rows: dict[str, tuple[int, int]]
    begun: bool


@asynccontextmanager
async def between(source_url: str, target_url: str, dry: bool = False) -> AsyncIterator[tuple[Store, Store | None]]:
    """Both stores, once it is sure that one may be moved into the other; None for a target that is not there yet, on a dry run.

    Raises:
        Refused: The source is no store of this release, or the target holds something else or is in use.
        StoreError: One of them cannot be used.
    """
    if source_url == target_url:
        raise Refused("source and target are the same database")
    source = Store(source_url, _STATEMENT_S)
    target: Store | None = None
    try:
        if source.path is not None and not source.path.exists():
            raise Refused("there is no such SQLite file to move from")
        if not await ready(source):
            raise Refused(
                f"the source has not the schema {newest()} of this release: run hx-gateway db upgrade with it, or start the gateway once"
            )
        target = await _opened(target_url, dry)
        if target is not None:
            await _claim(source, target, dry)
        yield source, target
    finally:
        await source.close()
        if target is not None:
            await target.close()


async def _opened(url: str, dry: bool) -> Store | None:
    if not dry:
        return await opened(url, _STATEMENT_S)
    store = Store(url, _STATEMENT_S)
    if store.path is not None and not store.path.exists():
        return None
    try:
        async with store.reading() as connection:
            there = await connection.run_sync(revision_of)
    except StoreError:
        await store.close()
        raise
    if there == newest():
        return store
    await store.close()
    if there:
        raise Refused(f"the target has the schema {there}, this release needs {newest()}: run hx-gateway db upgrade on it first")
    return None


async def _begun(connection: AsyncConnection, source: Store) -> bool | None:
    """Whether the target was begun from this source; None where it was begun from none."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(_MARK.name)):
        return None
    marks = set((await connection.execute(select(_MARK.c.source))).scalars())
    return _mark_of(source) in marks if marks else None


def _mark_of(source: Store) -> str:
    return place_of(f"sqlite:///{source.path.resolve()}" if source.path is not None else source.url)


async def _claim(source: Store, target: Store, dry: bool) -> None:
    async with target.reading() as connection:
        if await connection.scalar(select(JOURNAL_POSITIONS.c.segment).limit(1)) is not None:
            raise Refused("a gateway has written usage to the target already, which would be lost: move into an empty database instead")
        begun = await _begun(connection, source)
        if begun is False:
            raise Refused("the target was filled from another database: move into an empty one")
        if begun is None:
            for plan in _PLANS:
                if plan.table is not VERSIONS and await connection.scalar(select(literal(1)).select_from(plan.table).limit(1)):
                    raise Refused(f"the target is not empty, its table {plan.table.name} has rows: move into an empty database")
    async with source.reading() as old, target.reading() as new:
        value = select(VERSIONS.c.value).where(VERSIONS.c.name == "keys")
        if (await new.scalar(value) or 0) > (await old.scalar(value) or 0):
            raise Refused("the keys of the target were changed after those of the source: move into an empty database")
    if begun is None and not dry:
        async with target.writing() as connection:
            await connection.run_sync(_MARK.create, checkfirst=True)
            await connection.execute(insert(_MARK).values(source=_mark_of(source), started_ms=int(time.time() * 1000)))


async def outlook(source: Store, target: Store | None) -> Outlook:
    """What there is to move; nothing is changed."""

    async def rows(store: Store) -> list[int]:
        async with store.reading() as connection:
            return [int(await connection.scalar(select(_COUNT).select_from(plan.table)) or 0) for plan in _PLANS]

    before = await rows(source)
    after = await rows(target) if target is not None else [0] * len(_PLANS)
    begun = False
    if target is not None:
        async with target.reading() as connection:
            begun = await _begun(connection, source) is True
    names = [plan.table.name for plan in _PLANS]
    return Outlook(dict(zip(names, zip(before, after, strict=True), strict=True)), begun)


async def move(source: Store, target: Store, told: Callable[[str, int], None] = lambda table, rows: None) -> list[Moved]:
    """Make the target equal to the source, and read both back to prove it.

    Each slice is a day (UTC) of a table, or a small table as a whole. One that has another size in the target is written anew; so an
    interrupted run is simply run again, and a second run brings what came meanwhile.

    Args:
        source: Where from; it may be in use.
        target: Where to, from `between`.
        told: Called with a table's name and how many of its rows were proven just now.

    Returns:
        One entry for each table; where checksums differ the migration has failed.

    Raises:
        StoreError: One of them cannot be used.
    """
    found = []
    for plan in _PLANS:
        moved = Moved(plan.table.name)
        try:
            sizes = await _sizes(source, plan)
            if plan.table is USAGE and target.kind == "postgresql":
                await _part(target, sizes)
            there = await _sizes(target, plan)
            for day in sorted(sizes.keys() | there.keys()):
                if plan.table is USAGE and there.get(day) not in (None, sizes.get(day)):
                    await _refuse_strangers(source, target, day)
                read, back, copied = await _slice_moved(source, target, plan, day, sizes.get(day) == there.get(day))
                moved.copied += copied
                moved.source, moved.target = moved.source.add(read), moved.target.add(back)
                told(plan.table.name, read.rows)
            now = await _sizes(source, plan)
        except Refused:
            raise
        except StoreError as error:
            raise StoreError(f"table {plan.table.name}: {error}") from error
        moved.later = sum(abs(now.get(day, 0) - sizes.get(day, 0)) for day in now.keys() | sizes.keys())
        found.append(moved)
    return found


async def _slice_moved(source: Store, target: Store, plan: _Plan, day: int, same: bool) -> tuple[Checksum, Checksum, int]:
    """Make one slice equal: what was read, what was read back, and how many rows were written."""
    copied = 0
    same = same and plan.time is not None  # a small table may have changed without growing
    for _ in range(_TRIES):
        read = await _read(source, plan, day) if same else await _copy(source, target, plan, day)
        back = await _read(target, plan, day)
        copied += 0 if same else read.rows
        if read == back:
            break
        if same and plan.table is USAGE:
            await _refuse_strangers(source, target, day)
        same = False
    return read, back, copied


async def _refuse_strangers(source: Store, target: Store, day: int) -> None:
    """Refuse to write a day of usage anew that has rows which the source has not, but for those that are past their time there."""
    rows = select(USAGE.c.id, USAGE.c.at_ms).where(USAGE.c.at_ms >= day, USAGE.c.at_ms < day + _DAY_MS)
    async with target.reading() as connection:  # first: what comes into the source meanwhile is no stranger
        there = {row.id: row.at_ms for row in await connection.execute(rows)}
    async with source.reading() as connection:
        oldest_ms = await connection.scalar(select(func.min(USAGE.c.at_ms)))
        known = set((await connection.execute(rows.with_only_columns(USAGE.c.id))).scalars())
    if strange := sum(id not in known and (oldest_ms is None or at_ms >= oldest_ms) for id, at_ms in there.items()):
        raise Refused(f"the target has {strange} requests of its own, a gateway has used it: move into an empty database")


async def _sizes(store: Store, plan: _Plan) -> dict[int, int]:
    """The size of every slice; a table without slices has the one slice 0."""
    async with store.reading() as connection:
        if plan.time is None:
            return {0: int(await connection.scalar(select(plan.size).select_from(plan.table)) or 0)}
        day = (plan.time - plan.time % _DAY_MS).label("day")
        rows = await connection.execute(select(day, plan.size).select_from(plan.table).group_by("day"))
        return {int(key): int(size) for key, size in rows}


def _slice(plan: _Plan, day: int) -> list[ColumnElement[bool]]:
    return [] if plan.time is None else [plan.time >= day, plan.time < day + _DAY_MS]


async def _batches(store: Store, plan: _Plan, day: int) -> AsyncIterator[list[tuple[Any, ...]]]:
    """The rows of a slice in order of its key, as they are at one moment."""
    table = plan.table
    order = [column for column in (plan.time, *table.primary_key.columns) if column is not None]
    async with store.reading() as connection:
        rows = await connection.stream(select(table).where(*_slice(plan, day)).order_by(*order))
        async for part in rows.partitions(plan.batch):
            yield [_plain(row) for row in part]


def _plain(row: Sequence[Any]) -> tuple[Any, ...]:
    """A row in the same types from every driver; SQLite knows no negative zero."""
    return tuple(
        value + 0.0 if type(value) is float else bytes(value) if isinstance(value, memoryview | bytearray) else value for value in row
    )


def _sum(rows: Sequence[tuple[Any, ...]]) -> Checksum:
    encode = msgspec.msgpack.encode
    total = sum(int.from_bytes(blake2b(encode(row), digest_size=16).digest(), "big") for row in rows)
    return Checksum(len(rows), total % (1 << 128))


async def _read(store: Store, plan: _Plan, day: int) -> Checksum:
    found = _NOTHING
    async for rows in _batches(store, plan, day):
        found = found.add(_sum(rows))
    return found


async def _copy(source: Store, target: Store, plan: _Plan, day: int) -> Checksum:
    """Write a slice anew: what was there of it goes with its first batch, a small table changes in one transaction."""
    found = _NOTHING
    clear = delete(plan.table).where(*_slice(plan, day))
    if plan.time is None:
        async with target.writing() as connection:
            await connection.execute(clear)
            async for rows in _batches(source, plan, day):
                await _write(connection, plan.table, rows)
                found = found.add(_sum(rows))
        return found
    first = True
    async for rows in _batches(source, plan, day):
        async with target.writing() as connection:
            if first:
                await connection.execute(clear)
            await _write(connection, plan.table, rows)
        first = False
        found = found.add(_sum(rows))
    if first:
        async with target.writing() as connection:
            await connection.execute(clear)
    return found


async def _write(connection: AsyncConnection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    names = [column.name for column in table.columns]
    if connection.dialect.name == "sqlite":
        marks = ", ".join("?" * len(names))
        quoted = ", ".join(f'"{name}"' for name in names)
        await connection.exec_driver_sql(f'INSERT INTO "{table.name}" ({quoted}) VALUES ({marks})', rows)  # noqa: S608 # names of ours
        return
    await connection.execute(select(literal(1)))  # the driver's transaction begins with the first statement
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    await raw.copy_records_to_table(table.name, records=rows, columns=names)


async def _part(target: Store, days: dict[int, int]) -> None:
    """Have a partition for every month that is to come."""
    for month in sorted({partitions.month_of(day) for day in days}):
        async with target.writing() as connection:
            await connection.run_sync(partitions.part, month)
