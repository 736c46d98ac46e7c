"""Duties about the use of keys: budgets that several machines share without Redis, and when each key was used last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hx_gateway.access.account import NANO, key_of
from hx_gateway.access.snapshot import FILE, Unreadable, read
from hx_gateway.access.table import State, Table, TableError

if TYPE_CHECKING:
    from hx_gateway.config.schema import GatewayConfig
    from hx_gateway.core.context import KeyLimits
    from hx_gateway.stores.sql.engine import Store

MAP = "limits.map"
_DAY_MS = 86_400_000
_REACH_MS = 31 * _DAY_MS
_LATE_MS = 120_000  # what took longer to arrive waits for the key's next use


class Budgets:
    """Raises what was used of budgets here to what all gateways on one store used together, some seconds late.

    Args:
        config: The configuration.
        folder: The state directory.
        url: Address of the store, as `config.storage.database_url` makes it.
    """

    name = "budgets"
    interval_s = 3.0
    at_end = False

    def __init__(self, config: GatewayConfig, folder: Path, url: str) -> None:
        self.config = config
        self.folder = folder
        self._shared = url != f"sqlite:///{folder / 'hx-gateway.db'}"  # which nobody else writes to

    def pending(self) -> bool:
        """Whether budgets are kept here that others may use, too."""
        return self._shared and (self.folder / MAP).exists()

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Raise them; says how many were.

        Raises:
            StoreError: The store cannot be used; what is known here stays.
        """
        from hx_gateway.stores.sql.key_usage import totals

        now_ms = int(time.time() * 1000)
        day_ms = now_ms - now_ms % _DAY_MS
        date = datetime.fromtimestamp(day_ms / 1000, UTC)
        found = await totals(store, day_ms - (date.day - 1) * _DAY_MS, day_ms)
        budgeted = {id for id, limits in self._limits() if limits.day_tokens or limits.month_tokens or limits.day_cost or limits.month_cost}
        day, month = day_ms // _DAY_MS, date.year * 12 + date.month - 1
        try:
            table = Table(self.folder / MAP, counts=False)
        except TableError:
            return None  # the workers have said so
        raised = 0
        try:
            for spent in found:
                id = spent.id or spent.name
                index = table.find(key_of(id), day, make=id in budgeted)
                if index >= 0:
                    of_day, of_month = (spent.day_tokens, int(spent.day_cost * NANO)), (spent.month_tokens, int(spent.month_cost * NANO))
                    raised += _raised(table, index, day, month, of_day, of_month)
        finally:
            table.close()
        return {"raised": raised} if raised else None

    def _limits(self) -> Iterator[tuple[str, KeyLimits]]:
        for own in self.config.keys.api_keys:
            limits = own.limits.frozen() if own.limits is not None else None
            if limits is not None:
                yield own.name, limits
        try:
            for key in read(self.folder / FILE).keys:
                yield key.id, key.limits
        except (FileNotFoundError, Unreadable):
            return


def _raised(table: Table, index: int, day: int, month: int, of_day: tuple[int, int], of_month: tuple[int, int]) -> bool:
    """Raise a slot's sums to those given, tokens and money of each period; whether that changed it."""
    if not table.acquire(index):
        return False  # the next run
    try:
        state = State()
        if not table.read(index, state):
            return False
        if state.day < day:
            state.day, state.day_tokens, state.day_cost = day, 0, 0
        if state.month < month:
            state.month, state.month_tokens, state.month_cost = month, 0, 0
        before = state.day_tokens, state.day_cost, state.month_tokens, state.month_cost
        if state.day == day:
            state.day_tokens, state.day_cost = max(state.day_tokens, of_day[0]), max(state.day_cost, of_day[1])
        if state.month == month:
            state.month_tokens, state.month_cost = max(state.month_tokens, of_month[0]), max(state.month_cost, of_month[1])
        if before == (state.day_tokens, state.day_cost, state.month_tokens, state.month_cost):
            return False
        table.write(index, state)
        return True
    finally:
        table.release(index)


class LastUse:
    """Writes down when keys of the store were used last, from the ledger: to the row that arrived last, about a minute late.

    Args:
        folder: The state directory.
        url: Address of the store.
    """

    name = "use"
    interval_s = 30.0
    at_end = False

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._since_ms = 0

    def pending(self) -> bool:
        """Whether there are keys in the store."""
        try:
            return bool(read(self._folder / FILE).keys)
        except (FileNotFoundError, Unreadable):
            return False

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Do it; says how many keys were used since the last time.

        Raises:
            StoreError: The store cannot be used.
        """
        from hx_gateway.stores.sql.key_usage import note_use

        now_ms = int(time.time() * 1000)
        first = not self._since_ms
        used = await note_use(store, (now_ms if first else self._since_ms) - _LATE_MS, now_ms - _REACH_MS if first else None)
        self._since_ms = now_ms
        return {"used": used} if used else None
