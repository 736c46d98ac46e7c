"""What a vector store keeps and answers, and the interface that every such store has."""

from __future__ import annotations

import array
import math
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from hx_gateway.core.errors import Unavailable

if TYPE_CHECKING:
    from hx_gateway.rag.filters import Filter

TERMS = "en-1"
"""Name of the way texts are taken apart into terms (`rag.sparse`); a collection remembers it."""

TERMS_END = 1_000_000_000
MOST_TERMS = 16_000
"""A sparse vector of pgvector has no more places, and no more that are not zero."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Unfit(ValueError):
    """What was asked does not go with the collection or with the rules of a store.

    Args:
        message: A sentence that names the remedy.
        field: What it is about: `vector`, `collection`, `namespace`, `filter.must[0].key` …
    """

    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


class StoreUnavailable(Unavailable):
    """A vector store cannot be used now; nothing is known of what was under way in it.

    Args:
        store: Its name: `embedded`, `qdrant` or `postgres`.
        why: In words, without secrets: `does not answer`.
    """

    def __init__(self, store: str, why: str) -> None:
        super().__init__(f"the vector store ({store}) {why}")
        self.store = store
        self.why = why


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """A sparse vector.

    Args:
        indices: Numbers of the terms, ascending, each once, below `TERMS_END`; at most `MOST_TERMS`.
        values: The weight of each, above zero.
    """

    indices: list[int]
    values: list[float]


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """Points whose vectors were made by one model and can be compared.

    Args:
        name: `checked_name`.
        model: Name of the embedding model.
        digest: What identifies its weights; empty where that is not known.
        dimension: Numbers in a vector.
        distance: Always the cosine of the angle.
        terms: How texts were taken apart for the sparse vectors.
        created_ms: Since 1970.
    """

    name: str
    model: str
    digest: str
    dimension: int
    distance: str = "cosine"
    terms: str = TERMS
    created_ms: int = 0

    def refusal(self, other: Collection) -> Unfit | None:
        """Why points made for ``other`` cannot be in this collection; None where they can."""
        for field in ("model", "digest", "dimension", "distance", "terms"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                advice = "vectors of different models cannot be compared: use that model, or another collection"
                return Unfit(f"collection {self.name!r} holds vectors of {field} {mine!r}, not {theirs!r}; {advice}", "collection")
        return None


class Point(msgspec.Struct, kw_only=True):
    """One chunk of a document.

    Args:
        id: UUID, lower case with hyphens. Made from namespace, document and chunk, so that no two namespaces share one.
        namespace: Who may see it.
        document: The document's own id.
        chunk: Its place in the document, from 0.
        text: What was embedded, below its title and headings.
        vector: `packed`; empty where it was not asked for.
        sparse: Its terms and those of its title and headings; None where it was not asked for, or has none.
        metadata: JSON object; filters look at it.
        content_hash: Of the document it was cut from; equal content need not be embedded again.
    """

    id: str
    namespace: str
    document: str
    chunk: int
    text: str
    vector: bytes = b""
    sparse: Terms | None = None
    metadata: dict[str, Any] = {}
    content_hash: str = ""


class Hit(msgspec.Struct):
    """A point found, without its vectors, and its score: higher is nearer."""

    point: Point
    score: float


class VectorStore(Protocol):
    """Where points are kept.

    Every call may raise `StoreUnavailable`, within some two seconds of the store being gone or hung. Looking into a collection that does not
    exist finds nothing. What is about points names one namespace and reaches no other; `namespaces` and `scroll` alone see all, for those who
    look after a store.
    """

    name: str

    async def collections(self) -> list[Collection]:
        """Every collection, by name."""
        ...

    async def create(self, collection: Collection) -> Collection:
        """Make a collection, unless it is there.

        Returns:
            It as it is kept (`created_ms` of its making).

        Raises:
            Unfit: It is there for another model, digest, dimension or kind of terms.
        """
        ...

    async def drop(self, name: str) -> bool:
        """Remove a collection with everything in it; whether it was there."""
        ...

    async def upsert(self, name: str, points: Sequence[Point]) -> None:
        """Keep points; of the same id, the last stays. Returns when they outlive a crash.

        Raises:
            Unfit: The collection does not exist, a vector has another dimension, or it is not `packed`; then none is kept.
        """
        ...

    async def delete(self, name: str, namespace: str, what: Sequence[str] | Filter) -> int:
        """Remove the points of these ids, or of this filter; how many there were."""
        ...

    async def dense(
        self, name: str, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None = None
    ) -> list[Hit]:
        """The points with the nearest vectors.

        Args:
            name: The collection.
            namespace: Whose points.
            vector: `packed`.
            limit: How many at most.
            filter: Which of them.
            threshold: Least score (the cosine).

        Raises:
            Unfit: The vector has another dimension than the collection's.
        """
        ...

    async def sparse(self, name: str, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        """The points with the best sum of weights of common terms, each weighted by how rare it is (BM25); none without a common term."""
        ...

    async def fetch(self, name: str, namespace: str, ids: Sequence[str], vectors: bool = False) -> list[Point]:
        """The points of these ids that are there, in no certain order.

        Args:
            name: The collection.
            namespace: Whose points.
            ids: UUIDs.
            vectors: Whether `vector` and `sparse` are wanted.
        """
        ...

    async def count(self, name: str, namespace: str, filter: Filter) -> int:
        """How many points there are, exactly."""
        ...

    async def documents(self, name: str, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        """The points of these documents by document, in the order of their chunks, without vectors; documents that are not there are left out."""
        ...

    async def namespaces(self, name: str) -> dict[str, int]:
        """The points of each namespace."""
        ...

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        """Points of every namespace with their vectors, in the order of their ids.

        Args:
            name: The collection.
            after: The last id that was seen; empty for the beginning.
            limit: How many at most; fewer come only at the end.
        """
        ...

    async def ping(self) -> None:
        """Return when the store answers."""
        ...

    async def close(self) -> None:
        """Let go of it; nothing accepted is lost."""
        ...


def checked_name(name: str, field: str = "collection") -> str:
    """A name of a collection or namespace as it came, once it is known to be one.

    Raises:
        Unfit: It is none.
    """
    if _NAME.fullmatch(name) is None:
        raise Unfit(f"{field} {name[:80]!r} is no name: 1 to 64 letters, digits, _, - and dots, with a letter or digit first", field)
    return name


def packed(values: Iterable[float]) -> bytes:
    """A vector as stores take it: its direction, as float32 in little-endian order.

    Raises:
        Unfit: A number is not finite, or all are zero.
    """
    try:
        numbers = array.array("f", values)
    except (TypeError, OverflowError):
        raise Unfit("a vector is a list of numbers", "vector") from None
    length = math.hypot(*numbers)
    if not math.isfinite(length):
        raise Unfit("every number of a vector must be finite", "vector")
    if length < 1e-12:
        raise Unfit("a vector of zeros has no direction", "vector")
    unit = array.array("f", [number / length for number in numbers])
    if sys.byteorder == "big":
        unit.byteswap()
    return unit.tobytes()


def unpacked(vector: bytes) -> list[float]:
    """The numbers of a `packed` vector."""
    numbers = array.array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def fitting(collection: Collection, vector: bytes) -> None:
    """Check a vector's dimension, and that it is `packed`.

    Raises:
        Unfit: It is not.
    """
    if len(vector) != 4 * collection.dimension:
        found = f"{len(vector) // 4} numbers"
        raise Unfit(f"the vector has {found}; those of collection {collection.name!r} have {collection.dimension}", "vector")
    if not abs(math.hypot(*unpacked(vector)) - 1.0) < 1e-3:
        raise Unfit("the vector is not of length 1", "vector")


def checked_points(collection: Collection, points: Iterable[Point]) -> None:
    """Check what is to be kept.

    Raises:
        Unfit: A vector is not `fitting`, an id no UUID, a name none, a terms are not in order, or a text has a NUL, which Postgres cannot keep.
    """
    for point in points:
        fitting(collection, point.vector)
        checked_ids((point.id,))
        checked_name(point.namespace, "namespace")
        if point.sparse is not None:
            checked_terms(point.sparse)
        if "\0" in point.text or "\0" in point.document:
            raise Unfit("a text has a NUL", "text")
        if b"\\u0000" in msgspec.json.encode(point.metadata).replace(b"\\\\", b""):
            raise Unfit("metadata have a NUL", "metadata")


def checked_terms(terms: Terms) -> None:
    """Check a sparse vector.

    Raises:
        Unfit: It is not as `Terms` says.
    """
    numbers, weights = terms.indices, terms.values
    ordered = all(before < number for before, number in zip([-1, *numbers], numbers, strict=False))
    if not (ordered and len(numbers) == len(weights) <= MOST_TERMS and (not numbers or numbers[-1] < TERMS_END)):
        raise Unfit("the numbers of a sparse vector must be ascending, and one weight each", "sparse")
    if not all(0 < weight < math.inf for weight in weights):
        raise Unfit("every weight of a sparse vector must be finite and above zero", "sparse")


def checked_ids(ids: Iterable[str]) -> None:
    """Check ids of points.

    Raises:
        Unfit: One is no UUID in lower case with hyphens.
    """
    for given in ids:
        if _UUID.fullmatch(given) is None:
            raise Unfit(f"{given[:80]!r} is no UUID in lower case", "id")


def payload(point: Point) -> dict[str, Any]:
    """A point as a JSON object, without id and vectors: what stores of documents keep."""
    return {
        "namespace": point.namespace,
        "document": point.document,
        "chunk": point.chunk,
        "text": point.text,
        "metadata": point.metadata,
        "content_hash": point.content_hash,
    }
