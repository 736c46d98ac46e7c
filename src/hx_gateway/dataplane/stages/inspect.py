"""Stage `inspect`: looks into the body, so that malformed requests end here with a clear 400."""

from __future__ import annotations

from typing import Any

from hx_gateway.core.context import Exchange
from hx_gateway.core.interfaces import Stage
from hx_gateway.openai.requests import look


def inspect(exchange: Exchange) -> None:
    """Fill ``exchange.facts`` from the body."""
    exchange.facts = look(exchange.route, exchange.body)


def build(gateway: Any) -> Stage | None:
    """The stage, the same for every gateway."""
    return inspect
