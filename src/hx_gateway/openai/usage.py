"""The token counts in answers, however a server chooses to spell them."""

from __future__ import annotations

import msgspec

from hx_gateway.core.context import Exchange

_BYTES_PER_TOKEN = 4


class PromptDetails(msgspec.Struct, gc=False):
    """``prompt_tokens_details`` of a usage object."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
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


def estimate(exchange: Exchange, completion_tokens: int) -> None:
    """Fill the counts that no server told, and mark them as estimates: the prompt's by its length, the answer's as given."""
    if exchange.prompt_tokens < 0:
        facts = exchange.facts
        messages = getattr(facts, "messages", None)
        size = sum(len(bytes(message)) for message in messages) if messages else len(exchange.body)
        exchange.prompt_tokens = size // _BYTES_PER_TOKEN + 1
        exchange.estimated = True
    if exchange.completion_tokens < 0:
        exchange.completion_tokens = completion_tokens
        exchange.estimated = exchange.estimated or completion_tokens > 0
