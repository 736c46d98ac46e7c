"""The duty that keeps the snapshot of the store's keys: read when their version has changed, kept as it is while the store is away."""

from __future__ import annotations

import asyncio
import logging
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hx_gateway.access.snapshot import FILE, Snapshot, Stamp, Unreadable, latest, read, stamp_of, write

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

POLL_S = 0.4
_SETTLED_NS = 1_000_000_000
_ANSWER_S = 5.0  # a store that hangs is given up
_log = logging.getLogger(__name__)


def place_of(url: str) -> str:
    """What tells one store from another, without user and password, which may change."""
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return sha256(place.encode()).hexdigest()[:16]


async def fresh(store: Store, known: Snapshot | None) -> Snapshot:
    """What the store has now.

    Args:
        store: The store.
        known: What was read of a store before.

    Raises:
        StoreError: The database cannot be used.
        TimeoutError: It does not answer.
    """
    from hx_gateway.stores.sql import keys

    place = place_of(store.url)
    async with asyncio.timeout(_ANSWER_S):
        found = await keys.snapshot(store, place)
        if known is not None and known.store == place and known.version > found.version:
            # Restored from a copy, or a replica that is behind: what can be written is the truth from now on.
            await keys.overtake(store, known)
            _log.warning("the store has older keys (%d) than were known of it (%d), and is believed", found.version, known.version)
            found = await keys.snapshot(store, place)
    return found


async def renew(store: Store, folder: Path) -> Snapshot:
    """Read the store now and write the snapshot of a state directory.

    Returns:
        The newest that is known.

    Raises:
        StoreError, TimeoutError: The store cannot be used.
        OSError: The file cannot be written.
    """
    return await asyncio.to_thread(write, folder, await fresh(store, await asyncio.to_thread(latest, folder)))


class KnownKeys:
    """Keeps the snapshot in a state directory.

    Args:
        folder: The state directory.
        url: Address of the store, as `config.storage.database_url` makes it.
    """

    name = "keys"
    interval_s = POLL_S
    at_end = False

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self._file = Path(url.removeprefix("sqlite:///")).expanduser() if url.startswith("sqlite:") else None
        self._wanted = self._file != folder / "hx-gateway.db"
        self._seen: tuple[Stamp, Stamp, Stamp] | None = None
        self._read: Stamp = None  # of the file, when `_known` was read from it
        self._known: Snapshot | None = None

    def pending(self) -> bool:
        """Whether the store may have changed, or the file is not what was written."""
        if self._file is None:
            return True
        # The file that is made where no store is configured is not made for the sake of keys.
        return (self._wanted or self._file.exists()) and (self._seen is None or self._seen != self._stamps())

    def _stamps(self) -> tuple[Stamp, Stamp, Stamp]:
        database = self._file
        if database is None:
            return stamp_of(self.folder / FILE), None, None
        return stamp_of(self.folder / FILE), stamp_of(database), stamp_of(database.with_name(f"{database.name}-wal"))

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Write the snapshot, where the store or the file has changed; says how many keys there are when it did.

        Raises:
            StoreError, TimeoutError: The store cannot be used; the snapshot stays.
            OSError: The file cannot be written.
        """
        from hx_gateway.stores.sql import keys

        stamps = self._stamps()
        if self._read != stamps[0] or stamps[0] is None:
            self._read = stamps[0]
            try:
                self._known = read(self.folder / FILE)
            except (FileNotFoundError, Unreadable):
                self._known = None
        known = self._known
        if known is not None and known.store == place_of(store.url):
            async with asyncio.timeout(_ANSWER_S):
                if await keys.version(store) == known.version:
                    # What has just been written may be written again without looking any different.
                    settled_ns = time.time_ns() - _SETTLED_NS
                    self._seen = stamps if all(stamp is None or stamp[0] < settled_ns for stamp in stamps) else None
                    return None
        self._seen = None
        written = await renew(store, self.folder)
        return {"keys": len(written.keys), "version": written.version}
