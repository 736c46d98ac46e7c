"""Where answers are kept to be given again: in memory by their bytes, behind it in Redis where there is one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from time import monotonic, time
from typing import Any, Protocol

from hx_gateway.core.errors import Unavailable
from hx_gateway.openai.replay import Recording

_PREFIX = b"hx:cache:"
_AT_ONCE = 32  # keys asked of Redis in one call
_PATIENCE_S = 0.02  # for all calls of one request together, as far as no further one is begun
_SKEW_MS = 60_000  # what an answer may be younger than nothing: another machine's clock is ahead, or ours was set back
_MOST_UNSAVED = 1 << 25  # bytes that may wait to be written to Redis; what comes on top stays in memory only


class Remote(Protocol):
    """A Redis that answers in time or not at all (`stores.redis.Redis`)."""

    @property
    def available(self) -> bool:
        """Whether it answered in time the last time it was asked."""
        ...

    async def call(self, *words: str | bytes | int | float) -> Any:
        """The answer to a command.

        Raises:
            Unavailable: There is none in time.
        """
        ...


class Shelf:
    """Recordings by key, least recently used first to go.

    One per worker. ``under_way`` is what further requests may join (`dataplane.flight`), ``counts`` what became of requests by
    route and result, ``evicted`` how many recordings had to go for others.
    """

    __slots__ = (
        "_held", "_saver", "_unsaved", "bytes", "counts", "evicted", "max_bytes", "max_entry_bytes", "remote", "ttl_ms", "under_way",
        "unsaved_bytes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.max_bytes = 0
        self.max_entry_bytes = 0
        self.ttl_ms = 0
        self.bytes = 0
        self.evicted = 0
        self.under_way: dict[Any, Any] = {}
        self.counts: dict[tuple[str, str], int] = {}
        self.remote: Remote | None = None
        self.unsaved_bytes = 0
        self._held: OrderedDict[bytes, tuple[Recording, int]] = OrderedDict()
        self._unsaved: deque[tuple[bytes, bytes, int]] = deque()
        self._saver: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"<Shelf {len(self._held)} recordings, {self.bytes} of {self.max_bytes} bytes>"

    def adopt(self, max_bytes: int, max_entry_bytes: int, ttl_s: float) -> None:
        """Take over other bounds; what does not fit into them goes."""
        self.max_bytes, self.max_entry_bytes, self.ttl_ms = max_bytes, max_entry_bytes, int(ttl_s * 1000)
        self._make_room()

    def count(self, route: str, result: str) -> None:
        """Count one request."""
        self.counts[route, result] = self.counts.get((route, result), 0) + 1

    def get(self, key: bytes, now_ms: int) -> Recording | None:
        """What is in memory under a key, unless it is too old."""
        found = self._held.get(key)
        if found is None:
            return None
        recording, size = found
        if not self._fresh(recording, now_ms):
            del self._held[key]
            self.bytes -= size
            return None
        self._held.move_to_end(key)
        return recording

    def _fresh(self, recording: Recording, now_ms: int) -> bool:
        return -_SKEW_MS <= now_ms - recording.made_ms < self.ttl_ms

    def hold(self, key: bytes, recording: Recording) -> None:
        """Keep a recording in memory, or count anew what one takes that has grown by another form."""
        size = recording.size
        before = self._held.pop(key, None)
        if before is not None:
            self.bytes -= before[1]
        if size > self.max_bytes:
            return
        self._held[key] = (recording, size)
        self.bytes += size
        if self.bytes > self.max_bytes:
            self._make_room()

    def _make_room(self) -> None:
        while self.bytes > self.max_bytes:
            _, (_, size) = self._held.popitem(last=False)
            self.bytes -= size
            self.evicted += 1

    def put(self, key: bytes, recording: Recording) -> None:
        """Keep a new recording, in Redis a little later."""
        self.hold(key, recording)
        remote = self.remote
        if remote is None or not remote.available:
            return
        packed = recording.packed()
        if self.unsaved_bytes + len(packed) > _MOST_UNSAVED:
            return
        self.unsaved_bytes += len(packed)
        self._unsaved.append((key, packed, self.ttl_ms))
        if self._saver is None:
            self._saver = asyncio.get_running_loop().create_task(self._save(remote), name="cache writer")

    async def _save(self, remote: Remote) -> None:
        try:
            while self._unsaved:
                key, packed, ttl_ms = self._unsaved.popleft()
                self.unsaved_bytes -= len(packed)
                await remote.call("SET", _PREFIX + key.hex().encode(), packed, "PX", ttl_ms)
        except Unavailable:
            self._unsaved.clear()
            self.unsaved_bytes = 0
        finally:
            self._saver = None

    @property
    def asks(self) -> bool:
        """Whether it makes sense to `fetch`."""
        return self.remote is not None and self.remote.available

    async def fetch(self, keys: Sequence[bytes]) -> list[Recording | None]:
        """What Redis has under keys, in their order; it is in memory from then on. A Redis that is away has nothing."""
        found: list[Recording | None] = [None] * len(keys)
        remote, began_s, now_ms = self.remote, monotonic(), int(time() * 1000)
        try:
            for at in range(0, len(keys), _AT_ONCE):
                if remote is None or (at and monotonic() - began_s > _PATIENCE_S):
                    break
                some = keys[at : at + _AT_ONCE]
                for number, data in enumerate(await remote.call("MGET", *(_PREFIX + key.hex().encode() for key in some)), at):
                    recording = Recording.unpacked(data) if isinstance(data, bytes) else None
                    if recording is not None and self._fresh(recording, now_ms):
                        found[number] = recording
                        self.hold(keys[number], recording)
        except Unavailable:
            pass
        return found

    async def stop(self) -> None:
        """Write nothing more."""
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.gather(self._saver, return_exceptions=True)
        self._unsaved.clear()
        self.unsaved_bytes = 0
