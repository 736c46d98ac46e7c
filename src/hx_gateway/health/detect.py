"""Which dialect a server speaks, found out by asking it."""

from __future__ import annotations

from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.health.probes import Fetch, FetchResult, Unreachable

SERVICE_MARK = (b"x-hx-gateway", b"1")
"""Header on every answer of the control plane, so that a gateway does not take itself, or another, for a model server."""


async def ask(fetch: Fetch, endpoint: Endpoint) -> tuple[str | None, FetchResult | None]:
    """The dialect of what listens at an endpoint, and the answer that told.

    Returns:
        ``ollama`` or ``openai`` (for anything else that speaks HTTP); None when nothing answers.
    """
    try:
        answer = await fetch(endpoint, "/api/version")
        told = answer.json()
        if answer.status == 200 and isinstance(told, dict) and isinstance(told.get("version"), str):
            return "ollama", answer
    except Unreachable:
        pass  # a server may drop what it does not know; the second question decides
    try:
        return "openai", await fetch(endpoint, "/v1/models")
    except Unreachable:
        return None, None


async def detect(address: Address, api_key: str, fetch: Fetch) -> str | None:
    """The provider name for what listens at ``address``: ``ollama``, ``openai``, or None when nothing answers HTTP there.

    Args:
        address: Where to ask.
        api_key: Bearer key to ask with; empty for none.
        fetch: How to ask.
    """
    provider, _ = await ask(fetch, Endpoint("detection", address, api_key=api_key))
    return provider
