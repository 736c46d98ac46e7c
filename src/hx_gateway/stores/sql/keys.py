"""Keys in the store: every change raises their version and leaves a row in the audit log, in the same transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from hx_gateway.access.snapshot import Snapshot, StoredKey
from hx_gateway.core.context import KeyLimits
from hx_gateway.core.identifiers import new_id
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.schema import AUDIT, KEYS, VERSIONS

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from hx_gateway.ledger.audit import Deed

_JSON = ("tags", "models", "namespaces")
_SHOWN = ("owner", "team", "tags", "admin", "models", "namespaces", "show_endpoints", "limits", "expires_ms")
_COLUMNS = tuple(KEYS.c[name] for name in StoredKey.__struct_fields__)


class By(NamedTuple):
    """Who changes something, from where, and by which key of the store."""

    actor: str
    address: str
    id: str = ""


class KeyTaken(Exception):
    """There is a key of that name already; the message says so."""


class KeyMissing(Exception):
    """There is no such key; the message says so."""


class KeyEnded(Exception):
    """A revoked key cannot be changed; the message says so."""


async def create(store: Store, key: StoredKey, by: By) -> None:
    """Insert a key.

    Raises:
        KeyTaken: Another has its name, perhaps one that was revoked.
        StoreError: The database cannot be used.
    """
    async with store.writing() as connection:
        # Every change begins with this row: changes come one after the other, and the look at the name holds.
        await _raise_version(connection)
        taken = (await connection.execute(select(KEYS.c.revoked_ms).where(KEYS.c.name == key.name))).first()
        if taken is not None:
            revoked = " (it is revoked, and stays in the records)" if taken[0] is not None else ""
            raise KeyTaken(f"there is a key called {key.name!r} already{revoked}; choose another name")
        await connection.execute(insert(KEYS).values(_row(msgspec.structs.asdict(key))))
        await _note(connection, by, "key.create", key, {"hint": key.hint, **_told({name: getattr(key, name) for name in _SHOWN})})


async def change(store: Store, which: str, by: By, action: str, alter: Callable[[StoredKey], Mapping[str, Any]]) -> StoredKey:
    """Change one key.

    Args:
        store: The store.
        which: Its id or name.
        by: Who does it.
        action: What is done, for the audit log, e.g. ``key.rotate``.
        alter: Returns the fields of `StoredKey` that get another value; none leaves everything as it is.

    Returns:
        The key as it is now.

    Raises:
        KeyMissing: There is none.
        KeyEnded: It is revoked.
        StoreError: The database cannot be used.
    """
    async with store.writing() as connection:
        await _raise_version(connection)
        key = await _find(connection, which)
        fields = {name: value for name, value in alter(key).items() if getattr(key, name) != value}
        if key.revoked_ms is not None and fields:
            raise KeyEnded(f"the key {key.name!r} is revoked for good; make a new one")
        if fields:
            await connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(_row(fields)))
            await _note(connection, by, action, key, _told(fields))
        return msgspec.structs.replace(key, **fields)


async def get(store: Store, which: str) -> StoredKey:
    """One key by id or name.

    Raises:
        KeyMissing: There is none.
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        return await _find(connection, which)


async def page(store: Store, limit: int, after: str = "") -> list[StoredKey]:
    """Keys in the order they were made.

    Args:
        store: The store.
        limit: Most keys to return.
        after: Only those behind the key with this id.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        rows = await connection.execute(select(*_COLUMNS).where(KEYS.c.id > after).order_by(KEYS.c.id).limit(limit))
        return [_key(row) for row in rows.mappings()]


async def audit(store: Store, limit: int, before: str = "", subject: str = "", actor: str = "", action: str = "") -> list[dict[str, Any]]:
    """What was done, newest first.

    Args:
        store: The store.
        limit: Most rows to return.
        before: Only those older than the row with this id; empty for all.
        subject: Only what was done to what has this name; empty for all.
        actor: Only what was done by whom has this name; empty for all.
        action: Only this kind of deed, or with a dot at its end all that begin so; empty for all.

    Raises:
        StoreError: The database cannot be used.
    """
    rows = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    if before:
        rows = rows.where(AUDIT.c.id < before)
    if subject:
        rows = rows.where(AUDIT.c.subject == subject)
    if actor:
        rows = rows.where(AUDIT.c.actor == actor)
    if action:
        rows = rows.where(AUDIT.c.action.startswith(action, autoescape=True) if action.endswith(".") else AUDIT.c.action == action)
    async with store.reading() as connection:
        return [{**row, "detail": msgspec.json.decode(row["detail"])} for row in (await connection.execute(rows)).mappings()]


async def keep_deed(store: Store, deed: Deed) -> None:
    """Put a deed into the audit log, unless it is there.

    Raises:
        StoreError: The database cannot be used.
    """
    insert_once = (sqlite if store.kind == "sqlite" else postgresql).insert(AUDIT).on_conflict_do_nothing()
    row = {name: getattr(deed, name) for name in deed.__struct_fields__} | {"detail": _text(deed.detail)}
    async with store.writing() as connection:
        await connection.execute(insert_once.values(row))


async def version(store: Store) -> int:
    """How often keys were changed.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        return await _version(connection)


async def snapshot(store: Store, place: str) -> Snapshot:
    """All keys, with the version they have at least.

    Raises:
        StoreError: The database cannot be used.
    """
    async with store.reading() as connection:
        # The version first: keys that are newer than it says are read again, older ones would not be.
        number = await _version(connection)
        rows = await connection.execute(select(*_COLUMNS).order_by(KEYS.c.id))
        return Snapshot(place, number, tuple(_key(row) for row in rows.mappings()))


async def overtake(store: Store, known: Snapshot) -> None:
    """Go on from a store that has lost some of its past: its version gets above what was known of it, and what was revoked stays so.

    Raises:
        StoreError: The database cannot be used, or only be read.
    """
    async with store.writing() as connection:
        raised = update(VERSIONS).where(VERSIONS.c.name == "keys", VERSIONS.c.value < known.version).values(value=known.version + 1)
        if not (await connection.execute(raised)).rowcount:
            return  # another gateway was faster
        for key in known.keys:
            if key.revoked_ms is not None:
                again = update(KEYS).where(KEYS.c.id == key.id, KEYS.c.revoked_ms.is_(None)).values(revoked_ms=key.revoked_ms)
                if (await connection.execute(again)).rowcount:
                    await _note(connection, By("hx-gateway", ""), "key.revoke", key, {"why": "the store had forgotten it"})


async def _version(connection: AsyncConnection) -> int:
    found = await connection.scalar(select(VERSIONS.c.value).where(VERSIONS.c.name == "keys"))
    if found is None:
        raise StoreError("the database has lost the version of its keys; restore it from a copy")
    return int(found)


async def _raise_version(connection: AsyncConnection) -> None:
    await connection.execute(update(VERSIONS).where(VERSIONS.c.name == "keys").values(value=VERSIONS.c.value + 1))


async def _find(connection: AsyncConnection, which: str) -> StoredKey:
    matches = or_(KEYS.c.id == which, KEYS.c.name == which)
    row = (await connection.execute(select(*_COLUMNS).where(matches).order_by(KEYS.c.id != which).limit(1))).mappings().first()
    if row is None:
        raise KeyMissing(f"there is no key with the name or id {which!r} in the store")
    return _key(row)


async def _note(connection: AsyncConnection, by: By, action: str, key: StoredKey, detail: Mapping[str, Any]) -> None:
    now_s = time.time()
    await connection.execute(
        insert(AUDIT).values(
            id=new_id(now_s),
            at_ms=int(now_s * 1000),
            actor=by.actor,
            action=action,
            subject=key.name,
            detail=_text({"id": key.id, **({"by": by.id} if by.id else {}), **detail}),
            address=by.address,
        )
    )


def _told(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Changed fields as they may be told: no hashes."""
    return {name: msgspec.to_builtins(value) for name, value in fields.items() if name not in ("hash", "old_hash")}


def _row(fields: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(fields)
    for name in (*_JSON, "limits"):
        if name in row and row[name] is not None:
            row[name] = _text(row[name])
    return row


def _key(row: Mapping[Any, Any]) -> StoredKey:
    fields = dict(row)
    for name in _JSON:
        if fields[name] is not None:
            fields[name] = msgspec.json.decode(fields[name], type=tuple[str, ...])
    fields["limits"] = msgspec.json.decode(fields["limits"], type=KeyLimits)
    for name in ("hash", "old_hash"):
        if fields[name] is not None:
            fields[name] = bytes(fields[name])
    return StoredKey(**fields)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
