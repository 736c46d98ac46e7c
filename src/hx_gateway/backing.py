"""What stands behind a worker and may fail without it: the state directory and what is kept there."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hx_gateway.access.shared import Shared
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import state_directory
from hx_gateway.core.errors import Unavailable
from hx_gateway.dataplane.metering import Metering
from hx_gateway.ledger.journal import FOLDER, Journal
from hx_gateway.ledger.observer import Ledger

if TYPE_CHECKING:
    from hx_gateway.stores.redis import Redis

_TICK_S = 1.0

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
        self.redis: Redis | None = None
        self.redis_missing = ""  # why there is none, though one is configured
        self._memory = memory
        self.folder: Path | None = None  # the state directory; None until `start`, and where it cannot be written
        self.ledger = Ledger()
        self._ticking: asyncio.Task[None] | None = None

    def adopt(self, config: GatewayConfig) -> None:
        """Take over what a newer configuration may change while running."""
        self.config = config
        self.ledger.wanted = config.ledger.enabled
        self.ledger.believe(config.ledger.end_user_header, config.ledger.end_user_keys)

    async def start(self) -> None:
        """Open what is kept in the state directory."""
        self.folder = _folder(state_directory(self.config.storage, os.environ))
        self.metering.limiter.open(self.folder, self._memory)
        await self._start_redis()
        settings = self.config.ledger
        if self.folder is not None and settings.enabled:
            journal = Journal(self.folder / FOLDER, settings.segment_bytes, settings.journal_max_bytes, settings.dead_letter_max_bytes)
            await asyncio.to_thread(journal.start)
            self.ledger.journal = journal
            self._ticking = asyncio.create_task(self._tick(journal), name="journal")

    async def stop(self) -> None:
        """Close everything, with nothing lost."""
        shared, self.metering.shared = self.metering.shared, None
        if shared is not None:
            await shared.stop()
        if self.redis is not None:
            await self.redis.stop()
        self.metering.limiter.close()
        journal, self.ledger.journal = self.ledger.journal, None
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        if journal is not None:
            await asyncio.to_thread(journal.stop)
        self.folder = None

    async def _start_redis(self) -> None:
        """Connect to Redis, where one is configured."""
        url = self.config.storage.redis_url
        if url is None:
            return
        from hx_gateway.stores.redis import Redis  # only where it is used

        try:
            self.redis = Redis(url.reveal())
        except (Unavailable, ValueError) as error:
            self.redis_missing = str(error)
            _log.error("%s; limits are kept by this gateway for itself", error)
            return
        await self.redis.start()
        table = self.metering.limiter.table
        self.metering.shared = Shared(self.metering.limiter, self.redis, table.id, f"{table.id[:8]}-{secrets.token_hex(6)}")
        self.metering.shared.start()

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
