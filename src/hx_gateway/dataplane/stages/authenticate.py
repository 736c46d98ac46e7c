"""Stage `authenticate`: who is calling, by bearer key; refuses what has none."""

from __future__ import annotations

from typing import Any

from hx_gateway.core.context import Exchange
from hx_gateway.core.interfaces import Stage


def token_of(notes: dict[bytes, bytes]) -> bytes:
    """The API key a request carries: ``Authorization: Bearer``, ``x-api-key`` or ``api-key``; empty for none."""
    value = notes.get(b"authorization")
    if value is not None:
        if value[:7] == b"Bearer ":
            return value[7:]
        scheme, _, token = value.partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else b""
    return notes.get(b"x-api-key") or notes.get(b"api-key") or b""


def build(gateway: Any) -> Stage:
    """The stage for a gateway; while no key is known to it (then it listens on loopback only) it lets everybody pass."""
    keys = gateway.keys
    identify = keys.identify

    def authenticate(exchange: Exchange) -> None:
        if exchange.identity is not None:
            return  # the control plane has found out already, by a session of the dashboard
        token = token_of(exchange.notes)
        exchange.identity = identity = identify(token)
        if identity is None and keys.required:
            raise keys.refusal(token)

    return authenticate
