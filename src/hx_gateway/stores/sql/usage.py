"""Usage records into the store: rows, their hourly sums and the place in the journal in one transaction, so that each counts once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import delete, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.routed import keep_routed
from hx_gateway.stores.sql.schema import DIMENSIONS, JOURNAL_POSITIONS, USAGE, USAGE_DAILY, USAGE_HOURLY

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_KEPT_MS = 30 * 24 * _HOUR_MS  # a position that nobody raised for so long belongs to a segment that is gone
_SUMS = tuple(column.name for column in USAGE_HOURLY.columns if column.name not in DIMENSIONS)
_RENAMED = {"grp": "group"}
_COLUMNS = tuple(column.name for column in USAGE.columns)
_AT = {name: index for index, name in enumerate(_COLUMNS)}
_NAMES = ", ".join(f'"{column}"' for column in _COLUMNS)
_INTO = f"INSERT INTO usage ({_NAMES})"
_ONCE = "ON CONFLICT DO NOTHING"
_EACH = f"{_INTO} VALUES ({', '.join('?' * len(_COLUMNS))}) {_ONCE}"  # SQLite, row by row
# All rows of a batch as one JSON text, to be told which of them were new.
_VALUES = ", ".join(f"json_extract(value, '$[{index}]')" for index in range(len(_COLUMNS)))
_FROM = f"{_INTO} SELECT"
_INSERT = {
    "sqlite": f"{_FROM} {_VALUES} FROM json_each(:rows) WHERE true {_ONCE} RETURNING id",
    "postgresql": f"{_FROM} {_NAMES} FROM json_populate_recordset(CAST(NULL AS usage), CAST(:rows AS json)) {_ONCE} RETURNING id",
}
# A commit that a crash of the server could take back would be too little to delete a segment for.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
_values = attrgetter(*(_RENAMED.get(column, column) for column in _COLUMNS))
_dimensions = itemgetter(*(_AT[name] for name in DIMENSIONS[1:]))
_summed = itemgetter(*(_AT["ttft_ms" if name == "ttft_count" else "id" if name == "requests" else name] for name in _SUMS))
_words = itemgetter(*(_AT[name] for name in ("user", "asked", "trail", "tags")))
_counts = itemgetter(*(_AT[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")))
_REFUSALS = ("22", "23", "54")  # Postgres: data exception, integrity violated, a limit exceeded


class Moved(Exception):
    """Someone else has shipped from the segment meanwhile: look where it stands now."""


async def position(store: Store, segment: str, start: int) -> int:
    """Offset up to which a segment was shipped; ``start`` where nothing was.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        found = await connection.scalar(select(JOURNAL_POSITIONS.c.offset).where(JOURNAL_POSITIONS.c.segment == segment))
    return start if found is None else int(found)


async def keep(store: Store, segment: str, before: int, end: int, records: Sequence[UsageRecord]) -> int:
    """Insert records and raise the segment's position from ``before`` to ``end``, all or nothing.

    Returns:
        How many were new.

    Raises:
        Moved: The position is not ``before``.
        StoreError: The database cannot be used, or refuses the records (`refused`).
    """
    rows = [row_of(record) for record in records]
    async with store.writing() as connection:
        if store.kind == "postgresql":
            await connection.execute(text(_DURABLE))
        await _raise_position(connection, segment, before, end)
        if not rows:
            return 0
        new = await _inserted(connection, store.kind, rows)
        if routed := [record for record in records if record.learned]:
            await keep_routed(connection, routed, {row[0] for row in new})
        if sums := hourly(new):
            for table, rolled_up in ((USAGE_HOURLY, sums), (USAGE_DAILY, daily(sums))):
                upsert = _insert(connection, table)
                raised = {name: table.c[name] + upsert.excluded[name] for name in _SUMS}
                await connection.execute(upsert.on_conflict_do_update(index_elements=list(table.primary_key), set_=raised), rolled_up)
    return len(new)


async def _inserted(connection: AsyncConnection, kind: str, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Insert rows; returns those that were not there."""
    if kind == "sqlite":
        # Half the work of the statement below, but it does not tell which were there already.
        await connection.exec_driver_sql("SAVEPOINT rows")
        if (await connection.exec_driver_sql(_EACH, rows)).rowcount == len(rows):
            return rows
        await connection.exec_driver_sql("ROLLBACK TO rows")
    given: list[Any] = rows if kind == "sqlite" else [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
    inserted = await connection.execute(text(_INSERT[kind]), {"rows": msgspec.json.encode(given).decode()})
    new = set(inserted.scalars())
    return [row for row in rows if row[0] in new]


def settle(store: Store) -> None:
    """Have what was committed survive a power cut: SQLite leaves that to its next checkpoint. Blocks.

    Raises:
        OSError: The disk fails.
    """
    if store.path is not None:
        with suppress(FileNotFoundError), Path(f"{store.path}-wal").open("rb") as log:
            os.fsync(log.fileno())


async def forget(store: Store, segments: Sequence[str]) -> None:
    """Drop the positions of segments that are gone, and of those that must be.

    Raises:
        StoreError: The database cannot be used.
    """
    where = or_(JOURNAL_POSITIONS.c.segment.in_(segments), JOURNAL_POSITIONS.c.updated_ms < _now_ms() - _KEPT_MS)
    async with store.writing() as connection:
        await connection.execute(delete(JOURNAL_POSITIONS).where(where))


def refused(error: BaseException) -> bool:
    """Whether the store took offence at a row; else it is in trouble itself, and the row is good."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    if isinstance(cause, OverflowError | ValueError | TypeError | IntegrityError | DataError):
        return True
    state = getattr(getattr(cause, "orig", None), "sqlstate", None)
    return isinstance(state, str) and state[:2] in _REFUSALS


def row_of(record: UsageRecord) -> tuple[Any, ...]:
    """The row of `usage` for a record: values in the order of the columns, the id first.

    Raises:
        OverflowError: A count is beyond 64 bits, which SQLite would take for a fraction.
    """
    row: tuple[Any, ...] = _values(record)
    for count in _counts(row):
        if count is not None and count >= 1 << 63:
            raise OverflowError("a count of tokens is beyond 64 bits")
    user, asked, trail, tags = _words(row)
    if trail is None and tags is None and "\0" not in user and "\0" not in asked:
        return row
    changed = list(row)
    for name, value in (("trail", trail), ("tags", tags)):
        if value is not None:
            changed[_AT[name]] = msgspec.json.encode(value).decode()
    for name, value in (("user", user), ("asked", asked)):  # a client's own words: Postgres takes no NUL
        changed[_AT[name]] = value.replace("\0", "")
    return tuple(changed)


def hourly(rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The rows of `usage_hourly` to add for rows of `usage`, in one order everywhere, so that two shippers never wait for each other."""
    alike: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    at = _AT["at_ms"]
    for row in rows:
        at_ms = row[at]
        alike.setdefault((at_ms - at_ms % _HOUR_MS, *_dimensions(row)), []).append(_summed(row))
    return [
        dict(zip(DIMENSIONS, dimensions, strict=True))
        | {
            name: len(column) - column.count(None) if name in ("requests", "ttft_count") else sum(filter(None, column))
            for name, column in zip(_SUMS, zip(*alike[dimensions], strict=True), strict=True)
        }
        for dimensions in sorted(alike)
    ]


def daily(sums: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `usage_daily` to add for those of `usage_hourly`, in one order everywhere."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for hour in sums:
        day_ms = hour["hour_ms"] - hour["hour_ms"] % _DAY_MS
        names = {name: hour[name] for name in DIMENSIONS[1:]}
        day = found.setdefault((day_ms, *names.values()), {"day_ms": day_ms, **names, **dict.fromkeys(_SUMS, 0)})
        for name in _SUMS:
            day[name] += hour[name]
    return [found[dimensions] for dimensions in sorted(found)]


async def _raise_position(connection: AsyncConnection, segment: str, before: int, end: int) -> None:
    upsert = _insert(connection, JOURNAL_POSITIONS).values(segment=segment, offset=end, updated_ms=_now_ms())
    upsert = upsert.on_conflict_do_update(
        index_elements=["segment"],
        set_={"offset": upsert.excluded.offset, "updated_ms": upsert.excluded.updated_ms},
        where=JOURNAL_POSITIONS.c.offset == before,
    )
    if (await connection.execute(upsert)).rowcount != 1:
        raise Moved(segment)


def _insert(connection: AsyncConnection, table: Any) -> Any:
    """An insert that knows ``ON CONFLICT``, which both databases have in their own words."""
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _now_ms() -> int:
    return int(time.time() * 1000)
