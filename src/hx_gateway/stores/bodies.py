"""The duty that brings bodies of requests and answers into the store; they are read there by the request's id."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hx_gateway.ledger.bodies import Kept, read, waiting
from hx_gateway.ledger.segment import grasp

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_BATCH_BYTES = 1 << 20


class ShippingBodies:
    """Takes the files that no worker writes to any more, and deletes them once they are in the store.

    Args:
        folder: The state directory.
    """

    name = "bodies"
    interval_s = 0.5
    at_end = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shipped = 0

    def pending(self) -> bool:
        """Whether there is a file."""
        return bool(waiting(self.folder))

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Ship what there is; says how many it was so far.

        Raises:
            StoreError: The store cannot be used; what was not shipped is shipped by the next run.
        """
        from hx_gateway.stores.sql.bodies import keep

        before = self.shipped
        for path in waiting(self.folder):
            descriptor = grasp(path)
            if descriptor < 0:
                continue
            try:
                batch: list[Kept] = []
                size = 0
                for one in read(await asyncio.to_thread(path.read_bytes)):
                    batch.append(one)
                    size += len(one[2]) + len(one[3])
                    if size >= _BATCH_BYTES:
                        await keep(store, batch)
                        self.shipped += len(batch)
                        batch, size = [], 0
                if batch:
                    await keep(store, batch)
                    self.shipped += len(batch)
                path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        return {"bodies": self.shipped} if self.shipped != before else None
