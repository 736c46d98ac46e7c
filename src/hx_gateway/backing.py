"""What stands behind a worker and may fail without it: the state directory and what is kept there."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hx_gateway.access.shared import Shared
from hx_gateway.access.snapshot import Follower
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import database_url, state_directory
from hx_gateway.core.errors import Unavailable
from hx_gateway.dataplane.metering import Metering
from hx_gateway.dataplane.shelf import Shelf
from hx_gateway.fleet.drains import Drains
from hx_gateway.ledger.journal import FOLDER, Journal
from hx_gateway.ledger.observer import Ledger
from hx_gateway.stores.known_keys import POLL_S, fresh, renew
from hx_gateway.stores.served import ServedFile

if TYPE_CHECKING:
    from hx_gateway.access.keys import KeyRing
    from hx_gateway.fleet.endpoint import Endpoint
    from hx_gateway.fleet.registry import Registry
    from hx_gateway.rag.points import VectorStore
    from hx_gateway.stores.redis import Redis
    from hx_gateway.stores.sql.engine import Store

_TICK_S = 1.0
_STATEMENT_S = 10.0
_LONGEST_PAUSE_S = 5.0

_log = logging.getLogger(__name__)


class Backing:
    """The parts of one worker that keep something.

    Each may be missing or fail; requests are served all the same.

    Args:
        config: The configuration.
        memory: File descriptor of `access.sharing.shared_memory`, for limits where there is no state directory; -1 for none.
    """

    def __init__(self, config: GatewayConfig, memory: int = -1) -> None:
        self.config = config
        self.metering = Metering(_later)
        self.shelf = Shelf()
        self.redis: Redis | None = None
        self.redis_missing = ""  # why there is none, though one is configured
        self.shelf_redis: Redis | None = None  # a connection of its own: a large answer on it must not make limits wait
        self._memory = memory
        self.folder: Path | None = None  # the state directory; None until `start`, and where it cannot be written
        self.ledger = Ledger()
        self.known = Follower()
        self.served = ServedFile()
        self.drains = Drains()
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._vectors: VectorStore | None = None
        self._opening_vectors = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def adopt(self, config: GatewayConfig, keys: KeyRing, endpoints: Iterable[Endpoint]) -> None:
        """Take over what a newer configuration may change while running.

        Args:
            config: The configuration.
            keys: Its keys; those of the store are added, now and whenever they change.
            endpoints: Its servers; those that are drained stay so.
        """
        self.config = config
        self.drains.look(endpoints)
        # What is kept where no store was asked for is in the state directory, and so is what is known of its keys.
        self.known.adopt(keys, expected=config.storage.database_url is not None)
        cache = config.cache
        self.shelf.adopt(cache.max_bytes if cache.enabled else 0, cache.max_entry_bytes, cache.ttl_seconds)
        self.ledger.wanted = config.ledger.enabled
        self.ledger.bodies.adopt(config.ledger.bodies)
        self.ledger.believe(config.ledger.end_user_header, config.ledger.end_user_keys)

    async def start(self, endpoints: Iterable[Endpoint]) -> None:
        """Open what is kept in the state directory; those of the servers that are drained are not asked from the start."""
        self.folder = _folder(state_directory(self.config.storage, os.environ))
        self.drains.open(self.folder)
        self.drains.look(endpoints)
        self.known.open(self.folder)
        if self.folder is None and self.config.storage.database_url is not None:
            self._tasks.append(asyncio.create_task(self._follow(), name="keys"))
        self.metering.limiter.open(self.folder, self._memory)
        await self._start_redis()
        settings = self.config.ledger
        if self.folder is not None:
            self.ledger.bodies.start(self.folder)
        if self.folder is not None and settings.enabled:
            size = min(settings.segment_bytes, settings.journal_max_bytes // (4 * self.config.service.workers))
            journal = Journal(self.folder / FOLDER, size, settings.journal_max_bytes, settings.dead_letter_max_bytes)
            await asyncio.to_thread(journal.start)
            self.ledger.journal = journal
            self._tasks.append(asyncio.create_task(self._tick(journal), name="journal"))

    async def stop(self) -> None:
        """Close everything, with nothing lost."""
        shared, self.metering.shared = self.metering.shared, None
        if shared is not None:
            await shared.stop()
        await self.shelf.stop()
        for redis in (self.redis, self.shelf_redis):
            if redis is not None:
                await redis.stop()
        self.metering.limiter.close()
        journal, self.ledger.journal = self.ledger.journal, None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if journal is not None:
            await asyncio.to_thread(journal.stop)
        await asyncio.to_thread(self.ledger.bodies.stop)
        store, self._store = self._store, None
        if store is not None:
            await store.close()
        vectors, self._vectors = self._vectors, None
        if vectors is not None:
            await vectors.close()
        self.folder = None

    async def store(self) -> Store:
        """The database, for what is not on the way of a request; opened when it is first asked for.

        Raises:
            StoreError: It cannot be used.
        """
        async with self._opening:
            if self._store is None:
                # Not on the event loop: importing takes longer than a request may wait.
                opening = await asyncio.to_thread(importlib.import_module, "hx_gateway.stores.sql.upgrade")
                folder = self.folder or state_directory(self.config.storage, os.environ)
                self._store = await opening.opened(database_url(self.config.storage, folder), _STATEMENT_S, 2)
            return self._store

    async def look(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over what others wrote: of the store's keys, and of which servers are drained."""
        self.drains.look(endpoints)
        if self.known.changed:
            await asyncio.to_thread(self.known.look)

    @property
    def vectors_open(self) -> bool:
        """Whether the store of vectors was needed so far."""
        return self._vectors is not None

    async def note(self, registry: Registry) -> None:
        """Write down what is served where, when that has changed."""
        if self.folder is not None and (rows := self.served.news(registry)):
            try:
                await asyncio.to_thread(self.served.write, self.folder, rows)
            except OSError as error:
                _log.warning("what is served cannot be written to %s: %s", self.folder, error.strerror or error)

    async def vectors(self) -> VectorStore:
        """Where documents are searched; opened when it is first asked for.

        Raises:
            Unavailable: It cannot be used.
        """
        if self._vectors is None:
            async with self._opening_vectors:
                if self._vectors is None:
                    opening = await asyncio.to_thread(importlib.import_module, "hx_gateway.stores.vectors.opening")
                    self._vectors = await opening.opened(self.config, self.folder)
        return self._vectors

    async def renew_keys(self) -> None:
        """Take what the store has now into use, here at once and in the other workers as soon as they look.

        Raises:
            StoreError, TimeoutError: The store cannot be used.
        """
        store = await self.store()
        if self.folder is not None:
            try:
                self.known.take(await renew(store, self.folder))
                return
            except OSError as error:
                _log.warning("the keys of the store cannot be written to %s: %s", self.folder, error.strerror or error)
        self.known.take(await fresh(store, self.known.snapshot))

    async def _follow(self) -> None:
        """Do without the housekeeper, which needs a state directory: read the store's keys in this process."""
        pause_s = POLL_S
        while True:
            try:
                self.known.take(await fresh(await self.store(), self.known.snapshot))
                pause_s = POLL_S
            except Exception as error:  # blame: the database's; what is known of it stays
                if pause_s == POLL_S:
                    _log.warning("the keys of the store cannot be read and are as they were: %s", error or "no answer in time")
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def _start_redis(self) -> None:
        """Connect to Redis, where one is configured."""
        url = self.config.storage.redis_url
        if url is None:
            return
        from hx_gateway.stores.redis import Redis  # only where it is used

        try:
            self.redis = Redis(url.reveal(), self.config.storage.redis_budget_seconds)
        except (Unavailable, ValueError) as error:
            self.redis_missing = str(error) if isinstance(error, Unavailable) else f"storage.redis_url: {error}"
            _log.error("%s; limits are kept by this gateway for itself", self.redis_missing)
            return
        await self.redis.start()
        table = self.metering.limiter.table
        self.metering.shared = Shared(self.metering.limiter, self.redis, table.id, f"{table.id[:8]}-{secrets.token_hex(6)}")
        self.metering.shared.start()
        if self.config.cache.enabled:
            self.shelf.remote = self.shelf_redis = Redis(url.reveal(), self.config.storage.redis_budget_seconds)
            await self.shelf_redis.start()

    async def _tick(self, journal: Journal) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                journal.tick(time.monotonic())
            except Exception:  # blame: the gateway's own; what is written must go on being looked after
                _log.exception("the journal could not be looked after")


def _later(delay_s: float, work: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, work)


def _folder(path: Path) -> Path | None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        _log.warning(
            "state cannot be kept in %s: %s; requests are served, but usage, keys made at run time and limits do not outlive this process "
            "(storage.state_directory names another folder)",
            path,
            error.strerror or error,
        )
        return None
    return path
