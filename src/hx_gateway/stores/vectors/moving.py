"""Collections copied from one vector store to another, and proof that the copy is the same."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import AsyncIterator, Callable

import msgspec

from hx_gateway.rag.points import Point, VectorStore, unpacked

_PAGE = 500
_NEAR = 1e-5  # a store may make a vector of length 1 once more


class Proof(msgspec.Struct, frozen=True):
    """What was found in one store.

    Args:
        points: How many.
        checksum: SHA-256 over every point in the order of ids, without the vectors, which are compared number by number.
    """

    points: int
    checksum: str


class Differs(Exception):
    """The copy is not what the source is; the message says where."""


async def move(source: VectorStore, target: VectorStore, name: str, told: Callable[[int], None] = lambda done: None) -> Proof:
    """Copy a collection, read both again and compare them; the source is left as it is.

    What the target has of the same collection and the source has not is left there and makes it differ. It may be broken off and run again.

    Args:
        source: Where it is.
        target: Where it shall be.
        name: Of the collection.
        told: Called with the points copied so far.

    Returns:
        What both have.

    Raises:
        Differs: They have not the same, because somebody wrote meanwhile, or there was something there before.
        Unfit: The target has the collection for another model, or cannot keep it.
        StoreUnavailable: One of the two.
    """
    wanted = next((collection for collection in await source.collections() if collection.name == name), None)
    if wanted is None:
        raise Differs(f"there is no collection {name!r} in the source")
    await target.create(wanted)
    done = 0
    async for page in _pages(source, name):
        await target.upsert(name, page)
        done += len(page)
        told(done)
    return await compared(source, target, name)


async def compared(source: VectorStore, target: VectorStore, name: str) -> Proof:
    """What two stores have of a collection, where it is the same.

    Raises:
        Differs: It is not; the first point that differs is named.
    """
    digest, count = hashlib.sha256(), 0
    mine, theirs = _each(source, name), _each(target, name)
    while True:
        here, there = await anext(mine, None), await anext(theirs, None)
        if here is None and there is None:
            return Proof(count, digest.hexdigest())
        if here is None or there is None or _content(here) != _content(there) or not _parallel(here.vector, there.vector):
            found = [point.id if point is not None else "nothing" for point in (here, there)]
            raise Differs(f"in {name!r}, {source.name} has {found[0]} where {target.name} has {found[1]}, or another content of the same")
        count += 1
        digest.update(_content(there))


async def _pages(store: VectorStore, name: str) -> AsyncIterator[list[Point]]:
    after = ""
    while page := await store.scroll(name, after, _PAGE):
        yield page
        after = page[-1].id


async def _each(store: VectorStore, name: str) -> AsyncIterator[Point]:
    async for page in _pages(store, name):
        for point in page:
            yield point


def _content(point: Point) -> bytes:
    """A point without its vector; weights in single precision, as every store keeps them."""
    terms = point.sparse
    weights = b"" if terms is None else array("q", terms.indices).tobytes() + array("f", terms.values).tobytes()
    return msgspec.json.encode(msgspec.structs.replace(point, vector=b"", sparse=None), order="sorted") + weights


def _parallel(mine: bytes, theirs: bytes) -> bool:
    return len(mine) == len(theirs) and math.dist(unpacked(mine), unpacked(theirs)) < _NEAR
