"""Decisions of groups that learn, in the store: written with the usage they belong to, read back for a replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, select
from sqlalchemy.dialects import postgresql, sqlite

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.routing.learned.choice import EXPLORE, unpacked
from hx_gateway.stores.sql.schema import BODIES, FEEDBACK, ROUTED, USAGE

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from hx_gateway.stores.sql.engine import Store

_MOST_BYTES = 16 << 10  # of features; a prompt has 5 kB at most


async def keep_routed(connection: AsyncConnection, records: Sequence[UsageRecord], new: Collection[str]) -> None:
    """Insert what was made of prompts, for records whose id is in ``new``."""
    rows = []
    for record in records:
        if record.id not in new or record.learned is None:
            continue
        try:
            detail, features = unpacked(record.learned)
            packed = features.pack()
        except (ValueError, TypeError):
            continue  # of another version of the gateway: its usage counts, what it learned from is left out
        if len(packed) <= _MOST_BYTES:
            text = msgspec.json.encode(detail).decode()
            rows.append((record.id, record.at_ms, record.group, record.model, packed, text))
    if rows:
        insert = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(ROUTED).on_conflict_do_nothing()
        names = [column.name for column in ROUTED.columns]
        await connection.execute(insert, [dict(zip(names, row, strict=True)) for row in rows])


async def decisions(store: Store, group: str, from_ms: int, to_ms: int, most: int) -> list[dict[str, Any]]:
    """Decisions of a group in a span, the latest first: the columns of `routed`, ``detail`` decoded, and of `usage` what it cost and took.

    Raises:
        StoreError: The database cannot be used.
    """
    taken = (USAGE.c.duration_ms, USAGE.c.cost, USAGE.c.outcome, USAGE.c.prompt_tokens, USAGE.c.completion_tokens)
    span = and_(ROUTED.c.grp == group, ROUTED.c.at_ms >= from_ms, ROUTED.c.at_ms < to_ms)
    joined = ROUTED.join(USAGE, and_(USAGE.c.at_ms == ROUTED.c.at_ms, USAGE.c.id == ROUTED.c.id))
    asked = select(ROUTED, *taken).select_from(joined).where(span).order_by(ROUTED.c.at_ms.desc()).limit(most)
    async with store.reading() as connection:
        rows = (await connection.execute(asked)).mappings().all()
    return [{**row, "detail": msgspec.json.decode(row["detail"])} for row in rows]


async def tally(store: Store, group: str, from_ms: int, most: int, challenger: str | None) -> dict[str, Any]:
    """What became of the latest decisions of a group since a moment.

    Args:
        store: The store.
        group: The group.
        from_ms: Unix milliseconds.
        most: Decisions at most.
        challenger: Version of the artifact in shadow; None for none.

    Returns:
        ``decisions`` (how many), ``models`` and ``rules`` (how many by model that answered, and by what decided), and of those that the
        challenger was asked and no draw made: ``shadowed``, and ``agreed`` (how many it would have given to the same model).

    Raises:
        StoreError: The database cannot be used.
    """
    asked = select(ROUTED.c.model, ROUTED.c.detail).where(ROUTED.c.grp == group, ROUTED.c.at_ms >= from_ms)
    async with store.reading() as connection:
        rows = (await connection.execute(asked.order_by(ROUTED.c.at_ms.desc()).limit(most))).all()
    known = [(model, msgspec.json.decode(detail)) for model, detail in rows]
    shadow = [
        detail["shadow"] == model
        for model, detail in known
        if challenger is not None
        and detail["shadow"]
        and detail["shadow_version"] == challenger[: len(detail["shadow_version"])]
        and detail["rule"] != EXPLORE
    ]
    return {
        "decisions": len(known),
        "models": dict(Counter(model for model, _ in known)),
        "rules": dict(Counter(detail["rule"] for _, detail in known)),
        "shadowed": len(shadow),
        "agreed": sum(shadow),
    }


async def unjudged(store: Store, group: str, after_ms: int, most: int) -> list[Any]:
    """Answers of a group that nobody has judged and whose bodies are kept, the oldest first: ``id``, ``at_ms``, ``request``, ``response``.

    Raises:
        StoreError: The database cannot be used.
    """
    joined = ROUTED.join(BODIES, BODIES.c.id == ROUTED.c.id).outerjoin(FEEDBACK, FEEDBACK.c.id == ROUTED.c.id)
    asked = select(ROUTED.c.id, ROUTED.c.at_ms, BODIES.c.request, BODIES.c.response).select_from(joined)
    asked = asked.where(ROUTED.c.grp == group, ROUTED.c.at_ms > after_ms, FEEDBACK.c.id.is_(None))
    async with store.reading() as connection:
        return list((await connection.execute(asked.order_by(ROUTED.c.at_ms).limit(most))).all())
