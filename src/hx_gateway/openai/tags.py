"""The tags that a request asks for its deployment by: of its headers, and of its body as LiteLLM's clients send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hx_gateway.core.context import Exchange
from hx_gateway.openai.requests import decoded, rewritten

_LITELLM = b"x-litellm-tags: "
_MOVED = b" tags"  # among the notes; no header is called so
_MOST = 64  # of one request, and
_LONGEST = 256  # characters of one


class _Tagged(msgspec.Struct):
    metadata: Any = None
    tags: Any = None


_decode = msgspec.json.Decoder(_Tagged).decode


def tags_of(exchange: Exchange) -> frozenset[str]:
    """Tags in the header ``X-HX-Tags`` (or ``X-LiteLLM-Tags``), split at commas, and in the body's ``metadata.tags`` or ``tags``, lists of texts."""
    moved = exchange.notes.get(_MOVED)
    own = moved.decode().split("\0") if moved is not None else _in_body(exchange.body)
    found = [*_headers(exchange), *own]
    return frozenset(tag for tag in found[:_MOST] if tag.strip("&!") and len(tag) <= _LONGEST)


def move_tags(exchange: Exchange) -> None:
    """Take the tags out of the body and keep them beside it: OpenAI's servers refuse a list in ``metadata``."""
    found = _in_body(exchange.body)
    if not found:
        return
    body = decoded(exchange.body)
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        metadata = {name: value for name, value in metadata.items() if name != "tags"}
    exchange.body = rewritten(exchange.body, {"metadata": metadata} if metadata else {}, ("tags",) if metadata else ("tags", "metadata"))
    exchange.notes = {**exchange.notes, _MOVED: "\0".join(found).encode("utf-8", "replace")}


def _in_body(body: bytes) -> list[str]:
    if b'"tags"' not in body:
        return []
    try:
        read = _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return []
    lists = (read.metadata.get("tags") if isinstance(read.metadata, dict) else None, read.tags)
    return [tag for given in lists if isinstance(given, list) for tag in given if isinstance(tag, str)]


def _headers(exchange: Exchange) -> Iterator[str]:
    # LiteLLM's own goes on to a LiteLLM behind the gateway, and so is among what is forwarded: whole lines, in any number of pieces.
    given = [line[len(_LITELLM) :] for line in b"".join(exchange.forward).split(b"\r\n") if line.startswith(_LITELLM)]
    for value in (exchange.notes.get(b"x-hx-tags", b""), *given):
        yield from (tag.strip() for tag in value.decode("utf-8", "replace").split(","))
