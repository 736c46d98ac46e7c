"""What all workers together have under way at each deployment, told to each other through the file that limits are shared in."""

from __future__ import annotations

import time
from collections.abc import Iterable
from hashlib import blake2b

from hx_gateway.access.limiter import Limiter
from hx_gateway.access.table import Table
from hx_gateway.fleet.deployment import Deployment


class Census:
    """Counts that are written down now and then, so that no request pays for them.

    Args:
        limiter: Whose table is used; a deployment takes a slot of it as a key does.
    """

    __slots__ = ("_indexes", "_limiter", "_table")

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._table: Table | None = None
        self._indexes: dict[str, int] = {}

    def tell(self, deployments: Iterable[Deployment]) -> None:
        """Write down what this process has under way; called with every sweep, so that others know it that soon."""
        for deployment in deployments:
            table, index = self._place(deployment)
            change = deployment.in_flight - table.mine(index)[0] if index >= 0 else 0
            if change:
                table.add(index, change)

    def of(self, deployment: Deployment) -> int:
        """Requests under way at a deployment: of this process as they are now, of others as they told last.

        Where there is no room in the table it is those of this process alone.
        """
        table, index = self._place(deployment)
        if index < 0 or table.column < 0:
            return deployment.in_flight
        self.tell((deployment,))
        table.take_back(time.monotonic())
        return table.requests(index)

    def _place(self, deployment: Deployment) -> tuple[Table, int]:
        table = self._limiter.table
        if table is not self._table:
            self._table, self._indexes = table, {}
        name = f"{deployment.model} {deployment.place} {deployment.endpoint.address}"
        index = self._indexes.get(name)
        if index is None:
            key = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16, person=b"deployment").digest()
            index = self._indexes[name] = table.find(key, self._limiter.today()[0])
        return table, index
