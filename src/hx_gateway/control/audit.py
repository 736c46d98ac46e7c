"""What administrators do through the API or the dashboard, for the audit log: one function for every route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hx_gateway.ledger.audit import note

if TYPE_CHECKING:
    from fastapi import Request

    from hx_gateway.control.dependencies import Gateway
    from hx_gateway.core.context import Identity

NOBODY = "anonymous"
"""Who acts where no key is asked for."""


def audit(
    gateway: Gateway, request: Request | None, caller: Identity | None, action: str, subject: str = "", result: str = "ok", **detail: Any
) -> None:
    """Write down that ``caller`` did something; it is in `/admin/audit` a second or two later, also if the store is away meanwhile.

    Args:
        gateway: The gateway.
        request: Where it came from; None for unknown.
        caller: Who; None where no key is asked for.
        action: What, e.g. ``reload``, ``endpoint.drain``.
        subject: To what, by name.
        result: ``ok``, or what became of it in a word.
        detail: What else there is to say; plain data, never a secret.
    """
    if caller is not None and caller.id:
        detail["by"] = caller.id
    address = request.client.host if request is not None and request.client else ""
    note(gateway.backing.folder, caller.name if caller is not None else NOBODY, action, subject, address, result, **detail)
