"""The duty that brings what administrators did into the store's audit log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.ledger.audit import Deed, waiting

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

_log = logging.getLogger(__name__)


class ShippingDeeds:
    """Takes deeds from the state directory, each once.

    Args:
        folder: The state directory.
    """

    name = "audit"
    interval_s = 1.0
    at_end = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pending(self) -> bool:
        """Whether something was done."""
        return bool(waiting(self.folder))

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Ship them; says how many.

        Raises:
            StoreError: The store cannot be used; they wait.
        """
        from hx_gateway.stores.sql.keys import keep_deed
        from hx_gateway.stores.sql.usage import refused

        present = waiting(self.folder)
        for path in present:
            try:
                deed = msgspec.json.decode(path.read_bytes(), type=Deed)
            except msgspec.DecodeError:
                _log.error("%s is no deed and is left out of the audit log", path)
            else:
                try:
                    await keep_deed(store, deed)
                except Exception as error:  # blame: the deed's, behind which the others must not wait, or the store's
                    if not refused(error):
                        raise
                    _log.error("the store does not take the deed in %s, which is left out of the audit log: %s", path, error)
            path.unlink(missing_ok=True)
        return {"deeds": len(present)} if present else None
