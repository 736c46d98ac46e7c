"""What a database holds, for people: schema, rows by table, size; nothing is changed by looking."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Connection, func, inspect, select, text

from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.schema import METADATA
from hx_gateway.stores.sql.upgrade import newest, revision_of


@dataclass(frozen=True, slots=True)
class Status:
    """What a database holds.

    Args:
        kind: ``sqlite`` or ``postgresql``.
        schema: Its revision; empty for an empty database or a missing file.
        newest: The revision that this release needs.
        rows: Rows by table, of the tables that are there.
        size_bytes: Of the whole database on disk.
    """

    kind: str
    schema: str
    newest: str
    rows: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0


async def status(url: str) -> Status:
    """Look at a database.

    Raises:
        StoreError: It cannot be used.
    """
    store = Store(url, statement_s=300.0, connections=1)
    try:
        if store.path is not None and not store.path.exists():
            return Status(store.kind, "", newest())
        async with store.reading() as connection:
            schema, rows, size = await connection.run_sync(_look)
        if store.path is not None:
            files = (store.path, store.path.with_name(f"{store.path.name}-wal"))
            size = sum(file.stat().st_size for file in files if file.exists())
        return Status(store.kind, schema, newest(), rows, size)
    finally:
        await store.close()


def _look(connection: Connection) -> tuple[str, dict[str, int], int]:
    there = set(inspect(connection).get_table_names())
    schema = revision_of(connection)
    rows = {
        table.name: connection.scalar(select(func.count()).select_from(table)) or 0
        for table in METADATA.sorted_tables
        if schema and table.name in there
    }
    size = connection.scalar(text("SELECT pg_database_size(current_database())")) if connection.dialect.name == "postgresql" else 0
    return schema, rows, size or 0
