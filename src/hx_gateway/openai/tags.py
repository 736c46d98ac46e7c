"""The tags that a request asks for its deployment by: of its headers, and of its body as LiteLLM's clients send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hx_gateway.core.context import Exchange

_LITELLM = b"x-litellm-tags: "
_MOST = 64  # of one request, and
_LONGEST = 256  # characters of one


class _Tagged(msgspec.Struct):
    metadata: Any = None
    tags: Any = None


_decode = msgspec.json.Decoder(_Tagged).decode


def tags_of(exchange: Exchange) -> frozenset[str]:
    """Tags in the header ``X-HX-Tags`` (or ``X-LiteLLM-Tags``), split at commas, and in the body's ``metadata.tags`` or ``tags``, lists of texts."""
    found = list(_headers(exchange))
    if b'"tags"' in exchange.body:
        try:
            body = _decode(exchange.body)
        except (msgspec.DecodeError, RecursionError):
            body = _Tagged()
        for given in (body.metadata.get("tags") if isinstance(body.metadata, dict) else None, body.tags):
            found += [tag for tag in given if isinstance(tag, str)] if isinstance(given, list) else ()
    return frozenset(tag for tag in found[:_MOST] if tag.strip("&!") and len(tag) <= _LONGEST)


def _headers(exchange: Exchange) -> Iterator[str]:
    # LiteLLM's own goes on to a LiteLLM behind the gateway, and so is among what is forwarded: whole lines, in any number of pieces.
    given = [line[len(_LITELLM) :] for line in b"".join(exchange.forward).split(b"\r\n") if line.startswith(_LITELLM)]
    for value in (exchange.notes.get(b"x-hx-tags", b""), *given):
        yield from (tag.strip() for tag in value.decode("latin-1").split(","))
