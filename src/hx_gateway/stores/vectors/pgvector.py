"""Vectors in Postgres with pgvector: one table a collection, compared one by one until it is large, by an index from then on."""

# ruff: noqa: S608 # names in statements are our own; values are always arguments
from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from hx_gateway.rag.filters import Filter, of_documents
from hx_gateway.rag.points import Collection, Hit, Point, StoreUnavailable, Terms, Unfit, checked_ids, checked_points, fitting
from hx_gateway.stores.sql.engine import plain
from hx_gateway.stores.vectors.pgrows import (
    BARE,
    LOCK,
    NAME,
    SCHEMA,
    WHOLE,
    point,
    prepare,
    rarity,
    row,
    table_statements,
    typed,
    upsert_statement,
    where,
)
from hx_gateway.stores.vectors.watched import LONGEST_S, Watched

T = TypeVar("T")
INDEX_AT = 200_000  # points; comparing fewer one by one takes less than a tenth of a second
_WIDEST, _WIDEST_INDEX = 16_000, 2000  # numbers of a vector that pgvector can keep, and index
_CONNECT_S = 1.5
_POOL = 8
_LOOK_EVERY = 20_000  # points kept between looks at whether an index is due
_log = logging.getLogger(__name__)


class PostgresStore:
    """Vectors in the database of the gateway.

    Args:
        url: `postgresql://…`.
        index_at: Points of a collection from which on its vectors get an index.
    """

    name = NAME

    def __init__(self, url: str, index_at: int = INDEX_AT) -> None:
        self._url = url
        self._index_at = index_at
        self._pool: Any = None
        self._asked: Any = None  # the connection that tells whether the server answers
        self._opening = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._tables: dict[str, tuple[str, Collection]] = {}
        self._kept = 0
        self._indexing: asyncio.Task[None] | None = None
        self._watched = Watched(NAME, self._alive)

    async def _call(self, work: Callable[[Any], Awaitable[T]], longest_s: float = LONGEST_S) -> T:
        """The outcome of ``work`` on a connection, in a transaction of its own."""
        import asyncpg

        async def once() -> T:
            async with (await self._opened()).acquire() as connection, connection.transaction():
                return await work(connection)

        async def twice() -> T:
            try:
                return await once()
            except (asyncpg.UndefinedTableError, asyncpg.ForeignKeyViolationError):
                self._tables.clear()  # dropped, or made anew, by another process
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError):
                if self._pool is not None:
                    await self._pool.expire_connections()  # the server was started anew; all that is asked may be asked again
            return await once()

        if importlib.util.find_spec("asyncpg") is None:
            raise StoreUnavailable(NAME, "needs its driver: pip install 'hx-gateway[postgres]'")
        try:
            return await self._watched.call(twice, longest_s)
        except asyncpg.DiskFullError as error:
            raise StoreUnavailable(NAME, f"has no room: {plain(error, self._url)}") from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(NAME, f"cannot be used: {plain(error, self._url)}") from error

    async def _opened(self) -> Any:
        import asyncpg

        async with self._opening:
            if self._pool is None:
                connection = await asyncpg.connect(self._url, timeout=_CONNECT_S)
                try:
                    await prepare(connection)
                    loses = await connection.fetchval("SELECT current_setting('synchronous_commit') = 'off'")
                finally:
                    connection.terminate()
                settings = {"application_name": "hx-gateway vectors", "statement_timeout": str(int(LONGEST_S * 1000))}
                if loses:  # what was accepted, when the server is killed
                    settings["synchronous_commit"] = "on"
                self._pool = await asyncpg.create_pool(
                    self._url, min_size=0, max_size=_POOL, timeout=_CONNECT_S, init=typed, server_settings=settings
                )
            return self._pool

    async def _alive(self) -> None:
        """Whether the server answers, on a connection that nothing else uses."""
        import asyncpg

        async with self._asking:
            try:
                if self._asked is None or self._asked.is_closed():
                    self._asked = await asyncpg.connect(self._url, timeout=_CONNECT_S)
                await self._asked.execute("SELECT 1")
            except BaseException:
                if self._asked is not None:
                    self._asked.terminate()
                self._asked = None
                raise

    async def _table(self, connection: Any, name: str) -> tuple[str, Collection] | None:
        if name not in self._tables:
            row = await connection.fetchrow(f"SELECT number, about FROM {SCHEMA}.collections WHERE name = $1", name)
            if row is None:
                return None
            self._tables[name] = f"{SCHEMA}.points_{row['number']}", msgspec.json.decode(row["about"], type=Collection)
        return self._tables[name]

    async def _on(self, name: str, nothing: T, work: Callable[[Any, str, Collection], Awaitable[T]]) -> T:
        """The outcome of ``work`` on the table of a collection; ``nothing`` where there is none."""

        async def found(connection: Any) -> T:
            table = await self._table(connection, name)
            return nothing if table is None else await work(connection, *table)

        return await self._call(found)

    async def collections(self) -> list[Collection]:
        async def work(connection: Any) -> list[Collection]:
            rows = await connection.fetch(f"SELECT about FROM {SCHEMA}.collections ORDER BY name")
            return [msgspec.json.decode(row["about"], type=Collection) for row in rows]

        return await self._call(work)

    async def create(self, collection: Collection) -> Collection:
        if collection.dimension > _WIDEST:
            raise Unfit(f"pgvector keeps vectors of at most {_WIDEST} numbers", "collection")

        async def work(connection: Any) -> Collection:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            self._tables.pop(collection.name, None)
            table = await self._table(connection, collection.name)
            if table is None:
                made = msgspec.structs.replace(collection, created_ms=collection.created_ms or int(time.time() * 1000))
                about = msgspec.json.encode(made).decode()
                insert = f"INSERT INTO {SCHEMA}.collections (name, about) VALUES ($1, $2) RETURNING number"
                number = await connection.fetchval(insert, made.name, about)
                for statement in table_statements(number, made.dimension):
                    await connection.execute(statement)
                return made
            if refused := table[1].refusal(collection):
                raise refused
            return table[1]

        return await self._call(work)

    async def drop(self, name: str) -> bool:
        async def work(connection: Any) -> bool:
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            self._tables.pop(name, None)
            number = await connection.fetchval(f"DELETE FROM {SCHEMA}.collections WHERE name = $1 RETURNING number", name)
            if number is not None:
                await connection.execute(f"DROP TABLE {SCHEMA}.points_{number}")
            return number is not None

        return await self._call(work)

    async def upsert(self, name: str, points: Sequence[Point]) -> None:
        async def work(connection: Any, table: str, collection: Collection) -> bool:
            checked_points(collection, points)
            last = {point.id: point for point in points}
            # In the order of ids: two that keep the same points wait for each other and do not lock each other out.
            await connection.executemany(upsert_statement(table), [row(last[id]) for id in sorted(last)])
            return True

        if not await self._on(name, False, work):
            raise Unfit(f"there is no collection {name!r}: it must be made first", "collection")
        self._kept += len(points)
        if self._kept >= min(_LOOK_EVERY, self._index_at) and (self._indexing is None or self._indexing.done()):
            self._kept = 0
            self._indexing = asyncio.create_task(self._index(name))

    async def _index(self, name: str) -> None:
        """Make the index of a collection that has become large, beside everything else."""
        import asyncpg

        try:
            connection = await asyncpg.connect(self._url, timeout=LONGEST_S)
            try:
                found = await self._table(connection, name)
                if (
                    found is None
                    or found[1].dimension > _WIDEST_INDEX
                    or not await connection.fetchval("SELECT pg_try_advisory_lock($1)", LOCK + 1)
                ):
                    return
                table, index = found[0], found[0].partition(".")[2] + "_near"
                if (
                    await connection.fetchval(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {self._index_at}) AS first")
                    < self._index_at
                ):
                    return
                valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)"
                if (state := await connection.fetchval(valid, f"{SCHEMA}.{index}")) is False:
                    await connection.execute(f"DROP INDEX {SCHEMA}.{index}")  # left over from one that was broken off
                if not state:
                    _log.info("the collection %s gets an index of its vectors", name)
                    await connection.execute(f"CREATE INDEX CONCURRENTLY {index} ON {table} USING hnsw (vector vector_ip_ops)")
            finally:
                connection.terminate()
        except Exception as error:  # blame: the database's; without the index everything is found as well, later
            _log.warning("the collection %s could not be given an index: %s", name, plain(error, self._url))

    async def delete(self, name: str, namespace: str, what: Sequence[str] | Filter) -> int:
        if not isinstance(what, Filter):
            checked_ids(what)

        async def work(connection: Any, table: str, collection: Collection) -> int:
            if isinstance(what, Filter):
                values: list[Any] = [namespace]
                done = await connection.execute(f"DELETE FROM {table} WHERE {where(what, values)}", *values)
            else:
                done = await connection.execute(f"DELETE FROM {table} WHERE namespace = $1 AND id = ANY($2::uuid[])", namespace, what)
            return int(done.split()[-1])

        return await self._on(name, 0, work)

    async def dense(
        self, name: str, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None = None
    ) -> list[Hit]:
        async def work(connection: Any, table: str, collection: Collection) -> list[Hit]:
            fitting(collection, vector)
            values: list[Any] = [namespace, vector, limit]
            condition = where(filter, values)
            await connection.execute("SET LOCAL hnsw.iterative_scan = strict_order; SET LOCAL hnsw.ef_search = 100")
            query = f"SELECT {BARE}, -(vector <#> $2) AS score FROM {table} WHERE {condition} ORDER BY vector <#> $2 LIMIT $3"
            hits = [Hit(point(found), found["score"]) for found in await connection.fetch(query, *values)]
            return [hit for hit in hits if threshold is None or hit.score >= threshold]

        return await self._on(name, [], work)

    async def sparse(self, name: str, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        async def work(connection: Any, table: str, collection: Collection) -> list[Hit]:
            common = f"(SELECT count(*) FROM {table} WHERE namespace = $1 AND terms @> ARRAY[term])"
            rows = await connection.fetch(f"SELECT term, {common} AS points FROM unnest($2::int4[]) AS term", namespace, terms.indices)
            all_points = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE namespace = $1", namespace)
            having = {found["term"]: found["points"] for found in rows}
            weighted = [
                (number, weight * rarity(all_points, having[number]))
                for number, weight in zip(terms.indices, terms.values, strict=True)
                if having[number]
            ]
            if not weighted:
                return []
            asked = Terms([number for number, _ in weighted], [weight for _, weight in weighted])
            values: list[Any] = [namespace, asked, limit, asked.indices]
            condition = where(filter, values)
            query = f"SELECT {BARE}, -(sparse <#> $2) AS score FROM {table} WHERE terms && $4::int4[] AND {condition} ORDER BY score DESC, id LIMIT $3"
            return [Hit(point(found), found["score"]) for found in await connection.fetch(query, *values)]

        return await self._on(name, [], work)

    async def fetch(self, name: str, namespace: str, ids: Sequence[str], vectors: bool = False) -> list[Point]:
        checked_ids(ids)

        async def work(connection: Any, table: str, collection: Collection) -> list[Point]:
            query = f"SELECT {WHOLE if vectors else BARE} FROM {table} WHERE namespace = $1 AND id = ANY($2::uuid[])"
            return [point(found) for found in await connection.fetch(query, namespace, ids)]

        return await self._on(name, [], work)

    async def count(self, name: str, namespace: str, filter: Filter) -> int:
        async def work(connection: Any, table: str, collection: Collection) -> int:
            values: list[Any] = [namespace]
            counted: int = await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {where(filter, values)}", *values)
            return counted

        return await self._on(name, 0, work)

    async def documents(self, name: str, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        async def work(connection: Any, table: str, collection: Collection) -> dict[str, list[Point]]:
            values: list[Any] = [namespace]
            condition = where(of_documents(*ids), values)
            kept: dict[str, list[Point]] = {}
            for found in await connection.fetch(f"SELECT {BARE} FROM {table} WHERE {condition} ORDER BY chunk", *values):
                kept.setdefault(found["document"], []).append(point(found))
            return kept

        return await self._on(name, {}, work) if ids else {}

    async def namespaces(self, name: str) -> dict[str, int]:
        async def work(connection: Any, table: str, collection: Collection) -> dict[str, int]:
            rows = await connection.fetch(f"SELECT namespace, count(*) AS points FROM {table} GROUP BY namespace")
            return {row["namespace"]: row["points"] for row in rows}

        return await self._on(name, {}, work)

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        async def work(connection: Any, table: str, collection: Collection) -> list[Point]:
            query = f"SELECT {WHOLE} FROM {table} WHERE $1 = '' OR id > nullif($1, '')::uuid ORDER BY id LIMIT $2"
            return [point(found) for found in await connection.fetch(query, after, limit)]

        return await self._on(name, [], work)

    async def ping(self) -> None:
        await self._call(lambda connection: connection.execute("SELECT 1"), 2.0)

    async def close(self) -> None:
        if self._indexing is not None:
            self._indexing.cancel()
            await asyncio.gather(self._indexing, return_exceptions=True)
        if self._asked is not None:
            self._asked.terminate()
        if self._pool is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pool.close(), 1.0)
            self._pool.terminate()
