"""What all client connections of one worker share: limits, time, and what becomes of each request header."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Any

from hx_gateway.core.headers import KEEP, disposition

if TYPE_CHECKING:
    from collections.abc import Callable

    from hx_gateway.core.context import Exchange
    from hx_gateway.core.cors import CorsPolicy

_KNOWN_HEADERS = 4096  # spellings of header names remembered


class Hall:
    """What all doors of one worker share.

    Args:
        dispatch: Takes a hot exchange.
        ids: Makes request ids.
        cors: The CORS policy; None when off.
        max_head: Largest request head in bytes.
        max_body: Largest request body in bytes.
        head_s: Seconds for a whole head to arrive.
        body_s: Seconds for a whole body to arrive.
        idle_s: Seconds a kept-alive connection may be silent.
        stall_s: Seconds a client may refuse to read.
    """

    def __init__(
        self,
        dispatch: Callable[[Exchange], None],
        ids: Callable[[], str],
        cors: CorsPolicy | None = None,
        *,
        max_head: int = 1 << 16,
        max_body: int = 1 << 25,
        head_s: float = 10.0,
        body_s: float = 60.0,
        idle_s: float = 75.0,
        stall_s: float = 120.0,
    ) -> None:
        self.dispatch = dispatch
        self.ids = ids
        self.cors = cors
        self.max_head = max_head
        self.max_body = max_body
        self.head_s = head_s
        self.body_s = body_s
        self.idle_s = idle_s
        self.stall_s = stall_s
        self.names: dict[bytes, tuple[int, bytes]] = {}
        self.date = b""
        self.tick()

    def tick(self) -> None:
        """Renew the Date header; called about every second."""
        self.date = b"date: " + formatdate(time(), usegmt=True).encode() + b"\r\n"

    def learn(self, name: bytes) -> tuple[int, bytes]:
        """What becomes of a header spelt like this, and its lower-case name (as a line's start where it is kept)."""
        lower = name.lower()
        action = disposition(lower)
        entry = (action, lower + b": " if action == KEEP else lower)
        if len(self.names) < _KNOWN_HEADERS:
            self.names[name] = entry
        return entry

    def sweep(self, doors: Any, now_s: float) -> None:
        """End every phase of every door whose deadline has passed."""
        for door in [door for door in doors if door.deadline_s <= now_s]:
            door.expire()
