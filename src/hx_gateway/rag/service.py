"""Search over documents: who may see which, what is asked of the store, and in which order what was found is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.rag.bodies import DEFAULT, Delete, Mmr, Rerank, Search
from hx_gateway.rag.filters import EVERYTHING, Filter, of_documents, parsed
from hx_gateway.rag.fusion import cosine, diverse, reciprocal
from hx_gateway.rag.points import Collection, Hit, Terms, Unfit, VectorStore, checked_name, fitting, packed, unpacked
from hx_gateway.rag.sparse import query_terms

_FRESH_S = 1.0  # for which a collection that was seen is taken to be there
_LEAST, _EACH, _MOST = 100, 5, 2000  # candidates of each kind: so many, or so many for each hit that is wanted


class Embedded(msgspec.Struct):
    """What became of texts.

    Args:
        vectors: `packed`, one for each text, in order.
        digest: What tells the model from another of the same name; empty where nobody knows.
    """

    vectors: list[bytes]
    digest: str = ""


class Asker(Protocol):
    """Who asks, and what can be done in their name.

    Attributes:
        identity: The key; None where none is needed.
        model: Name of the model that embeds where nothing else says so; empty for none.
        tokens: Tokens that were read for it so far, by model.
    """

    identity: Identity | None
    model: str
    tokens: dict[str, int]

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """Embed texts.

        Raises:
            Failure: They cannot be.
        """
        ...

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        """Numbers of the texts with their scores, best first.

        Raises:
            Failure: There is no such model, or its server cannot.
        """
        ...


class Shelves:
    """The collections of a store as far as they are known here.

    Args:
        store: The store.
        default: Name of the collection of requests that name none.
    """

    def __init__(self, store: VectorStore, default: str) -> None:
        self.store = store
        self.default = default
        self._known: dict[str, Collection] = {}
        self._until_s = 0.0
        self._making = asyncio.Lock()

    async def find(self, name: str) -> Collection | None:
        """A collection; None where there is none of that name."""
        if name not in self._known or time.monotonic() >= self._until_s:
            self._known = {collection.name: collection for collection in await self.store.collections()}
            self._until_s = time.monotonic() + _FRESH_S
        return self._known.get(name)

    async def made(self, wanted: Collection) -> Collection:
        """The collection of that name, made if it is missing.

        Raises:
            Failure: ``conflict``: it is there, for another model.
        """
        async with self._making:
            found = await self.find(wanted.name)
            if found is None:
                found = self._known[wanted.name] = await self.store.create(wanted)
        suited(found, wanted.model, wanted.digest)
        return found

    async def drop(self, name: str) -> bool:
        """Remove a collection; whether it was there. Other workers may take it to be there for a second more."""
        self._known.pop(name, None)
        return await self.store.drop(name)


def suited(collection: Collection, model: str, digest: str = "") -> None:
    """Check that vectors of a model may be compared with those of a collection.

    Raises:
        Failure: ``conflict``: they are of another model, or of other weights under the same name.
    """
    advice = "vectors of different models cannot be compared: use that model, or another collection"
    if model != collection.model:
        text = f"collection {collection.name!r} holds vectors of the model {collection.model!r}, not of {model!r}; {advice}"
        raise Failure(errors.CONFLICT, text, param="model")
    if digest and collection.digest and digest != collection.digest:
        text = f"collection {collection.name!r} was made with other weights of {model!r} (digest {collection.digest!r}, now {digest!r}); {advice}"
        raise Failure(errors.CONFLICT, text, param="model")


def namespace_of(given: str | None, identity: Identity | None, write: bool, field: str = "namespace") -> str:
    """A namespace that the caller may read, or write.

    Raises:
        Unfit: It is no name.
        Failure: ``namespace_not_allowed``.
    """
    name = checked_name(DEFAULT if given is None else given, field)
    if identity is not None and not (identity.may_write(name) if write else identity.may_read(name)):
        may = "only read" if write and identity.may_read(name) else "not use"
        what = f"the namespace {name!r}" if given is not None else f"the namespace {name!r}, which is meant where none is named"
        raise Failure(errors.NAMESPACE_NOT_ALLOWED, f"{field}: the API key may {may} {what}", param=field)
    return name


async def _expect(shelves: Shelves, collection: Collection, given: str | None, identity: Identity | None) -> None:
    """Tell a namespace in which nothing was found from one that is not there, as a slip of the pen makes it.

    The default one, and those that a key is made for, are there before their first document; so is any in an empty collection.

    Raises:
        Failure: ``namespace_not_found``.
    """
    if given is None or given == DEFAULT or (identity is not None and identity.namespaces is not None and not identity.admin):
        return
    if await shelves.store.count(collection.name, given, EVERYTHING):
        return
    there = sorted(await shelves.store.namespaces(collection.name))
    if not there:
        return
    near = get_close_matches(given, there, 3) or there[:3]
    text = f"namespace: there is no namespace {given!r} in collection {collection.name!r}; there are {', '.join(map(repr, near))}"
    raise Failure(errors.NAMESPACE_NOT_FOUND, text + (" and others" if len(there) > len(near) else ""), param="namespace")


class Found(msgspec.Struct):
    """A hit on its way into the answer."""

    hit: Hit
    score: float
    ranks: dict[str, int]
    scores: dict[str, float]


async def search(shelves: Shelves, ask: Search, asker: Asker) -> dict[str, Any]:
    """Find chunks.

    Returns:
        ``points``, in the shape of Qdrant's answer to a query, each with ``found_by``: its rank in each part that found it.

    Raises:
        Unfit, Failure: Something of the request cannot be done, or there is no such namespace.
        StoreUnavailable: The store cannot be used.
    """
    namespace = namespace_of(ask.namespace, asker.identity, write=False)
    filter = parsed(ask.filter)
    query = (ask.query or "").strip()
    if ask.query is not None and not query:
        raise Unfit("query should not be empty", "query")
    if not query and ask.vector is None:
        raise Unfit("query or vector is required: say what is looked for", "query")
    mode = ask.mode or ("hybrid" if query else "dense")
    if mode != "dense" and not query:
        raise Unfit(f"mode {mode} looks for words: it needs a query", "query")
    if ask.rerank is not None and not query:
        raise Unfit("rerank needs a query to compare texts with", "query")
    vector = packed(ask.vector) if ask.vector is not None else b""
    collection = await shelves.find(checked_name(ask.collection or shelves.default))
    if collection is None:
        return {"points": []}
    if ask.model is not None:
        suited(collection, ask.model)
    if mode != "sparse":
        if not vector:
            vector = await _embedded(collection, query, asker)
        fitting(collection, vector)
    spread = isinstance(ask.mmr, Mmr) or ask.mmr
    wanted = max(ask.limit, ask.rerank.candidates) if ask.rerank is not None else ask.limit
    depth = ask.candidates or min(max(_LEAST, _EACH * wanted), _MOST)
    if mode != "hybrid" and not spread:
        depth = wanted
    terms = query_terms(query) if mode != "dense" else None
    dense, sparse = await asyncio.gather(
        _dense(shelves, collection, namespace, vector, depth, filter, ask.score_threshold if mode != "sparse" else None),
        _sparse(shelves, collection, namespace, terms, depth, filter),
    )
    if mode == "sparse" and ask.score_threshold is not None:
        sparse = [hit for hit in sparse if hit.score >= ask.score_threshold]
    if not dense and not sparse:
        await _expect(shelves, collection, ask.namespace, asker.identity)
    found = _joined(mode, dense, sparse, ask.rrf_k)
    if mode == "hybrid" and ask.score_threshold is not None:
        found = await _near(shelves, collection, namespace, vector, found, ask.score_threshold)
    if spread:
        found = await _spread(shelves, collection, namespace, found, wanted, ask.mmr if isinstance(ask.mmr, Mmr) else Mmr())
    if ask.rerank is not None:
        found = await _reranked(ask.rerank, query, found[:wanted], asker)
    found = found[: ask.limit]
    vectors = await _vectors(shelves, collection, namespace, found) if ask.with_vectors else {}
    return {"points": [_told(one, vectors) for one in found]}


async def _embedded(collection: Collection, query: str, asker: Asker) -> bytes:
    if not collection.model:
        raise Unfit(f"collection {collection.name!r} holds vectors of no known model: search it with a vector", "query")
    made = await asker.embed(collection.model, [query])
    suited(collection, collection.model, made.digest)
    return made.vectors[0]


async def _dense(
    shelves: Shelves, collection: Collection, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None
) -> list[Hit]:
    return await shelves.store.dense(collection.name, namespace, vector, limit, filter, threshold) if vector else []


async def _sparse(shelves: Shelves, collection: Collection, namespace: str, terms: Terms | None, limit: int, filter: Filter) -> list[Hit]:
    return await shelves.store.sparse(collection.name, namespace, terms, limit, filter) if terms is not None else []


def _joined(mode: str, dense: Sequence[Hit], sparse: Sequence[Hit], k: float) -> list[Found]:
    """What the parts found, each hit once, best first."""
    parts = {"dense": dense if mode != "sparse" else [], "sparse": sparse}
    hits: dict[str, Found] = {}
    for name, part in parts.items():
        for rank, hit in enumerate(part, 1):
            one = hits.setdefault(hit.point.id, Found(hit, hit.score, {}, {}))
            one.ranks[name] = rank
            one.scores[name] = hit.score
    if mode != "hybrid":
        return list(hits.values())
    scores = reciprocal([[hit.point.id for hit in part] for part in parts.values()], k)
    for id, score in scores.items():
        hits[id].score = score
    return [hits[id] for id in scores]


async def _vectors(shelves: Shelves, collection: Collection, namespace: str, found: Sequence[Found]) -> dict[str, list[float]]:
    ids = [one.hit.point.id for one in found]
    points = await shelves.store.fetch(collection.name, namespace, ids, vectors=True) if ids else []
    return {point.id: unpacked(point.vector) for point in points}


async def _near(
    shelves: Shelves, collection: Collection, namespace: str, vector: bytes, found: list[Found], threshold: float
) -> list[Found]:
    """Those near enough; of what only its words found, the similarity is looked up."""
    unknown = [one for one in found if "dense" not in one.ranks]
    vectors = await _vectors(shelves, collection, namespace, unknown)
    own = unpacked(vector)
    near = {id: cosine(own, other) for id, other in vectors.items()}
    return [one for one in found if "dense" in one.ranks or near.get(one.hit.point.id, -2.0) >= threshold]


async def _spread(shelves: Shelves, collection: Collection, namespace: str, found: list[Found], limit: int, mmr: Mmr) -> list[Found]:
    found = found[: min(len(found), max(4 * limit, 50))]
    vectors = await _vectors(shelves, collection, namespace, found)
    by_id = {one.hit.point.id: one for one in found}
    relevance = {id: one.score for id, one in by_id.items()}
    # In a thread: some thousand comparisons are milliseconds that others need not wait.
    return [by_id[id] for id in await asyncio.to_thread(diverse, relevance, vectors, limit, mmr.diversity)]


async def _reranked(rerank: Rerank, query: str, found: list[Found], asker: Asker) -> list[Found]:
    best, rest = found[: rerank.candidates], found[rerank.candidates :]
    if not best:
        return found
    told = []
    for rank, (number, score) in enumerate(await asker.rerank(rerank.model, query, [one.hit.point.text for one in best]), 1):
        one = best[number]
        one.score = one.scores["rerank"] = score
        one.ranks["rerank"] = rank
        told.append(one)
    return told + rest if len(told) == len(best) else told


def _told(one: Found, vectors: Mapping[str, list[float]]) -> dict[str, Any]:
    point = one.hit.point
    told: dict[str, Any] = {
        "id": point.id,
        "version": 0,
        "score": one.score,
        "payload": {
            "text": point.text,
            "document": point.document,
            "chunk": point.chunk,
            "namespace": point.namespace,
            "metadata": point.metadata,
        },
        "found_by": one.ranks,
        "scores": one.scores,
    }
    if point.id in vectors:
        told["vector"] = vectors[point.id]
    return told


async def delete(shelves: Shelves, ask: Delete, asker: Asker, most: int) -> dict[str, Any]:
    """Remove documents, or chunks of them.

    Args:
        shelves: Where from.
        ask: What.
        asker: Who.
        most: Most ids of one request.

    Raises:
        Unfit, Failure, StoreUnavailable: As `search`.
    """
    namespace = namespace_of(ask.namespace, asker.identity, write=True)
    if (ask.ids is not None) + (ask.filter is not None) + ask.everything != 1:
        raise Unfit("say what is to go by one of ids, filter, or everything: true", "ids")
    if ask.ids is not None and len(ask.ids) > most:
        raise Unfit(f"ids: at most {most} (rag.max_documents)", "ids")
    what = of_documents(*ask.ids) if ask.ids is not None else parsed(ask.filter) if ask.filter is not None else EVERYTHING
    if ask.filter is not None and not what:
        raise Unfit("filter: an empty one would remove everything; say so with everything: true", "filter")
    collection = await shelves.find(checked_name(ask.collection or shelves.default))
    gone = await shelves.store.delete(collection.name, namespace, what) if collection is not None else 0
    return {"status": "completed", "deleted": gone}


async def drop(shelves: Shelves, name: str, asker: Asker) -> dict[str, Any]:
    """Remove a collection that holds nothing any more, so that nobody's documents go with it.

    Raises:
        Unfit, StoreUnavailable: As `search`.
        Failure: ``namespace_not_allowed``: the key is for certain namespaces; ``conflict``: it holds documents.
    """
    identity = asker.identity
    if identity is not None and not identity.admin and identity.namespaces is not None:
        text = "collection: only a key that is not bound to namespaces may remove a collection"
        raise Failure(errors.NAMESPACE_NOT_ALLOWED, text, param="collection")
    if held := await shelves.store.namespaces(checked_name(name)):
        text = f"collection {name!r} is not empty: remove the documents of {', '.join(sorted(held)[:5])} first (/v1/rag/delete, everything)"
        raise Failure(errors.CONFLICT, text, param="collection")
    return {"status": "completed", "removed": await shelves.drop(name)}


async def collections(shelves: Shelves, asker: Asker) -> dict[str, Any]:
    """The collections, with the chunks of each namespace that the caller may read; a key of certain namespaces sees those with its own."""
    identity = asker.identity
    every = identity is None or identity.admin or identity.namespaces is None
    told = []
    for collection in await shelves.store.collections():
        counts = await shelves.store.namespaces(collection.name)
        seen = {name: count for name, count in sorted(counts.items()) if identity is None or identity.may_read(name)}
        if every or seen:
            told.append({
                "name": collection.name,
                "model": collection.model,
                "digest": collection.digest or None,
                "dimension": collection.dimension,
                "distance": "Cosine",
                "points_count": sum(seen.values()),
                "namespaces": seen,
            })  # fmt: skip
    return {"collections": told, "default": shelves.default}
