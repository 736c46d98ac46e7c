"""What was served where, in the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import case
from sqlalchemy.dialects import postgresql, sqlite

from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.schema import REGISTRY

if TYPE_CHECKING:
    from hx_gateway.stores.served import Row


async def note(store: Store, rows: Sequence[Row], now_ms: int) -> None:
    """Insert what is new and renew what is known; a digest that nobody tells any more stays.

    Raises:
        StoreError: The database cannot be used.
    """
    values = [
        {
            **msgspec.structs.asdict(row),
            "capabilities": msgspec.json.encode(row.capabilities).decode(),
            "context_length": row.context_length or None,
            "dimensions": row.dimensions or None,
            "first_seen_ms": now_ms,
            "seen_ms": now_ms,
        }
        for row in rows
    ]
    if not values:
        return
    upsert = (sqlite if store.kind == "sqlite" else postgresql).insert(REGISTRY)
    new = upsert.excluded
    renewed = {name: new[name] for name in ("provider", "capabilities", "context_length", "dimensions", "seen_ms")}
    renewed["digest"] = case((new.digest != "", new.digest), else_=REGISTRY.c.digest)
    async with store.writing() as connection:
        await connection.execute(upsert.on_conflict_do_update(index_elements=["name", "endpoint", "model"], set_=renewed), values)
