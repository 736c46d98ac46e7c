"""Stage `inspect`: looks into the body, so that malformed requests end here with a clear 400."""

from __future__ import annotations

from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Stage
from hx_gateway.openai.requests import look

LONGEST_S = 3600.0


def inspect(exchange: Exchange) -> None:
    """Fill ``exchange.facts`` from the body, and the client's own deadline from its header."""
    exchange.facts = look(exchange.route, exchange.body)
    asked = exchange.notes.get(b"x-hx-timeout-ms")
    if asked is not None:
        exchange.timeout_s = _timeout_s(asked)


def _timeout_s(asked: bytes) -> float:
    if not asked.isdigit() or len(asked) > 9 or not int(asked):
        raise Failure(errors.INVALID_VALUE, "X-HX-Timeout-Ms: must be a whole number of milliseconds above 0", param="X-HX-Timeout-Ms")
    return min(int(asked) / 1000, LONGEST_S)


def build(gateway: Any) -> Stage | None:
    """The stage, the same for every gateway."""
    return inspect
