"""Vectors in a Qdrant server, through Qdrant's own client."""

from __future__ import annotations

import array
import importlib.util
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from hx_gateway.rag.filters import EVERYTHING, Filter, Match, Range, of_documents
from hx_gateway.rag.points import (
    Collection,
    Hit,
    Point,
    StoreUnavailable,
    Terms,
    Unfit,
    checked_ids,
    checked_points,
    fitting,
    payload,
    unpacked,
)
from hx_gateway.stores.vectors.watched import LONGEST_S, Watched

T = TypeVar("T")
NAME = "qdrant"
DENSE, SPARSE = "dense", "bm25"
_OURS = "hx_gateway"  # the key of what a collection remembers, in the metadata that Qdrant keeps with it
_BATCH = 256  # points of one request
_PAGE = 1000
_FACETS = 100_000
_INDEXES = 16  # keys of metadata that get an index of their own, once a filter names them


class QdrantStore:
    """Vectors in Qdrant 1.16 or newer.

    Args:
        url: `http://…` or `https://…`.
        api_key: Empty for none.
        client: In place of a connection to ``url``, the client to use.
    """

    name = NAME

    def __init__(self, url: str, api_key: str = "", client: Any = None) -> None:
        self._url = url
        self._api_key = api_key
        self._client = client
        self._known: dict[str, Collection] = {}
        self._indexed: dict[str, set[str]] = {}  # keys of payloads that have an index
        self._watched = Watched(NAME, self._alive)

    def _connected(self) -> Any:
        if self._client is None:
            if importlib.util.find_spec("qdrant_client") is None:
                raise StoreUnavailable(NAME, "needs qdrant-client: pip install 'hx-gateway[qdrant]'")
            from qdrant_client import AsyncQdrantClient

            self._client = AsyncQdrantClient(
                url=self._url, api_key=self._api_key or None, timeout=int(LONGEST_S), check_compatibility=False
            )
        return self._client

    async def _call(self, work: Callable[[Any], Awaitable[T]], longest_s: float = LONGEST_S) -> T:
        client = self._connected()
        from qdrant_client.http.exceptions import ApiException, UnexpectedResponse

        try:
            return await self._watched.call(lambda: work(client), longest_s)
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise StoreUnavailable(NAME, "refuses the API key of storage.qdrant_api_key") from error
            said = error.content.decode(errors="replace")[:300]
            raise StoreUnavailable(NAME, f"answers with status {error.status_code}: {said}") from error
        except (ApiException, OSError) as error:
            raise StoreUnavailable(NAME, f"cannot be reached: {getattr(error, 'source', error)}"[:300]) from error

    async def _alive(self) -> None:
        await self._connected().get_collections()

    async def _collection(self, client: Any, name: str) -> Collection | None:
        """What a collection remembers; None where there is none."""
        if name in self._known:
            return self._known[name]
        if not await client.collection_exists(name):
            return None
        remembered = ((await client.get_collection(name)).config.metadata or {}).get(_OURS)
        if remembered is None:
            raise Unfit(f"the collection {name!r} of Qdrant was not made by this gateway: it cannot know with which model", "collection")
        self._known[name] = msgspec.convert({**remembered, "name": name}, Collection)
        return self._known[name]

    async def _on(self, name: str, nothing: T, work: Callable[[Any, Collection], Awaitable[T]]) -> T:
        """The outcome of ``work`` on a collection; ``nothing`` where there is none."""
        from qdrant_client.http.exceptions import UnexpectedResponse

        async def found(client: Any) -> T:
            collection = await self._collection(client, name)
            if collection is None:
                return nothing
            try:
                return await work(client, collection)
            except UnexpectedResponse as error:
                if error.status_code != 404:
                    raise
                self._known.pop(name, None)  # dropped by somebody else
                self._indexed.pop(name, None)
                return nothing

        return await self._call(found)

    async def collections(self) -> list[Collection]:
        async def work(client: Any) -> list[Collection]:
            names = sorted(entry.name for entry in (await client.get_collections()).collections)
            self._known = {name: known for name, known in self._known.items() if name in names}
            found = []
            for name in names:
                try:
                    collection = await self._collection(client, name)
                except Unfit:
                    continue  # somebody else's
                found += [collection] if collection is not None else []
            return found

        return await self._call(work)

    async def create(self, collection: Collection) -> Collection:
        from qdrant_client import models

        async def work(client: Any) -> Collection:
            self._known.pop(collection.name, None)  # somebody else may have dropped it
            self._indexed.pop(collection.name, None)
            found = await self._collection(client, collection.name)
            if found is None:
                made = msgspec.structs.replace(collection, created_ms=collection.created_ms or int(time.time() * 1000))
                await client.create_collection(
                    collection.name,
                    vectors_config={DENSE: models.VectorParams(size=collection.dimension, distance=models.Distance.COSINE)},
                    sparse_vectors_config={SPARSE: models.SparseVectorParams(modifier=models.Modifier.IDF)},
                    metadata={_OURS: msgspec.to_builtins(made)},
                )
                found = await self._collection(client, collection.name)
            if found is None:
                raise StoreUnavailable(NAME, f"made the collection {collection.name!r} and does not know it")
            if refused := found.refusal(collection):
                raise refused
            keyword = models.PayloadSchemaType.KEYWORD
            indexes = {"namespace": models.KeywordIndexParams(type="keyword", is_tenant=True), "document": keyword}
            await self._index(client, collection.name, indexes)
            return found

        return await self._call(work)

    async def _index(self, client: Any, name: str, wanted: dict[str, Any]) -> None:
        """Make the indexes of a payload that are missing."""
        indexed = self._indexed.get(name, set())
        if wanted.keys() <= indexed or len(indexed) > _INDEXES:
            return
        indexed |= (await client.get_collection(name)).payload_schema.keys()
        for key, kind in wanted.items():
            if key not in indexed:
                await client.create_payload_index(name, key, kind, wait=True)
                indexed.add(key)
        self._indexed[name] = indexed

    async def drop(self, name: str) -> bool:
        async def work(client: Any, collection: Collection) -> bool:
            self._known.pop(name, None)
            self._indexed.pop(name, None)
            dropped: bool = await client.delete_collection(name)
            return dropped

        return await self._on(name, False, work)

    async def upsert(self, name: str, points: Sequence[Point]) -> None:
        async def work(client: Any, collection: Collection) -> bool:
            checked_points(collection, points)
            for start in range(0, len(points), _BATCH):
                await client.upsert(name, [_entered(point) for point in points[start : start + _BATCH]], wait=True)
            return True

        if not await self._on(name, False, work):
            raise Unfit(f"there is no collection {name!r}: it must be made first", "collection")

    async def delete(self, name: str, namespace: str, what: Sequence[str] | Filter) -> int:
        from qdrant_client import models

        if not isinstance(what, Filter):
            checked_ids(what)

        async def work(client: Any, collection: Collection) -> int:
            if isinstance(what, Filter):
                wanted = _within(namespace, what)
            else:
                wanted = _within(namespace, EVERYTHING)
                wanted.must.append(models.HasIdCondition(has_id=list(what)))
            counted: int = (await client.count(name, wanted, exact=True)).count
            if counted:
                await client.delete(name, models.FilterSelector(filter=wanted), wait=True)
            return counted

        return await self._on(name, 0, work)

    async def dense(
        self, name: str, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None = None
    ) -> list[Hit]:
        async def work(client: Any, collection: Collection) -> list[Hit]:
            fitting(collection, vector)
            await self._index(client, name, _indexes(filter))
            found = await client.query_points(
                name, query=unpacked(vector), using=DENSE, query_filter=_within(namespace, filter), limit=limit, score_threshold=threshold
            )
            return [Hit(_read(point), point.score) for point in found.points]

        return await self._on(name, [], work)

    async def sparse(self, name: str, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        from qdrant_client import models

        async def work(client: Any, collection: Collection) -> list[Hit]:
            await self._index(client, name, _indexes(filter))
            found = await client.query_points(
                name,
                query=models.SparseVector(indices=terms.indices, values=terms.values),
                using=SPARSE,
                query_filter=_within(namespace, filter),
                # How rare a term is, is counted in the namespace alone: scores tell nothing of what others keep.
                search_params=models.SearchParams(idf=models.IdfCorpusParams(corpus=_within(namespace, EVERYTHING))),
                limit=limit,
            )
            return [Hit(_read(point), point.score) for point in found.points]

        return await self._on(name, [], work)

    async def fetch(self, name: str, namespace: str, ids: Sequence[str], vectors: bool = False) -> list[Point]:
        checked_ids(ids)

        async def work(client: Any, collection: Collection) -> list[Point]:
            found = await client.retrieve(name, list(ids), with_payload=True, with_vectors=vectors)
            return [point for point in map(_read, found) if point.namespace == namespace]

        return await self._on(name, [], work)

    async def count(self, name: str, namespace: str, filter: Filter) -> int:
        async def work(client: Any, collection: Collection) -> int:
            counted: int = (await client.count(name, _within(namespace, filter), exact=True)).count
            return counted

        return await self._on(name, 0, work)

    async def documents(self, name: str, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        async def work(client: Any, collection: Collection) -> dict[str, list[Point]]:
            found: dict[str, list[Point]] = {}
            offset = None
            while True:
                page, offset = await client.scroll(
                    name, _within(namespace, of_documents(*ids)), limit=_PAGE, offset=offset, with_payload=True
                )
                for point in map(_read, page):
                    found.setdefault(point.document, []).append(point)
                if offset is None:
                    break
            for points in found.values():
                points.sort(key=lambda point: point.chunk)
            return found

        return await self._on(name, {}, work) if ids else {}

    async def namespaces(self, name: str) -> dict[str, int]:
        async def work(client: Any, collection: Collection) -> dict[str, int]:
            hits = (await client.facet(name, "namespace", limit=_FACETS, exact=True)).hits
            return {str(hit.value): hit.count for hit in hits if hit.count}

        return await self._on(name, {}, work)

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        async def work(client: Any, collection: Collection) -> list[Point]:
            page, _ = await client.scroll(name, limit=limit + 1, offset=after or None, with_payload=True, with_vectors=True)
            return [point for point in map(_read, page) if point.id != after][:limit]

        return await self._on(name, [], work)

    async def ping(self) -> None:
        await self._call(lambda client: client.get_collections(), 2.0)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def _entered(point: Point) -> Any:
    from qdrant_client import models

    vectors: dict[str, Any] = {DENSE: unpacked(point.vector)}
    if point.sparse is not None:
        vectors[SPARSE] = models.SparseVector(indices=point.sparse.indices, values=point.sparse.values)
    return models.PointStruct(id=point.id, vector=vectors, payload=payload(point))


def _read(found: Any) -> Point:
    kept = found.payload
    vectors = found.vector or {}
    numbers = array.array("f", vectors.get(DENSE, ()))
    if sys.byteorder == "big":
        numbers.byteswap()
    sparse = vectors.get(SPARSE)
    about = {name: kept[name] for name in ("namespace", "document", "chunk", "text", "metadata", "content_hash")}
    return Point(
        id=str(found.id), vector=numbers.tobytes(), sparse=None if sparse is None else Terms(sparse.indices, sparse.values), **about
    )


def _within(namespace: str, filter: Filter) -> Any:
    from qdrant_client import models

    must: list[Any] = [models.FieldCondition(key="namespace", match=models.MatchValue(value=namespace))]
    return models.Filter(must=[*must, _condition(filter)] if filter else must)


def _indexes(condition: Match | Range | Filter) -> dict[str, Any]:
    """The kind of index for each key of a condition; where there is one of another kind, Qdrant reads the points."""
    from qdrant_client import models

    if isinstance(condition, Filter):
        found: dict[str, Any] = {}
        for inner in (*condition.must, *condition.must_not, *condition.should):
            found = {**_indexes(inner), **found}
        return found
    kinds = models.PayloadSchemaType
    by_type = {str: kinds.KEYWORD, bool: kinds.BOOL, int: models.IntegerIndexParams(type="integer", lookup=True, range=False)}
    return {".".join(condition.path): kinds.FLOAT if isinstance(condition, Range) else by_type[type(condition.values[0])]}


def _condition(condition: Match | Range | Filter) -> Any:
    from qdrant_client import models

    if isinstance(condition, Filter):
        clauses = {name: [_condition(inner) for inner in getattr(condition, name)] or None for name in ("must", "must_not", "should")}
        return models.Filter(**clauses)
    key = ".".join(condition.path)
    if isinstance(condition, Range):
        return models.FieldCondition(key=key, range=models.Range(**condition.bounds))
    values = list(condition.values)
    return models.FieldCondition(key=key, match=models.MatchValue(value=values[0]) if len(values) == 1 else models.MatchAny(any=values))
