"""What keys used, as the ledger has it, and when each was used last."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import bindparam, case, func, or_, select, update

from hx_gateway.stores.sql.schema import KEYS, USAGE, USAGE_DAILY, USAGE_HOURLY

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_HOUR_MS = 3_600_000


class Spent(NamedTuple):
    """What counts for a key's budgets."""

    id: str  # empty for keys of the configuration
    name: str
    day_tokens: int
    day_cost: float
    month_tokens: int
    month_cost: float


async def totals(store: Store, month_ms: int, day_ms: int) -> list[Spent]:
    """What keys spent of their budgets.

    Args:
        store: The store.
        month_ms: Beginning of the month, Unix milliseconds.
        day_ms: Beginning of the day.

    Raises:
        StoreError: The database cannot be used.
    """
    table = USAGE_DAILY.c
    tokens, cost, today = table.prompt_tokens + table.completion_tokens, table.cost, table.day_ms >= day_ms
    sums = [func.sum(case((today, tokens), else_=0)), func.sum(case((today, cost), else_=0.0)), func.sum(tokens), func.sum(cost)]
    where = (table.day_ms >= month_ms, table.cached == "", table.key_name != "")
    async with store.reading() as connection:
        rows = await connection.execute(select(table.key_id, table.key_name, *sums).where(*where).group_by(table.key_id, table.key_name))
        return [Spent(id, name, int(day), float(paid), int(month), float(all)) for id, name, day, paid, month, all in rows]


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
