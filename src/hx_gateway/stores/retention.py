"""The duty that keeps the store from growing for ever: what is past its time goes, and Postgres gets its partitions in time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hx_gateway.config.ledger import LedgerSettings
    from hx_gateway.stores.sql.engine import Store

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


class Retention:
    """Looks every quarter of an hour.

    Args:
        settings: For how long things are kept.
        url: Address of the store, as `config.storage.database_url` makes it.
    """

    name = "retain"
    interval_s = 900.0
    at_end = False

    def __init__(self, settings: LedgerSettings, url: str) -> None:
        self.settings = settings
        self._file = Path(url.removeprefix("sqlite:///")).expanduser() if url.startswith("sqlite:") else None

    def pending(self) -> bool:
        """Whether there may be something to do."""
        if self._file is None:
            return True
        settings = self.settings
        return self._file.exists() and any((settings.retention_days, settings.audit_retention_days, settings.bodies_retention_days))

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Make partitions, and take out what is past its time; says how much that was.

        Raises:
            StoreError: The store cannot be used, or is too busy; what is left is done by the next run.
        """
        from hx_gateway.stores.sql import pruning

        now_ms = int(time.time() * 1000)
        found = {"made": await pruning.part_ahead(store, now_ms) if store.kind == "postgresql" else 0}
        # By whole hours, so that the rows of an hour and their sums agree, or there are none.
        hour_ms = now_ms - now_ms % _HOUR_MS
        settings = self.settings
        if settings.retention_days:
            found |= await pruning.prune_usage(store, hour_ms - settings.retention_days * _DAY_MS)
        if settings.sums_retention_days and settings.retention_days:
            day_ms = now_ms - now_ms % _DAY_MS  # whole days, so that both sums of a day go together
            found["sums"] = await pruning.prune_sums(
                store, day_ms - max(settings.sums_retention_days, settings.retention_days + 32) * _DAY_MS
            )
        if settings.audit_retention_days:
            found["audit"] = await pruning.prune_audit(store, hour_ms - settings.audit_retention_days * _DAY_MS)
        if settings.bodies_retention_days:
            found["bodies"] = await pruning.prune_bodies(store, hour_ms - settings.bodies_retention_days * _DAY_MS)
        return found if any(found.values()) else None
