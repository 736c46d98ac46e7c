"""Brings a database to the newest schema: once, however many processes start together, and never a newer one back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from hx_gateway.stores.sql.engine import Store, StoreError, plain, touch
from hx_gateway.stores.sql.schema import METADATA

VERSION_TABLE = "hx_gateway_schema"  # not Alembic's usual name: another program in the same database may have that one
_ADVISORY_LOCK = 0x68_78_67_77  # "hxgw"
_LONGEST_S = 3600.0  # a step may rewrite a large table
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What an upgrade did.

    Args:
        before: The revision found; empty for an empty database.
        after: The revision now.
        backup: The copy made of a SQLite file before it was changed.
    """

    before: str
    after: str
    backup: Path | None = None


def steps() -> ScriptDirectory:
    """The steps of this release."""
    folder = str(Path(__file__).parent / "migrations")
    return ScriptDirectory(folder, version_locations=[folder])


def newest() -> str:
    """The revision that this release makes and needs."""
    return steps().get_current_head() or ""


async def upgrade(url: str, to: str = "head") -> Upgrade:
    """Bring the database to the newest schema; what is there stays.

    All steps are one transaction: the database has the old schema or the new one, nothing in between.

    Args:
        url: As for `Store`.
        to: The revision to stop at, for tests.

    Raises:
        StoreError: The database cannot be used, belongs to another program, or was made by a newer release.
    """
    store = Store(url, _LONGEST_S, connections=1)
    try:
        if store.path is None:
            async with store.writing() as connection:
                # Waiting for another process that does the same takes as long as its steps do.
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                before, after = await connection.run_sync(_run, to)
            return Upgrade(before, after)
        touch(store.path)
        async with _alone(store.path):
            async with store.reading() as connection:
                before = await connection.run_sync(revision_of)
            backup = None
            if before and _pending(before, to):
                backup = store.path.with_name(f"{store.path.name}.before-{newest() if to == 'head' else to}")
                await asyncio.to_thread(_copy, store.path, backup)
            async with store.writing() as connection:
                before, after = await connection.run_sync(_run, to)
        return Upgrade(before, after, backup)
    finally:
        await store.close()


async def ready(store: Store) -> bool:
    """Whether the database has the newest schema; a SQLite file that is missing is not made.

    Raises:
        StoreError: The database cannot be used.
    """
    if store.path is not None and not store.path.exists():
        return False
    async with store.reading() as connection:
        return await connection.run_sync(revision_of) == newest()


async def opened(url: str, statement_s: float = 30.0, connections: int = 3) -> Store:
    """A store that has the newest schema: one that has not is upgraded first.

    Args:
        url, statement_s, connections: As for `Store`.

    Raises:
        StoreError: The database cannot be used.
    """
    store = Store(url, statement_s, connections)
    try:
        if not await ready(store):
            await upgrade(url)
    except BaseException:
        await store.close()
        raise
    return store


def revision_of(connection: Connection) -> str:
    """The revision of a database; empty when there is none."""
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision() or ""


def _pending(before: str, to: str) -> bool:
    found = steps()
    known = {script.revision for script in found.walk_revisions()}
    if before not in known:
        raise StoreError(
            f"the database was made by a newer release: its schema is {before}, this release knows up to {newest()}; "
            "install that release again, or restore a copy from before it"
        )
    return any(True for _ in found.iterate_revisions(to, before))


def _run(connection: Connection, to: str) -> tuple[str, str]:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    before = revision_of(connection)
    if before and not _pending(before, to):
        return before, before
    if not before and (foreign := sorted(set(inspect(connection).get_table_names()) & set(METADATA.tables))):
        raise StoreError(f"the database holds tables of another program ({', '.join(foreign)}); give the gateway one of its own")
    found = steps()
    with Operations.context(context):
        for script in reversed(list(found.iterate_revisions(to, before or "base"))):
            script.module.upgrade()
            context.stamp(found, script.revision)
    return before, revision_of(connection)


@contextlib.asynccontextmanager
async def _alone(path: Path) -> AsyncIterator[None]:
    """Hold the lock beside a SQLite file; it is left behind, since removing it would let two hold it."""
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise StoreError(f"the lock beside the SQLite file cannot be made: {error.strerror or error}") from None
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def _copy(path: Path, backup: Path) -> None:
    """A consistent copy by SQLite itself, in place only when it is complete."""
    unfinished = backup.with_name(backup.name + ".part")
    try:
        unfinished.unlink(missing_ok=True)
        touch(unfinished)
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(unfinished)) as copy:
            source.backup(copy)
        unfinished.replace(backup)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise StoreError(f"no copy could be made before the upgrade, so nothing was changed: {plain(error)}") from None
