"""Stage `authenticate`: who is calling, by bearer key; refuses what has none."""

from __future__ import annotations

from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
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


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where no key is configured (then it listens on loopback only)."""
    keys = gateway.keys
    if not keys.required:
        return None
    identify = keys.identify

    def authenticate(exchange: Exchange) -> None:
        token = token_of(exchange.notes)
        exchange.identity = identity = identify(token)
        if identity is None:
            raise refused(token)

    return authenticate


def refused(token: bytes) -> Failure:
    """Why a token is not accepted."""
    if not token:
        return Failure(errors.INVALID_API_KEY, "no API key was sent; send it as 'Authorization: Bearer YOUR_KEY'")
    return Failure(errors.INVALID_API_KEY, "the API key is not known to this gateway; check it, or ask its operator for one")
