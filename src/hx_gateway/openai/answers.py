"""Whole answers in OpenAI's dialect: checked, counted, and given the name the client asked for."""

from __future__ import annotations

import base64
import math
import re
import struct
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.openai.sse import DONE, event, said_error
from hx_gateway.openai.usage import Usage, estimate, note_usage

_ABSENT = msgspec.Raw()


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = _ABSENT


class _Item(msgspec.Struct):
    embedding: msgspec.Raw = msgspec.Raw()


class _Embeddings(msgspec.Struct):
    model: str | None = None
    data: list[_Item] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_CHOICE = 90  # bytes of a choice that are not its text
_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode
_model_value = re.compile(rb'"model" ?: ?"[^"\\]*"')


def refuses_credentials(status: int, body: bytes) -> bool:
    """Whether a model server refuses the credentials it was sent, or LiteLLM has no database to look them up in.

    They are the gateway's own: a client must never be told 401, nor LiteLLM's 400 "No connected db.", for them.
    """
    return status == 401 or (status == 400 and (b"no_db_connection" in body or b"No connected db" in body))


def _bad(message: str) -> Failure:
    return Failure(errors.BAD_RESPONSE, f"the model server's answer is not valid: {message}")


def _renamed(body: bytes, model: str, asked: str) -> bytes:
    """The body with ``asked`` as its model, spliced where the key stands once."""
    value = b'"model":' + msgspec.json.encode(asked)
    if body.count(b'"model"') == 1:
        spliced, count = _model_value.subn(lambda _: value, body, count=1)
        if count:
            return spliced
    whole = msgspec.json.decode(body)
    whole["model"] = asked
    return msgspec.json.encode(whole)


def checked(exchange: Exchange, body: bytes) -> bytes:
    """A whole answer to a chat or completion request, ready for the client.

    Raises:
        Failure: ``bad_upstream_response`` when it is not JSON, holds an error, or has no choices.
    """
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad(str(error)) from None
    if answer.error is not _ABSENT and bytes(answer.error) != b"null":
        raise Failure(errors.UPSTREAM_ERROR, f"the model server reported: {said_error(bytes(answer.error), 'an error')}")
    if not answer.choices:
        raise _bad("it has no choices")
    note_usage(exchange, answer.usage)
    if exchange.completion_tokens < 0:
        estimate(exchange, sum(max(1, (len(bytes(choice)) - _CHOICE) // 4) for choice in answer.choices))
    asked = exchange.asked
    if answer.model != asked and answer.model is not None:
        return _renamed(body, answer.model, asked)
    return body


def checked_embeddings(exchange: Exchange, body: bytes, expected: int, as_base64: bool, wanted: int = 0, may_cut: bool = False) -> bytes:
    """A whole answer to an embeddings request, ready for the client.

    Args:
        exchange: Filled with token counts.
        body: The server's answer, vectors as lists of floats (a base64 vector passes where base64 was asked for).
        expected: Length the model's vectors have by configuration; 0 for any.
        as_base64: Whether the client wants little-endian float32 in base64.
        wanted: Length the client asked for; 0 for the model's own.
        may_cut: Whether a longer vector may be shortened to ``wanted``.

    Raises:
        Failure: ``bad_upstream_response`` for an empty, nested, missing or wrongly sized vector; ``unsupported_parameter`` where the
            server does not heed the length that was asked for.
    """
    try:
        answer = _decode_embeddings(_skeleton(body))
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad(str(error)) from None
    if bytes(answer.error) not in (b"", b"null"):
        raise Failure(errors.UPSTREAM_ERROR, f"the model server reported: {said_error(bytes(answer.error), 'an error')}")
    if not answer.data:
        raise _bad("it has no embeddings")
    if answer.usage is not None:
        answer.usage.completion_tokens = None
        note_usage(exchange, answer.usage)
    if exchange.prompt_tokens < 0:
        estimate(exchange, 0)
    for item in answer.data:
        vector = bytes(item.embedding)
        if vector[:1] not in (b"[", b'"') or vector in (b"[]", b'""'):
            raise _bad("an embedding is empty or missing")
        if vector[1:].lstrip()[:1] == b"[":
            raise _bad("an embedding is a list of vectors; the server must pool them into one per input")
    if as_base64 or expected or wanted or any(bytes(item.embedding)[:1] == b'"' for item in answer.data):
        return _reencoded(exchange, body, expected, as_base64, wanted, may_cut)
    if answer.model != exchange.asked and answer.model is not None:
        return _renamed(body, answer.model, exchange.asked)
    return body


def embedding_length(body: bytes) -> int:
    """Length of the first vector of an embeddings answer; 0 where it cannot be told, which `checked_embeddings` will say why."""
    try:
        answer = _decode_embeddings(body)
        vector = msgspec.json.decode(answer.data[0].embedding) if answer.data else []
        return len(floats(vector)) if isinstance(vector, list | str) else 0
    except (msgspec.DecodeError, RecursionError, Failure):
        return 0


def _skeleton(body: bytes) -> bytes:
    """The body with each long vector shortened to one number, so that checking its structure does not cost reading it.

    Only a vector that is plainly flat is shortened; anything else stays, for the decoder to judge.
    """
    pieces: list[bytes] = []
    at = 0
    while True:
        key = body.find(b'"embedding":', at)
        if key < 0:
            break
        opening = body.find(b"[", key + 12, key + 14)
        closing = body.find(b"]", key)
        if opening < 0 or closing < 0:
            break
        if closing - opening > 256 and _flat(body, opening, closing):
            pieces += (body[at : opening + 1], b"0")
        else:
            pieces.append(body[at:closing])
        at = closing
    pieces.append(body[at:])
    return b"".join(pieces)


def _flat(body: bytes, opening: int, closing: int) -> bool:
    """Whether a vector begins and ends like a list of numbers and holds no bracket, quote, or word such as NaN or null."""
    return (
        body[opening + 1] in b"-0123456789 \n"
        and body[closing - 1] in b"0123456789 \n"
        and body.find(b"[", opening + 1, closing) < 0
        and body.find(b'"', opening + 1, closing) < 0
        and body.find(b"{", opening + 1, closing) < 0
        and body.find(b"}", opening + 1, closing) < 0
        and body.find(b":", opening + 1, closing) < 0
        and body.find(b"n", opening + 1, closing) < 0
        and body.find(b"N", opening + 1, closing) < 0
    )


def _reencoded(exchange: Exchange, body: bytes, expected: int, as_base64: bool, wanted: int, may_cut: bool) -> bytes:
    whole: dict[str, Any] = msgspec.json.decode(body)
    for item in whole["data"]:
        vector = fitted(floats(item["embedding"]), expected, wanted, may_cut)
        item["embedding"] = encoded(vector) if as_base64 else vector
    if "model" in whole:
        whole["model"] = exchange.asked
    return msgspec.json.encode(whole)


def fitted(vector: list[float], expected: int, wanted: int, may_cut: bool) -> list[float]:
    """A vector in the length the client shall get.

    Args:
        vector: As the server gave it.
        expected: Length it has by configuration; 0 for any.
        wanted: Length the client asked for; 0 for the model's own.
        may_cut: Whether a longer vector may be shortened to ``wanted`` and brought back to length one.

    Raises:
        Failure: ``bad_upstream_response`` where the length is neither of both; ``unsupported_parameter`` where the server gave the
            model's own length and that may not be cut: the client's matter, so that no breaker opens over it.
    """
    length = len(vector)
    if wanted and length == wanted:
        return vector
    if expected and length != expected:
        raise _bad(f"an embedding has {length} dimensions where the model is configured with {expected}")
    if not wanted:
        return vector
    if not may_cut or length < wanted:
        raise Failure(
            errors.UNSUPPORTED_PARAMETER,
            f"dimensions: the model's embeddings have {length} dimensions, and its server gives no others; ask without 'dimensions'"
            + ("" if length < wanted else ", or have the operator set truncate_dimensions for the model"),
            param="dimensions",
        )
    head = vector[:wanted]
    norm = math.sqrt(math.fsum(value * value for value in head))
    return [value / norm for value in head] if norm else head


def floats(vector: Any) -> list[float]:
    """A vector as floats, from a list of numbers or from base64 of little-endian float32.

    Raises:
        Failure: It is neither.
    """
    if isinstance(vector, str):
        try:
            raw = base64.b64decode(vector, validate=True)
            return list(struct.unpack(f"<{len(raw) // 4}f", raw))
        except (ValueError, struct.error):
            raise _bad("an embedding is text, but not base64 of 32-bit floats") from None
    if not all(isinstance(number, int | float) for number in vector):
        raise _bad("an embedding holds something that is not a number")
    return [float(number) for number in vector]


def encoded(vector: list[float]) -> str:
    """A vector as base64 of little-endian float32, as OpenAI's SDKs ask for it.

    Raises:
        Failure: A number does not fit 32 bits.
    """
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (OverflowError, struct.error):
        raise _bad("an embedding holds a number that does not fit 32 bits") from None


def joined(exchange: Exchange, bodies: list[bytes]) -> bytes:
    """Several whole answers as one: choices or vectors in order with running indexes, usage added up."""
    wholes: list[dict[str, Any]] = [msgspec.json.decode(body) for body in bodies]
    key = "data" if exchange.route is EMBEDDINGS else "choices"
    first = wholes[0]
    merged = [item for whole in wholes for item in whole.get(key, ())]
    for index, item in enumerate(merged):
        item["index"] = index
    first[key] = merged
    usage: dict[str, Any] = {}
    for whole in wholes:
        for name, count in (whole.get("usage") or {}).items():
            if isinstance(count, int):
                usage[name] = usage.get(name, 0) + count
    if usage:
        first["usage"] = usage
        note_usage(exchange, msgspec.convert(usage, Usage))
    return msgspec.json.encode(first)


def as_stream(body: bytes, keep_usage: bool) -> bytes:
    """A whole answer as the stream that was asked for, from a server that does not stream."""
    whole: dict[str, Any] = msgspec.json.decode(body)
    usage = whole.pop("usage", None)
    chat = whole.get("object") == "chat.completion"
    if chat:
        whole["object"] = "chat.completion.chunk"
        for choice in whole["choices"]:
            message = choice.pop("message", {})
            for index, call in enumerate(message.get("tool_calls") or ()):
                call.setdefault("index", index)
            choice["delta"] = {name: value for name, value in message.items() if value is not None}
    out = event(msgspec.json.encode(whole))
    if keep_usage and usage is not None:
        out += event(msgspec.json.encode({**whole, "choices": [], "usage": usage}))
    return out + DONE
