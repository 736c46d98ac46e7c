"""Exchanges that the gateway makes for itself: their making, their client side, and what is read of their answers."""

from __future__ import annotations

import asyncio
from time import monotonic

import msgspec

from hx_gateway.core.context import Exchange, Identity, Route


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = -1


class _Vectors(msgspec.Struct):
    data: list[_Vector]


_vectors = msgspec.json.Decoder(_Vectors).decode


class Collector:
    """The client side of an exchange that the gateway makes for itself: gathers the whole answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes, bytes]] = asyncio.get_running_loop().create_future()  # status, header lines, body
        self._head: tuple[int, bytes] = (0, b"")
        self._pieces: list[bytes] = []

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result((status, headers, body))

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        self._head = (status, headers)

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    def end(self, data: bytes = b"") -> None:
        if not self.answer.done():
            self.answer.set_result((*self._head, b"".join((*self._pieces, data))))

    def abort(self) -> None:
        self.end()


def part_of(
    whole: Exchange, id: str, route: Route, path: bytes, lines: list[bytes], body: bytes, client: Collector, identity: Identity | None
) -> Exchange:
    """An exchange that is part of another: with its request id for the log, in the name of ``identity``."""
    notes = {name: whole.notes[name] for name in (b"x-request-id",) if name in whole.notes}
    exchange = Exchange(id, route, b"POST", path, notes, lines, body, client, monotonic())
    exchange.identity = identity
    return exchange


def embeddings_of(answer: bytes, count: int) -> list[list[float]]:
    """The embeddings in an answer, in the order of what was asked for.

    Raises:
        ValueError: There are not ``count``, or it is no list of embeddings.
    """
    vectors = _vectors(answer).data
    if len(vectors) != count:
        raise ValueError(f"there are {len(vectors)} where {count} were asked for")
    if all(vector.index >= 0 for vector in vectors):
        vectors.sort(key=lambda vector: vector.index)
    return [vector.embedding for vector in vectors]
