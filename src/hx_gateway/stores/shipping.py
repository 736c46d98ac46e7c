"""The duty that brings the journal into the store: segments of all processes, living and dead, in order, each record once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hx_gateway.ledger.letters import segments, set_aside, set_row_aside
from hx_gateway.ledger.reading import read
from hx_gateway.ledger.record import UsageRecord
from hx_gateway.ledger.segment import START, grasp, note_shipped, read_head

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_BATCH = 2000
_WINDOW = 1 << 20  # bytes read at a time of a segment that is being written: most of it may still be empty
_log = logging.getLogger(__name__)


class Shipping:
    """Reads segments while they are written, and deletes those that are finished once every record of them is in the store.

    A record the store refuses goes to the dead letters alone, with the reason; a store in trouble is simply tried again later.

    Args:
        folder: The journal's.
        dead_letter_max_bytes: Most bytes of dead letters.
        batch: Most records of one transaction.
    """

    name = "ship"
    interval_s = 0.5
    at_end = True

    def __init__(self, folder: Path, dead_letter_max_bytes: int, batch: int = _BATCH) -> None:
        self.folder = folder
        self.dead_letter_max_bytes = dead_letter_max_bytes
        self.batch = batch
        self.shipped = self.refused = self.damaged = 0
        self._positions: dict[str, int] = {}  # as the store has them; one that is not sure is not there
        self._records: dict[str, int] = {}  # shipped of each, for reports
        self._damage: dict[str, int] = {}  # places passed over in each
        self._gone: list[str] = []
        self._swept = False

    def pending(self) -> bool:
        """Whether a segment holds something new, or is finished."""
        return any(self._news(path) for path in segments(self.folder))

    def _news(self, path: Path) -> bool:
        descriptor = grasp(path)
        try:
            if descriptor >= 0:
                return True
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return any(os.pread(descriptor, 4, self._positions.get(path.name, START)))
        except OSError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Ship everything there is.

        Raises:
            StoreError: The store cannot be used; what was not shipped is shipped by the next run.
        """
        from hx_gateway.stores.sql import usage

        present = segments(self.folder)
        names = {path.name for path in present}
        self._positions = {name: at for name, at in self._positions.items() if name in names}
        for path in present:
            await self._ship(store, path)
        if self._gone or not self._swept:
            await usage.forget(store, self._gone)
            self._gone, self._swept = [], True
        return {"records": self.shipped, "refused": self.refused, "damaged": self.damaged}

    async def _ship(self, store: Store, path: Path) -> None:
        from hx_gateway.stores.sql import usage

        descriptor = grasp(path)
        finished = descriptor >= 0
        try:
            if not finished:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            head = read_head(os.pread(descriptor, START, 0))
            if head is None:
                if finished:
                    self._damaged(path, "its head cannot be read")
                return
            self._records.setdefault(path.name, head.shipped_records)
            damaged = await self._records_of(store, path.name, descriptor, head.salt, finished)
            if finished:
                await asyncio.to_thread(usage.settle, store)
                self._done(path, damaged)
        except FileNotFoundError:
            return  # it went to the dead letters meanwhile
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    async def _records_of(self, store: Store, name: str, descriptor: int, salt: int, finished: bool) -> int:
        """Ship what a segment holds from its position on; returns how many places in it are damaged."""
        from hx_gateway.stores.sql import usage

        while True:
            at = self._positions.pop(name, None)  # it is not known again before a transaction has surely ended
            if at is None:
                at = await usage.position(store, name, START)
            base = at
            size = os.fstat(descriptor).st_size - base if finished else _WINDOW
            data = await asyncio.to_thread(os.pread, descriptor, size, base)
            try:
                while (found := read(data, base, at, salt, self.batch, finished)).records:
                    self._damage[name] = self._damage.get(name, 0) + found.damaged
                    at = await self._keep(store, name, at, found.records)
                    note_shipped(descriptor, at, self._records[name])
            except usage.Moved:
                continue
            self._positions[name] = at
            if not finished and at - base > _WINDOW >> 1:
                continue
            return self._damage.get(name, 0) + found.damaged

    async def _keep(self, store: Store, name: str, at: int, records: Sequence[tuple[UsageRecord, int]]) -> int:
        """Store records; where the store refuses some, those are found by halves. Returns the position behind them."""
        from hx_gateway.stores.sql import usage

        end = records[-1][1]
        try:
            await usage.keep(store, name, at, end, [record for record, _ in records])
        except Exception as error:
            if not usage.refused(error):
                raise
            if len(records) > 1:
                half = len(records) // 2
                return await self._keep(store, name, await self._keep(store, name, at, records[:half]), records[half:])
            ((record, _),) = records
            set_row_aside(self.folder, name, record, str(error), self.dead_letter_max_bytes // 4)
            await usage.keep(store, name, at, end, [])
            self.refused += 1
            _log.error("the store refuses the usage record %s, which is set aside: %s", record.id, error)
        else:
            self.shipped += len(records)
        self._records[name] += len(records)
        return end

    def _done(self, path: Path, damaged: int) -> None:
        """All of a finished segment is in the store, but for what is damaged."""
        if damaged:
            self._damaged(path, f"{damaged} places in it cannot be read; all else is in the store")
        else:
            path.unlink(missing_ok=True)
        for known in (self._positions, self._records, self._damage):
            known.pop(path.name, None)
        self._gone.append(path.name)

    def _damaged(self, path: Path, why: str) -> None:
        self.damaged += 1
        _log.error("the journal's segment %s is damaged and set aside: %s", path.name, why)
        set_aside(path, self.dead_letter_max_bytes)
