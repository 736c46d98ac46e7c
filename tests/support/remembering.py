"""A vector store in memory that looks at every point: the simplest one there can be, for tests of what stands on a store."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from hx_gateway.rag.filters import Filter, Match, Range
from hx_gateway.rag.fusion import cosine
from hx_gateway.rag.points import Collection, Hit, Point, Terms, Unfit, checked_points, fitting, payload, unpacked


def value_at(point: Point, path: Sequence[str]) -> list[Any]:
    """What a point has at a path of a filter, as a list."""
    value: Any = payload(point)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, list) else [] if value is None else [value]


def holds(condition: Match | Range | Filter, point: Point) -> bool:
    """Whether a point is one of those that are meant."""
    if isinstance(condition, Match):
        return any(
            type(value) is type(wanted) and value == wanted for value in value_at(point, condition.path) for wanted in condition.values
        )
    if isinstance(condition, Range):
        tests = {"gt": float.__gt__, "gte": float.__ge__, "lt": float.__lt__, "lte": float.__le__}
        numbers = [
            float(value) for value in value_at(point, condition.path) if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        return any(all(tests[name](number, bound) for name, bound in condition.bounds.items()) for number in numbers)
    return (
        all(holds(one, point) for one in condition.must)
        and not any(holds(one, point) for one in condition.must_not)
        and (not condition.should or any(holds(one, point) for one in condition.should))
    )


class Remembering:
    """Every method of `rag.points.VectorStore`."""

    name = "memory"

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Collection, dict[str, Point]]] = {}
        self.calls: list[str] = []

    async def collections(self) -> list[Collection]:
        self.calls.append("collections")
        return [collection for _, (collection, _) in sorted(self.kept.items())]

    async def create(self, collection: Collection) -> Collection:
        found = self.kept.setdefault(collection.name, (collection, {}))[0]
        refusal = found.refusal(collection)
        if refusal is not None:
            raise refusal
        return found

    async def drop(self, name: str) -> bool:
        return self.kept.pop(name, None) is not None

    async def upsert(self, name: str, points: Sequence[Point]) -> None:
        self.calls.append("upsert")
        if name not in self.kept:
            raise Unfit(f"there is no collection {name!r}", "collection")
        checked_points(self.kept[name][0], points)
        for point in points:
            self.kept[name][1][point.id] = msgspec.structs.replace(point)

    def _of(self, name: str, namespace: str, filter: Filter = Filter()) -> list[Point]:  # noqa: B008
        points = self.kept[name][1].values() if name in self.kept else ()
        return [point for point in points if point.namespace == namespace and holds(filter, point)]

    async def delete(self, name: str, namespace: str, what: Sequence[str] | Filter) -> int:
        self.calls.append("delete")
        found = self._of(name, namespace, what) if isinstance(what, Filter) else [p for p in self._of(name, namespace) if p.id in what]
        for point in found:
            del self.kept[name][1][point.id]
        return len(found)

    async def dense(
        self, name: str, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None = None
    ) -> list[Hit]:
        if name not in self.kept:
            return []
        fitting(self.kept[name][0], vector)
        wanted = unpacked(vector)
        hits = [Hit(_bare(point), cosine(wanted, unpacked(point.vector))) for point in self._of(name, namespace, filter)]
        return sorted((hit for hit in hits if threshold is None or hit.score >= threshold), key=lambda hit: -hit.score)[:limit]

    async def sparse(self, name: str, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        everything = list(self.kept[name][1].values()) if name in self.kept else []
        query = dict(zip(terms.indices, terms.values, strict=True))
        hits = []
        for point in self._of(name, namespace, filter):
            own = dict(zip(point.sparse.indices, point.sparse.values, strict=True)) if point.sparse is not None else {}
            score = 0.0
            for term in query.keys() & own.keys():
                having = sum(other.sparse is not None and term in other.sparse.indices for other in everything)
                score += query[term] * own[term] * math.log(1 + (len(everything) - having + 0.5) / (having + 0.5))
            if score:
                hits.append(Hit(_bare(point), score))
        return sorted(hits, key=lambda hit: -hit.score)[:limit]

    async def fetch(self, name: str, namespace: str, ids: Sequence[str], vectors: bool = False) -> list[Point]:
        return [point if vectors else _bare(point) for point in self._of(name, namespace) if point.id in ids]

    async def count(self, name: str, namespace: str, filter: Filter) -> int:
        return len(self._of(name, namespace, filter))

    async def documents(self, name: str, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = {}
        for point in sorted(self._of(name, namespace), key=lambda point: point.chunk):
            if point.document in ids:
                found.setdefault(point.document, []).append(_bare(point))
        return found

    async def namespaces(self, name: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for point in self.kept[name][1].values() if name in self.kept else ():
            counts[point.namespace] = counts.get(point.namespace, 0) + 1
        return counts

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        points = self.kept[name][1] if name in self.kept else {}
        return [points[id] for id in sorted(points) if id > after][:limit]

    async def ping(self) -> None:
        """It always answers."""

    async def close(self) -> None:
        """Nothing is open."""


def _bare(point: Point) -> Point:
    return msgspec.structs.replace(point, vector=b"", sparse=None)
