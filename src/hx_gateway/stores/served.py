"""What is served where: written down by the workers when it changes, and brought into the store by the housekeeper."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.core.files import replace
from hx_gateway.fleet.registry import Registry

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

FILE = "fleet.json"
_LOOK_S = 10.0  # facts are learned without a change of the registry
_RENEW_S = 900.0


class Row(msgspec.Struct, frozen=True, order=True):
    """One model of one endpoint under one public name; 0 and empty for unknown."""

    name: str
    endpoint: str
    model: str
    provider: str
    digest: str
    capabilities: tuple[str, ...]
    context_length: int
    dimensions: int


def rows_of(registry: Registry) -> list[Row]:
    """What a registry serves, in a fixed order."""
    found = {}
    for target in registry.targets.values():
        for one in target.deployments:
            facts = one.endpoint.facts.of(one.upstream_model)
            known = (facts.digest, tuple(sorted(facts.able))) if facts is not None else ("", ())
            row = Row(
                target.name,
                one.endpoint.name,
                one.model,
                getattr(one.endpoint.provider, "name", ""),
                *known,
                one.context_length,
                one.dimensions,
            )
            found[row.name, row.endpoint, row.model] = row
    return sorted(found.values())


class ServedFile:
    """One worker's part: looks at the registry now and then, and writes the file when it says something new."""

    def __init__(self) -> None:
        self._registry: Registry | None = None
        self._rows: list[Row] | None = None
        self._next_s = 0.0

    def news(self, registry: Registry) -> list[Row]:
        """What is to be written now; empty where nothing has changed, and between looks."""
        now_s = time.monotonic()
        if registry is self._registry and now_s < self._next_s:
            return []
        self._registry, self._next_s = registry, now_s + _LOOK_S
        rows = rows_of(registry)
        if rows == self._rows:
            return []
        self._rows = rows
        return rows

    @staticmethod
    def write(folder: Path, rows: list[Row]) -> None:
        """Write the file, whole or not at all, unless another worker has written the same.

        Raises:
            OSError: It cannot be written.
        """
        path, data = folder / FILE, msgspec.json.encode(rows)
        if path.exists() and path.read_bytes() == data:
            return
        replace(path, data)


class Served:
    """The housekeeper's part: keeps the table ``registry``, in which what is no longer served stays with the time it was last seen.

    Args:
        folder: The state directory.
        url: Address of the store, as `config.storage.database_url` makes it.
    """

    name = "registry"
    interval_s = 5.0
    at_end = False

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        own = folder / "hx-gateway.db"
        self._own = own if url == f"sqlite:///{own}" else None  # the file that is made where no store is configured, and not for this
        self._seen = 0
        self._again_s = 0.0

    def _stamp(self) -> int:
        try:
            return (self.folder / FILE).stat().st_mtime_ns
        except OSError:
            return 0

    def pending(self) -> bool:
        """Whether the file has changed, or the store has not heard of it for long."""
        stamp = self._stamp()
        return bool(stamp) and (self._own is None or self._own.exists()) and (stamp != self._seen or time.monotonic() >= self._again_s)

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Bring the file into the store; says how many rows it has when it has changed.

        Raises:
            StoreError: The store cannot be used.
        """
        from hx_gateway.stores.sql.served import note

        stamp = self._stamp()
        rows = msgspec.json.decode((self.folder / FILE).read_bytes(), type=list[Row])
        await note(store, rows, int(time.time() * 1000))
        changed, self._seen, self._again_s = stamp != self._seen, stamp, time.monotonic() + _RENEW_S
        return {"rows": len(rows)} if changed else None
