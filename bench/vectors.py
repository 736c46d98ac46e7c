"""`python -m bench.vectors`: what a vector store takes to keep and to search 100,000 points, as a worker sees it; nothing is asserted.

The embedded store by default, through its owner's socket; `--store postgres --url postgresql://…` and `--store qdrant --url http://…` for the others.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
import uuid
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path

from hx_gateway.rag.filters import EVERYTHING, parsed
from hx_gateway.rag.points import Collection, Point, Terms, VectorStore, packed

NAMESPACES = 10
WORDS = 5_000  # of the made-up language of the sparse vectors, a few of them frequent


def opened(kind: str, url: str, folder: Path) -> VectorStore:
    """The store to measure."""
    if kind == "postgres":
        from hx_gateway.stores.vectors.pgvector import PostgresStore

        return PostgresStore(url)
    if kind == "qdrant":
        from hx_gateway.stores.vectors.qdrant import QdrantStore

        return QdrantStore(url)
    from hx_gateway.stores.vectors.edge import EmbeddedStore

    return EmbeddedStore(folder / "vectors")


def made(number: int, dimension: int, chance: random.Random, namespaces: int) -> Point:
    """A point with a vector in a random direction and 40 terms."""
    terms = sorted({min(int(chance.paretovariate(0.6)), WORDS) for _ in range(40)})
    return Point(
        id=str(uuid.UUID(int=number)),
        namespace=f"n{number % namespaces}",
        document=f"d{number // 4}",
        chunk=number % 4,
        text="lorem ipsum dolor sit amet " * 20,
        vector=packed(array("f", (chance.gauss(0, 1) for _ in range(dimension)))),
        sparse=Terms(terms, [1.0] * len(terms)),
        metadata={"year": 1900 + number // 10 % 100},
    )


async def timed(name: str, times: int, call: Callable[[], Awaitable[list[object]]]) -> None:
    """Print how long a call takes."""
    found = 0
    took_ms = []
    for _ in range(times):
        begun_s = time.perf_counter()
        found = len(await call())
        took_ms.append((time.perf_counter() - begun_s) * 1000)
    ranked = sorted(took_ms)
    print(f"  {name:<44} p50 {statistics.median(ranked):7.2f} ms   p95 {ranked[int(times * 0.95)]:7.2f} ms   {found} hits")


async def searches(store: VectorStore, name: str, among: int, vector: Callable[[], bytes]) -> None:
    """Search one namespace."""
    year = parsed({"must": [{"key": "year", "range": {"gte": 1990}}]})
    terms = Terms([7, 40, 700], [1.0] * 3)
    await timed(f"nearest in {among:,}", 200, lambda: store.dense(name, "n0", vector(), 10, EVERYTHING))
    await timed("first with a filter, which has an index made", 1, lambda: store.dense(name, "n0", vector(), 10, year))
    await timed(f"nearest in {among:,}, filtered to a tenth", 200, lambda: store.dense(name, "n0", vector(), 10, year))
    await timed("words", 200, lambda: store.sparse(name, "n0", terms, 10, EVERYTHING))
    await timed("words, filtered to a tenth", 200, lambda: store.sparse(name, "n0", terms, 10, year))


async def run(kind: str, url: str, points: int, dimension: int, batch: int) -> None:
    """Fill, search, print, remove: once with one namespace, once with ten."""
    print(f"{points:,} x {dimension}, {kind}, {batch} points a call, two calls at a time")
    chance = random.Random(7)  # the same points for every store
    with tempfile.TemporaryDirectory(prefix="hx-vectors-") as folder:
        store = opened(kind, url, Path(folder))

        def vector() -> bytes:
            return packed(chance.gauss(0, 1) for _ in range(dimension))

        for namespaces in (1, NAMESPACES):
            print(f" in {namespaces} namespace{'s' if namespaces > 1 else ''}")
            name = f"bench-{uuid.uuid4().hex[:8]}"
            await store.create(Collection(name=name, model="none", digest="", dimension=dimension))
            took_s = 0.0
            for start in range(0, points, 10_000):
                some = [made(number, dimension, chance, namespaces) for number in range(start, min(points, start + 10_000))]
                calls = [some[at : at + batch] for at in range(0, len(some), batch)]
                begun_s = time.perf_counter()
                for pair in zip(calls[::2], [*calls[1::2], []], strict=False):
                    await asyncio.gather(*(store.upsert(name, part) for part in pair if part))
                took_s += time.perf_counter() - begun_s
            print(f"  {'kept':<44} {points / took_s:7.0f} points/s")
            await searches(store, name, points // namespaces, vector)
            await store.drop(name)
        await store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("embedded", "postgres", "qdrant"), default="embedded")
    parser.add_argument("--url", default="")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batch", type=int, default=500)
    asked = parser.parse_args()
    asyncio.run(run(asked.store, asked.url, asked.points, asked.dimension, asked.batch))


if __name__ == "__main__":
    main()
