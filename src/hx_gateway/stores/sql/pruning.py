"""Takes what is past its time out of the store, a little at a time, and makes room for what is to come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from hx_gateway.core.identifiers import new_id
from hx_gateway.stores.sql import partitions
from hx_gateway.stores.sql.schema import AUDIT, BODIES, USAGE, USAGE_DAILY, USAGE_HOURLY

if TYPE_CHECKING:
    from sqlalchemy import Column

    from hx_gateway.stores.sql.engine import Store

_BATCH = 2000
_PAUSE_S = 0.05  # in which others may write
_MONTHS_AHEAD = 2


async def part_ahead(store: Store, now_ms: int) -> int:
    """On Postgres, make the partitions of this and the next months, and of months whose rows lie in the default partition.

    Returns:
        How many were made.

    Raises:
        StoreError: The database cannot be used, or is too busy.
    """
    wanted = [partitions.month_of(now_ms)]
    for _ in range(_MONTHS_AHEAD):
        wanted.append(partitions.month_of(wanted[-1].to_ms))
    async with store.reading() as connection:
        there = await connection.run_sync(partitions.partitions_of)
    made = [month for month in wanted if month not in there]
    for month in made:
        async with store.writing() as connection:
            await connection.run_sync(partitions.part, month)
    while True:
        async with store.writing() as connection:
            stray = await connection.run_sync(partitions.stray)
            if stray is None or stray in made:
                return len(made)
            await connection.run_sync(partitions.part, stray)
        made.append(stray)


async def prune_usage(store: Store, before_ms: int) -> dict[str, int]:
    """Take rows of usage out: on Postgres whole months that ended before, on SQLite each row from before.

    Returns:
        How many rows were deleted, and how many partitions were dropped with theirs.

    Raises:
        StoreError: The database cannot be used, or is too busy.
    """
    if store.kind == "sqlite":
        return {"deleted": await _delete(store, USAGE.c.at_ms, before_ms), "dropped": 0}
    async with store.reading() as connection:
        old = [month for month in await connection.run_sync(partitions.partitions_of) if month.to_ms <= before_ms]
    for month in old:
        async with store.writing() as connection:
            await connection.run_sync(partitions.drop, month)
    return {"deleted": 0, "dropped": len(old)}


async def prune_sums(store: Store, before_ms: int) -> int:
    """Take old sums by day and hour out, the beginning of a day; returns how many.

    Raises:
        StoreError: The database cannot be used, or is too busy.
    """
    return await _delete(store, USAGE_DAILY.c.day_ms, before_ms) + await _delete(store, USAGE_HOURLY.c.hour_ms, before_ms)


async def prune_audit(store: Store, before_ms: int) -> int:
    """Take old rows of the audit log out; returns how many."""
    return await _delete(store, AUDIT.c.id, new_id(before_ms / 1000)[:10])  # ids begin with their time


async def prune_bodies(store: Store, before_ms: int) -> int:
    """Take old bodies out; returns how many."""
    return await _delete(store, BODIES.c.at_ms, before_ms)


async def _delete(store: Store, column: Column[Any], before: Any) -> int:
    deleted = 0
    while True:
        old = select(column).where(column < before).order_by(column).offset(_BATCH - 1).limit(1)
        async with store.writing() as connection:
            last = await connection.scalar(old)
            gone = await connection.execute(delete(column.table).where(column < before if last is None else column <= last))
        deleted += gone.rowcount
        if last is None:
            return deleted
        await asyncio.sleep(_PAUSE_S)
