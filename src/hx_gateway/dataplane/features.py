"""What a prompt tells the router: its length, hashes of its leading blocks, and the conversation it belongs to."""

from __future__ import annotations

from collections.abc import Sequence

from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target
from hx_gateway.openai.requests import ChatFacts, Facts
from hx_gateway.routing.ask import Ask

BYTES_PER_TOKEN = 4.0
"""Rough, for English text and JSON; only differences between candidates matter."""


def _edges() -> tuple[int, ...]:
    """Ends of the blocks a prompt is cut into, in bytes: fine at the front, where prompts differ, coarse further on.

    They depend on the position alone, so that a conversation that grows keeps the blocks it had.
    """
    ends = list(range(1024, 16_384 + 1, 1024))
    ends += range(ends[-1] + 4096, 131_072 + 1, 4096)
    ends += range(ends[-1] + 16_384, 1_048_576 + 1, 16_384)
    return tuple(ends)


EDGES = _edges()
TOKENS = (0.0, *(end / BYTES_PER_TOKEN for end in EDGES))
"""Tokens covered by so many leading blocks."""


def prompt_of(exchange: Exchange) -> bytes:
    """The bytes that a model will read, as far as they can be had without decoding."""
    if exchange.route is CHAT:
        chat: ChatFacts = exchange.facts
        return b"".join(bytes(message) for message in chat.messages or ())
    return exchange.body


def blocks_of(prompt: bytes) -> list[int]:
    """Keyed hashes of the leading blocks of a prompt, each covering all before it.

    Python's hash of bytes is keyed anew in every process, so the hashes tell nothing of the text and mean nothing
    elsewhere.
    """
    blocks: list[int] = []
    start = chain = 0
    for end in EDGES:
        if end > len(prompt):
            break
        chain = hash((chain, prompt[start:end]))
        blocks.append(chain)
        start = end
    return blocks


def ask_of(exchange: Exchange, target: Target, affine: bool, tried: Sequence[Deployment] = ()) -> Ask:
    """The exchange as the router sees it.

    Args:
        exchange: With its facts.
        target: The name it asks for now.
        affine: Whether prefixes and conversations matter to the policy.
        tried: Deployments that already failed it.
    """
    facts: Facts = exchange.facts
    output = facts.max_completion_tokens or facts.max_tokens or 0
    prompt = prompt_of(exchange)
    tokens = len(prompt) / BYTES_PER_TOKEN + 1.0
    if not affine:
        return Ask(target, tokens, output, tried=tried)
    given = exchange.notes.get(b"x-hx-session") or facts.prompt_cache_key or facts.user
    identity = exchange.identity
    # A conversation is its key's own: another key's request cannot be drawn to it.
    session = hash((identity.name if identity is not None else "", given)) if given else 0
    ask = Ask(target, tokens, output, blocks_of(prompt), session=session, tried=tried)
    ask.edges = TOKENS
    return ask
