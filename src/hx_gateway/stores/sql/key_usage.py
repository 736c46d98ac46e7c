"""What keys used, as the ledger has it, and when each was used last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, func, or_, select, update

from hx_gateway.stores.sql.schema import KEYS, USAGE, USAGE_HOURLY

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_HOUR_MS = 3_600_000


async def totals(store: Store, from_ms: int, to_ms: int) -> dict[tuple[str, str], tuple[int, float]]:
    """Tokens and money that count for budgets, by id (empty for keys of the configuration) and name of the key.

    Args:
        store: The store.
        from_ms: Beginning of the first hour, Unix milliseconds.
        to_ms: End of the last.

    Raises:
        StoreError: The database cannot be used.
    """
    table = USAGE_HOURLY.c
    sums = (func.sum(table.prompt_tokens + table.completion_tokens), func.sum(table.cost))
    where = (table.hour_ms >= from_ms, table.hour_ms < to_ms, table.cached == "", table.key_name != "")
    async with store.reading() as connection:
        rows = await connection.execute(select(table.key_id, table.key_name, *sums).where(*where).group_by(table.key_id, table.key_name))
        return {(id, name): (int(tokens), float(cost)) for id, name, tokens, cost in rows}


async def note_use(store: Store, since_ms: int, hours_since_ms: int | None = None) -> int:
    """Write down when keys of the store were used last; returns how many were used.

    Args:
        store: The store.
        since_ms: Rows of usage from then on are looked at.
        hours_since_ms: Sums by the hour from then on, too; they tell the beginning of the hour.

    Raises:
        StoreError: The database cannot be used.
    """
    sources = [(USAGE.c.key_id, USAGE.c.at_ms, since_ms)]
    if hours_since_ms is not None:
        sources.insert(0, (USAGE_HOURLY.c.key_id, USAGE_HOURLY.c.hour_ms, hours_since_ms - hours_since_ms % _HOUR_MS))
    found: dict[str, int] = {}
    async with store.reading() as connection:
        for id, at_ms, from_ms in sources:
            rows = await connection.execute(select(id, func.max(at_ms)).where(at_ms >= from_ms, id != "").group_by(id))
            for key, last_ms in rows:
                found[key] = max(found.get(key, 0), last_ms)
    if found:
        later = or_(KEYS.c.used_ms.is_(None), KEYS.c.used_ms < bindparam("last"))
        raised = update(KEYS).where(KEYS.c.id == bindparam("key"), later).values(used_ms=bindparam("last"))
        async with store.writing() as connection:
            await connection.execute(raised, [{"key": key, "last": last_ms} for key, last_ms in sorted(found.items())])
    return len(found)
