"""A request that takes several calls to one model server: a few at a time, all answers or one failure."""

from __future__ import annotations

from typing import Any, Protocol

from hx_gateway.core.errors import ErrorKind
from hx_gateway.core.interfaces import Call, CallHandler, Headers, Outgoing

PARALLEL = 4


class Gatherer(CallHandler, Protocol):
    """Who asked for the parts."""

    def joined(self, bodies: list[bytes]) -> None:
        """All parts were answered, in the order they were asked."""
        ...


class Fanout:
    """Sends the parts and gathers their bodies. It is the `Call` of its owner: cancelled as one.

    Args:
        pool: Connections to the server (`upstream.pool.Pool`).
        parts: The requests.
        owner: Gets all bodies, or the first answer that is not a success, or the first failure.
        total_at_s: Monotonic time of the total deadline.
        first_byte_s: Seconds to wait for each answer; 0 takes the endpoint's own.
    """

    __slots__ = ("bodies", "first_byte_s", "left", "owner", "parts", "pool", "running", "total_at_s", "waiting")

    def __init__(self, pool: Any, parts: list[Outgoing], owner: Gatherer, total_at_s: float, first_byte_s: float = 0.0) -> None:
        self.pool = pool
        self.parts = parts
        self.owner: Gatherer | None = owner
        self.total_at_s = total_at_s
        self.first_byte_s = first_byte_s
        self.bodies: list[bytes] = [b""] * len(parts)
        self.left = len(parts)
        self.waiting = iter(range(len(parts)))
        self.running: set[_Part] = set()

    def start(self) -> None:
        """Send the first few parts."""
        assert self.owner is not None
        self.owner.call = self
        for _ in range(PARALLEL):
            self.next()

    def next(self) -> None:
        """Send the next part, if one is left."""
        number = next(self.waiting, None)
        if number is not None and self.owner is not None:
            part = _Part(self, number)
            self.running.add(part)
            self.pool.send(self.parts[number], part, self.total_at_s, self.first_byte_s)

    def cancel(self) -> None:
        self.owner = None
        for part in self.running:
            if part.call is not None:
                part.call.cancel()
        self.running.clear()

    def pause(self) -> None:
        """Bodies are collected whole: there is nothing to slow down."""

    def resume(self) -> None:
        """Bodies are collected whole: there is nothing to slow down."""

    def stop(self) -> Gatherer | None:
        """End all parts and return the owner, once."""
        owner = self.owner
        self.cancel()
        return owner


class _Part:
    """One of the calls."""

    __slots__ = ("call", "fanout", "number")

    def __init__(self, fanout: Fanout, number: int) -> None:
        self.fanout = fanout
        self.number = number
        self.call: Call | None = None

    def answered(self, status: int, headers: Headers, body: bytes) -> None:
        fanout = self.fanout
        fanout.running.discard(self)
        if fanout.owner is None:
            return
        if not 200 <= status < 300:
            owner = fanout.stop()
            if owner is not None:
                owner.answered(status, headers, body)
            return
        fanout.bodies[self.number] = body
        fanout.left -= 1
        if fanout.left:
            fanout.next()
        else:
            owner = fanout.stop()
            if owner is not None:
                owner.joined(fanout.bodies)

    def began(self, status: int, headers: Headers) -> bool:
        return False

    def received(self, data: bytes) -> None:
        """Never called: no part is streamed."""

    def ended(self) -> None:
        """Never called: no part is streamed."""

    def failed(self, kind: ErrorKind, message: str) -> None:
        fanout = self.fanout
        fanout.running.discard(self)
        owner = fanout.stop()
        if owner is not None:
            owner.failed(kind, message)
