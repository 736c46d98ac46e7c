"""Stage `authenticate`: who is calling, by bearer key; refuses what has none."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from hx_gateway.core.context import Exchange
from hx_gateway.core.headers import DIGEST
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
    holder = keys.holder

    def authenticate(exchange: Exchange) -> None:
        if exchange.identity is not None:
            return  # the control plane has found out already, by a session of the dashboard
        notes = exchange.notes
        digest = notes.get(DIGEST)
        if digest is None:  # a connection that sends the same key again brings it along
            digest = notes[DIGEST] = sha256(token_of(notes)).digest()
        exchange.identity = identity = holder(digest)
        if identity is None and keys.required:
            raise keys.refusal(token_of(notes))

    return authenticate
