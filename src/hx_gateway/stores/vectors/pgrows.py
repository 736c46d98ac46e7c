"""Points as rows of Postgres: tables, types of pgvector in their binary form, and filters as conditions."""

# ruff: noqa: S608 # names in statements are our own; values are always arguments
from __future__ import annotations

import array
import json
import math
import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from hx_gateway.rag.filters import Filter, Match, Range
from hx_gateway.rag.points import TERMS_END, Point, StoreUnavailable, Terms

NAME = "postgres"
SCHEMA = "hx_vectors"
LOCK = 0x68785F76  # taken while tables are made
BARE = "id, namespace, document, chunk, text, metadata, content_hash"
WHOLE = f"{BARE}, vector, sparse"
_OPERATORS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def table_statements(number: int, dimension: int) -> list[str]:
    """What makes the table of a collection."""
    table = f"{SCHEMA}.points_{number}"
    return [
        f"CREATE TABLE {table} (id uuid PRIMARY KEY, namespace text NOT NULL, document text NOT NULL, chunk integer NOT NULL, text text NOT NULL, "
        f"metadata jsonb NOT NULL, content_hash text NOT NULL, vector vector({dimension}) NOT NULL, sparse sparsevec, terms int4[]) "
        # Vectors stay in their rows, as far as a page goes: fetching each from beside the table takes several times as long as comparing it.
        "WITH (toast_tuple_target = 8160)",
        f"CREATE INDEX ON {table} (namespace, document)",
        f"CREATE INDEX ON {table} USING gin (terms)",
    ]


def upsert_statement(table: str) -> str:
    """What keeps one `row`."""
    renewed = ", ".join(f"{name} = excluded.{name}" for name in [*WHOLE.split(", ")[1:], "terms"])
    return f"INSERT INTO {table} ({WHOLE}, terms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO UPDATE SET {renewed}"


async def prepare(connection: Any) -> None:
    """Make what every collection needs, once.

    Raises:
        StoreUnavailable: The server has no pgvector, or this user may not have it made.
    """
    import asyncpg

    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        if version is None:
            try:
                async with connection.transaction():
                    await connection.execute("CREATE EXTENSION vector")
            except asyncpg.PostgresError as error:
                remedy = "install pgvector 0.8 or newer on the server and run CREATE EXTENSION vector in this database as its superuser"
                raise StoreUnavailable(NAME, f"has no extension vector ({error.args[0]}): {remedy}") from error
            version = await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        if tuple(map(int, version.split(".")[:2])) < (0, 8):
            raise StoreUnavailable(NAME, f"has pgvector {version}: 0.8 or newer is needed; ALTER EXTENSION vector UPDATE")
        if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"{SCHEMA}.collections"):
            await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            await connection.execute(
                f"CREATE TABLE {SCHEMA}.collections (number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE NOT NULL, about text NOT NULL)"
            )


async def typed(connection: Any) -> None:
    """Teach a connection the types of pgvector."""
    schema = await connection.fetchval(
        "SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'vector'"
    )
    for name, encode, decode in (("vector", _vector, _of_vector), ("sparsevec", _sparse, _of_sparse)):
        await connection.set_type_codec(name, schema=schema, encoder=encode, decoder=decode, format="binary")


def _vector(packed: bytes) -> bytes:
    return struct.pack(">HH", len(packed) // 4, 0) + _turned("f", packed)


def _of_vector(value: bytes) -> bytes:
    return _turned("f", bytes(value[4:]))


def _sparse(terms: Terms) -> bytes:
    numbers, weights = array.array("i", terms.indices), array.array("f", terms.values)
    if sys.byteorder == "little":
        numbers.byteswap()
        weights.byteswap()
    return struct.pack(">iii", TERMS_END, len(numbers), 0) + numbers.tobytes() + weights.tobytes()


def _of_sparse(value: bytes) -> Terms:
    count = struct.unpack_from(">i", value, 4)[0]
    return Terms(list(struct.unpack_from(f">{count}i", value, 12)), list(struct.unpack_from(f">{count}f", value, 12 + 4 * count)))


def _turned(kind: str, data: bytes) -> bytes:
    """Between little-endian order and that of the network."""
    numbers = array.array(kind, data)
    numbers.byteswap()
    return numbers.tobytes()


def row(point: Point) -> tuple[Any, ...]:
    """A point as the arguments of `upsert_statement`."""
    metadata = msgspec.json.encode(point.metadata).decode()
    about = (point.id, point.namespace, point.document, point.chunk, point.text, metadata, point.content_hash, point.vector)
    return (*about, point.sparse, None if point.sparse is None else point.sparse.indices)


def point(found: Any) -> Point:
    """A point from a row with the columns `BARE` or `WHOLE`."""
    return Point(
        id=str(found["id"]),
        namespace=found["namespace"],
        document=found["document"],
        chunk=found["chunk"],
        text=found["text"],
        metadata=json.loads(found["metadata"]),
        content_hash=found["content_hash"],
        vector=found.get("vector", b""),
        sparse=found.get("sparse"),
    )


def where(filter: Filter, values: list[Any]) -> str:
    """The condition for the points of a namespace, the first of ``values``, that pass a filter.

    Args:
        filter: It.
        values: The arguments so far; those of the condition are added.
    """

    def add(value: Any) -> str:
        values.append(value)
        return f"${len(values)}"

    return f"namespace = $1 AND {_condition(filter, add)}" if filter else "namespace = $1"


def _condition(condition: Match | Range | Filter, add: Callable[[Any], str]) -> str:
    if isinstance(condition, Filter):
        parts = [_condition(inner, add) for inner in condition.must]
        parts += [f"NOT {_condition(inner, add)}" for inner in condition.must_not]
        if condition.should:
            parts.append("(" + " OR ".join(_condition(inner, add) for inner in condition.should) + ")")
        return "(" + (" AND ".join(parts) or "true") + ")"
    if condition.path == ("document",) and isinstance(condition, Match):
        texts = [value for value in condition.values if isinstance(value, str)]
        return f"document = ANY({add(texts)}::text[])"
    column, *inner = condition.path
    value = "metadata" if column == "metadata" else f"to_jsonb({column})"
    for key in inner:
        value += f" -> {add(key)}::text"
    if isinstance(condition, Match):
        # What contains a value is the value, or a list with it in.
        wanted = [json.dumps(item, ensure_ascii=False) for item in condition.values]
        return f"coalesce(({value}) @> ANY({add(wanted)}::text[]::jsonb[]), false)"
    tests = " && ".join(f"@ {_OPERATORS[name]} ${name}" for name in condition.bounds)
    given = add(json.dumps(condition.bounds))
    return f"""coalesce(jsonb_path_exists({value}, '$[*] ? (@.type() == "number" && {tests})', {given}::text::jsonb), false)"""


def rarity(points: int, among: int) -> float:
    """How much a term counts that ``among`` of ``points`` have: as Qdrant reckons it."""
    return math.log(1 + (points - among + 0.5) / (among + 0.5))
