"""Usage records into the store: rows, their hourly sums and the place in the journal in one transaction, so that each counts once."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import delete, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.schema import DIMENSIONS, JOURNAL_POSITIONS, USAGE, USAGE_HOURLY

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_HOUR_MS = 3_600_000
_KEPT_MS = 30 * 24 * _HOUR_MS  # a position that nobody raised for so long belongs to a segment that is gone
_SUMS = tuple(column.name for column in USAGE_HOURLY.columns if column.name not in DIMENSIONS)
_RENAMED = {"grp": "group"}
_JSON = ("trail", "tags")
_FIELDS = tuple((column.name, _RENAMED.get(column.name, column.name)) for column in USAGE.columns)
_NAMES = ", ".join(f'"{column}"' for column, _ in _FIELDS)
# All rows of a batch as one JSON text: the database takes them apart in a third of the time that as many parameters take.
_VALUES = ", ".join(f"json_extract(value, '$[{index}]')" for index in range(len(_FIELDS)))
_INTO = f"INSERT INTO usage ({_NAMES}) SELECT"
_ONCE = "ON CONFLICT DO NOTHING RETURNING id"
_INSERT = {
    "sqlite": f"{_INTO} {_VALUES} FROM json_each(:rows) WHERE true {_ONCE}",
    "postgresql": f"{_INTO} {_NAMES} FROM json_populate_recordset(CAST(NULL AS usage), CAST(:rows AS json)) {_ONCE}",
}
# A commit that a crash of the server could take back would be too little to delete a segment for.
_DURABLE = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")
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
        given = [list(row.values()) for row in rows] if store.kind == "sqlite" else rows
        inserted = await connection.execute(text(_INSERT[store.kind]), {"rows": msgspec.json.encode(given).decode()})
        new = set(inserted.scalars())
        if sums := hourly([row for row in rows if row["id"] in new]):
            upsert = _insert(connection, USAGE_HOURLY)
            raised = {name: USAGE_HOURLY.c[name] + upsert.excluded[name] for name in _SUMS}
            await connection.execute(upsert.on_conflict_do_update(index_elements=DIMENSIONS, set_=raised), sums)
    return len(new)


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


def row_of(record: UsageRecord) -> dict[str, Any]:
    """The row of `usage` for a record, its columns in their order.

    Raises:
        OverflowError: A count is beyond 64 bits, which SQLite would take for a fraction.
    """
    row = {column: getattr(record, field) for column, field in _FIELDS}
    for name in _JSON:
        if row[name] is not None:
            row[name] = msgspec.json.encode(row[name]).decode()
    for name in ("user", "asked"):  # a client's own words: Postgres takes no NUL
        row[name] = row[name].replace("\0", "")
    for name in _COUNTS:
        if row[name] is not None and row[name] >= 1 << 63:
            raise OverflowError(f"{name} is beyond 64 bits")
    return row


def hourly(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `usage_hourly` to add for rows of `usage`, in one order everywhere, so that two shippers never wait for each other."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        at_ms = row["at_ms"]
        dimensions = (at_ms - at_ms % _HOUR_MS, *(row[name] for name in DIMENSIONS[1:]))
        sums = found.setdefault(dimensions, [0] * len(_SUMS))
        for index, name in enumerate(_SUMS):
            if name == "requests":
                sums[index] += 1
            elif name == "ttft_count":
                sums[index] += row["ttft_ms"] is not None
            else:
                sums[index] += row[name] or 0
    return [dict(zip((*DIMENSIONS, *_SUMS), (*dimensions, *found[dimensions]), strict=True)) for dimensions in sorted(found)]


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
