"""Bodies of requests and answers into the store, each once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy.dialects import postgresql, sqlite

from hx_gateway.stores.sql.schema import BODIES

if TYPE_CHECKING:
    from hx_gateway.ledger.bodies import Kept
    from hx_gateway.stores.sql.engine import Store


async def keep(store: Store, bodies: Sequence[Kept]) -> None:
    """Insert bodies; those that are there already stay as they are.

    Raises:
        StoreError: The database cannot be used.
    """
    insert = (sqlite if store.kind == "sqlite" else postgresql).insert(BODIES).on_conflict_do_nothing()
    async with store.writing() as connection:
        await connection.execute(insert, [dict(zip(("id", "at_ms", "request", "response"), one, strict=True)) for one in bodies])
