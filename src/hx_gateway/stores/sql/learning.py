"""Feedback, artifacts and the standing of groups that learn, in the store."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hx_gateway.stores.learned_files import Standing
from hx_gateway.stores.sql import reports
from hx_gateway.stores.sql.engine import StoreError
from hx_gateway.stores.sql.schema import ARTIFACTS, FEEDBACK, LEARNED, ROUTED

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from hx_gateway.ledger.feedback import Feedback
    from hx_gateway.stores.sql.engine import Store

TURNS = 100
"""Most judged answers that are learned from in one go."""


class Overtaken(StoreError):
    """Another gateway's housekeeper has written the standing meanwhile: read it again."""


async def judged(connection: AsyncConnection, id: str) -> tuple[str, str, str, float | None] | None:
    """The key that made a request, its group, the model that answered, and the score it was given, if any; None for an unknown request."""
    found = await reports.one(connection, id)
    if found is None:
        return None
    score = await connection.scalar(select(FEEDBACK.c.score).where(FEEDBACK.c.id == id))
    return found["key_name"], found["grp"], found["model"], score


async def keep(store: Store, given: Feedback) -> str:
    """Store feedback on a request, once.

    Returns:
        What became of it: ``kept``, ``unknown`` (there is no such request), ``foreign`` (it is not the key's own), or
        ``repeated``: there is some already, which stays.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.writing() as connection:
        found = await judged(connection, given.id)
        if found is None:
            return "unknown"
        key, group, model, score = found
        if not given.admin and key != given.key_name:
            return "foreign"
        insert = (sqlite if store.kind == "sqlite" else postgresql).insert(FEEDBACK).on_conflict_do_nothing()
        row = {
            "id": given.id, "at_ms": given.at_ms, "grp": group, "model": model, "key_name": given.key_name, "score": given.score,
            "comment": given.comment, "applied": None,
        }  # fmt: skip
        await connection.execute(insert, [row])
        return "kept" if score is None else "repeated"


async def turns(store: Store, group: str) -> list[Any]:
    """The next judged answers of a group to learn from, oldest first: ``id``, ``model``, ``score``, ``features``.

    Raises:
        StoreError: The database cannot be used.
    """
    asked = select(FEEDBACK.c.id, FEEDBACK.c.model, FEEDBACK.c.score, ROUTED.c.features)
    asked = asked.join(ROUTED, ROUTED.c.id == FEEDBACK.c.id).where(FEEDBACK.c.grp == group, FEEDBACK.c.applied.is_(None))
    async with store.reading() as connection:
        return list((await connection.execute(asked.order_by(FEEDBACK.c.at_ms, FEEDBACK.c.id).limit(TURNS))).all())


async def standing(store: Store, group: str) -> tuple[int, Standing]:
    """Where a group stands, and the revision of that; revision 0 for one that has not begun.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        found = (await connection.execute(select(LEARNED.c.revision, LEARNED.c.standing).where(LEARNED.c.grp == group))).first()
    return (0, Standing()) if found is None else (int(found[0]), msgspec.msgpack.decode(found[1], type=Standing))


async def write(store: Store, group: str, revision: int, standing: Standing, applied: Sequence[str] = ()) -> int:
    """Write where a group stands, if it is still at ``revision``, and the turns of the answers it has learned from; returns the new revision.

    Raises:
        Overtaken: It is not; nothing is written.
        StoreError: The database cannot be used.
    """
    values = {"revision": revision + 1, "standing": msgspec.msgpack.encode(standing), "updated_ms": int(time.time() * 1000)}
    async with store.writing() as connection:
        if revision:
            done = await connection.execute(update(LEARNED).where(LEARNED.c.grp == group, LEARNED.c.revision == revision).values(**values))
        else:
            insert = (sqlite if store.kind == "sqlite" else postgresql).insert(LEARNED).on_conflict_do_nothing()
            done = await connection.execute(insert.values(grp=group, **values))
        if done.rowcount != 1:
            raise Overtaken(f"the standing of {group} was written by another gateway")
        for turn, id in enumerate(applied, start=standing.judged - len(applied) + 1):
            await connection.execute(update(FEEDBACK).where(FEEDBACK.c.id == id).values(applied=turn))
    return revision + 1


async def keep_artifact(store: Store, group: str, version: str, data: bytes) -> bool:
    """Store an artifact for a group; whether it was new.

    Raises:
        StoreError: The database cannot be used.
    """
    insert = (sqlite if store.kind == "sqlite" else postgresql).insert(ARTIFACTS).on_conflict_do_nothing()
    async with store.writing() as connection:
        done = await connection.execute(insert.values(grp=group, version=version, created_ms=int(time.time() * 1000), data=data))
        return done.rowcount == 1


async def artifacts(store: Store, group: str, versions: Collection[str] | None = None) -> dict[str, tuple[int, bytes]]:
    """Artifacts of a group by version: when they came, in milliseconds of Unix time, and their bytes (empty where no versions are named).

    Raises:
        StoreError: The database cannot be used.
    """
    columns = (ARTIFACTS.c.version, ARTIFACTS.c.created_ms, *((ARTIFACTS.c.data,) if versions is not None else ()))
    asked = select(*columns).where(ARTIFACTS.c.grp == group)
    if versions is not None:
        asked = asked.where(ARTIFACTS.c.version.in_(list(versions)))
    async with store.reading() as connection:
        rows = (await connection.execute(asked.order_by(ARTIFACTS.c.created_ms))).all()
    return {row[0]: (int(row[1]), row[2] if versions is not None else b"") for row in rows}


async def prune(store: Store, before_ms: int) -> int:
    """Take decisions out that came before; feedback stays, what has not been learned from is then never. Returns how many.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.writing() as connection:
        return (await connection.execute(delete(ROUTED).where(ROUTED.c.at_ms < before_ms))).rowcount
