"""What a request wants of a model beyond plain text, and how long its prompt is at the least; looked for only where it can matter."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS, Route
from hx_gateway.core.errors import Failure
from hx_gateway.openai.requests import ChatFacts, EmbeddingsFacts, Facts

LEAST_BYTES_PER_TOKEN = 5.0
"""Bytes of text, blanks not counted, that no tokenizer makes fewer tokens of on average; English prose has about 3.6."""
_BLANKS = b" \t\r\n\x0b\x0c"
_IMAGES = ("image_url", "input_image")


class _Wishes(msgspec.Struct):
    tools: msgspec.Raw = msgspec.Raw()
    functions: msgspec.Raw = msgspec.Raw()
    tool_choice: Any = None
    function_call: Any = None
    think: Any = None
    reasoning_effort: Any = None
    reasoning: Any = None
    suffix: Any = None
    prompt: Any = None


_wishes = msgspec.json.Decoder(_Wishes)
_anything = msgspec.json.Decoder(Any)


def _read(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Failure(errors.INVALID_JSON, f"the body cannot be read as JSON: {error}") from None


def wants(route: Route, facts: Facts, body: bytes, lacking: Container[str]) -> dict[str, str]:
    """Abilities that a request needs, of ``fleet.facts.CAPABILITIES``, each with the field that asks for it.

    Args:
        route: What the request is for.
        facts: What was read of it.
        body: The whole body.
        lacking: Abilities worth looking for, because some model lacks them.

    Raises:
        Failure: ``invalid_json`` for what was not read before and cannot be read.
    """
    found: dict[str, str] = {}
    if route is EMBEDDINGS:
        return found
    if "completion" in lacking:
        found["completion"] = "model"
    if "vision" in lacking and isinstance(facts, ChatFacts) and b"image" in body and holds_images(facts.messages or ()):
        found["vision"] = "messages"
    tools = "tools" in lacking and (b'"tools"' in body or b'"functions"' in body)
    thinking = "thinking" in lacking and (b'"think"' in body or b'"reasoning' in body)
    suffix = "insert" in lacking and route is not CHAT and b'"suffix"' in body
    if not (tools or thinking or suffix):
        return found
    wishes: _Wishes = _read(_wishes, body)
    if tools and _filled(wishes.tools) and wishes.tool_choice != "none":
        found["tools"] = "tools"
    elif tools and _filled(wishes.functions) and wishes.function_call != "none":
        found["tools"] = "functions"
    if suffix and wishes.suffix:
        found["insert"] = "suffix"
    effort = wishes.reasoning.get("effort") if isinstance(wishes.reasoning, dict) else None
    if thinking and wishes.think is not False and (wishes.think or (wishes.reasoning_effort or effort or "none") != "none"):
        found["thinking"] = "think" if wishes.think else "reasoning_effort" if wishes.reasoning_effort else "reasoning"
    return found


def _filled(field: msgspec.Raw) -> bool:
    return bytes(field)[:1] == b"[" and bool(bytes(field)[1:-1].strip())


def holds_images(messages: Iterable[msgspec.Raw]) -> bool:
    """Whether a message has an image among its parts."""
    for message in messages:
        raw = bytes(message)
        if b"image" in raw and any(isinstance(part, dict) and part.get("type") in _IMAGES for part in _parts(raw)):
            return True
    return False


def _parts(message: bytes) -> list[Any]:
    decoded = _read(_anything, message)
    content = decoded.get("content") if isinstance(decoded, dict) else None
    return content if isinstance(content, list) else [{"text": content}]


def least_tokens(route: Route, facts: Facts, body: bytes) -> float:
    """Tokens that the prompt has at the least, whatever the tokenizer: of several prompts, the longest one's.

    Only text counts, and no blanks, since a run of them may be one token; an image counts nothing.

    Raises:
        Failure: ``invalid_json``.
    """
    if isinstance(facts, ChatFacts):
        return sum(_least(part.get("text")) for raw in facts.messages or () for part in _parts(bytes(raw)) if isinstance(part, dict))
    if isinstance(facts, EmbeddingsFacts):
        return _longest(_read(_anything, bytes(facts.input) or bytes(facts.prompt)))
    return _longest(_read(_wishes, body).prompt)


def _longest(prompt: Any) -> float:
    """Of one prompt or several, each a text or a list of token ids."""
    if not isinstance(prompt, list):
        return _least(prompt)
    if all(isinstance(item, int) for item in prompt):
        return float(len(prompt))
    return max((float(len(item)) if isinstance(item, list) else _least(item) for item in prompt), default=0.0)


def _least(text: Any) -> float:
    return len(text.encode("utf-8", "replace").translate(None, _BLANKS)) / LEAST_BYTES_PER_TOKEN if isinstance(text, str) else 0.0
