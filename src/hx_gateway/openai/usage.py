"""The token counts in answers, however a server chooses to spell them."""

from __future__ import annotations

import msgspec

from hx_gateway.core.context import Exchange


class PromptDetails(msgspec.Struct):
    """``prompt_tokens_details`` of a usage object."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """A usage object; counts are tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


def note_usage(exchange: Exchange, usage: Usage | None) -> None:
    """Write the counts that are there into the exchange."""
    if usage is None:
        return
    if usage.prompt_tokens is not None:
        exchange.prompt_tokens = usage.prompt_tokens
    if usage.completion_tokens is not None:
        exchange.completion_tokens = usage.completion_tokens
    details = usage.prompt_tokens_details
    if details is not None and details.cached_tokens is not None:
        exchange.cached_tokens = details.cached_tokens
