"""Embeddings by Ollama: the request in its new or old form, and the vectors checked, cut and encoded for the client."""

from __future__ import annotations

import base64
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import BAD_RESPONSE, Failure
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.fleet.checks import first_embedding
from hx_gateway.openai.answers import fitted
from hx_gateway.providers.ollama_request import basis
from hx_gateway.providers.ollama_values import Body, decoded, flag, integer, invalid, strings, unsupported_by_ollama

_MAX_INPUTS = 2048


class _EmbedReply(msgspec.Struct):
    embeddings: list[list[float]] | None = None
    embedding: list[float] | None = None
    prompt_eval_count: int | None = None
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_REPLY = msgspec.json.Decoder(_EmbedReply)


def is_legacy(deployment: Any) -> bool:
    """Whether the server only knows ``/api/embeddings`` with ``prompt``, one text a call."""
    return deployment.endpoint.facts.legacy_embeddings is True or deployment.options.embedding_field == "prompt"


def inputs(body: Body) -> list[str]:
    """The texts to embed.

    Raises:
        Failure: There is none, one is empty, or they are token ids (400).
    """
    given = body.get("input")
    if given is None:
        given = body.get("prompt")  # what clients of Ollama's old route send
    return strings(given, "input", _MAX_INPUTS)


def _encoding(body: Body) -> str:
    value = body.get("encoding_format")
    if value is None:
        return "float"
    if value not in ("float", "base64"):
        raise invalid("encoding_format", 'must be "float" or "base64"')
    return str(value)


def embeddings(body: Body, deployment: Any, base: str) -> list[Outgoing]:
    """The request as one call of ``/api/embed``, or one call of ``/api/embeddings`` per text on an old server.

    Always asks for plain numbers; the client's ``encoding_format`` is our own work.

    Raises:
        Failure: The request is not valid, or the model cannot do what it asks (400).
    """
    texts = inputs(body)
    _encoding(body)
    settings = deployment.options
    wanted = integer(body, "dimensions", 1, 1 << 20)
    if wanted is not None and settings.dimensions and wanted > settings.dimensions:
        raise invalid("dimensions", f"must be at most {settings.dimensions}, the length of this model's vectors")
    request = basis(body, deployment)
    if is_legacy(deployment):
        if wanted is not None and wanted != settings.dimensions and not settings.truncate_dimensions:
            raise unsupported_by_ollama("dimensions", "this server cannot shorten vectors, and the model is not marked as safe to cut")
        path = (base + "/api/embeddings").encode()
        return [Outgoing(path, msgspec.json.encode({**request, "prompt": text})) for text in texts]
    request["input"] = texts
    if wanted is not None:
        request["dimensions"] = wanted
    truncate = flag(body, "truncate")
    if truncate is None:
        # A vector of half a text looks like success; an error can be mended.
        truncate = settings.extra.get("truncate", False)
    request["truncate"] = truncate
    return [Outgoing((base + "/api/embed").encode(), msgspec.json.encode(request))]


def _bad(message: str) -> Failure:
    return Failure(BAD_RESPONSE, message)


def _vectors(body: bytes) -> tuple[list[list[float]], int | None]:
    try:
        reply = _REPLY.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _bad(f"the model server's embeddings are not valid: {error}") from error
    if reply.error is not msgspec.UNSET:
        raise _bad("the model server answered 200 with an error instead of embeddings")
    if reply.embeddings is not None:
        return reply.embeddings, reply.prompt_eval_count
    if reply.embedding is not None:
        return [reply.embedding], reply.prompt_eval_count
    raise _bad("the model server's answer holds no embeddings")


def _little_endian(vector: list[float]) -> str:
    packed = array("f", vector)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")


def embedding_list(exchange: Exchange, deployment: Any, bodies: Sequence[bytes]) -> bytes:
    """The answers as one OpenAI embedding list, in the order of the input; fills the exchange's token counts.

    Raises:
        Failure: A vector is missing, empty, or of the wrong length (`BAD_RESPONSE`); the server does not heed ``dimensions`` (400).
    """
    asked = decoded(exchange.body)
    texts = inputs(asked)
    settings = deployment.options
    vectors: list[list[float]] = []
    counted: int | None = 0
    for body in bodies:
        some, count = _vectors(body)
        vectors += some
        counted = None if counted is None or count is None else counted + count
    if len(vectors) != len(texts):
        raise _bad(f"the model server gave {len(vectors)} vectors for {len(texts)} texts")
    wanted = integer(asked, "dimensions", 1, 1 << 20)
    length = len(vectors[0])
    for index, vector in enumerate(vectors):
        if not vector:
            raise _bad(f"the model server gave an empty vector for input {index}")
        if len(vector) != length:
            raise _bad(f"the model server gave vectors of different lengths ({length} and {len(vector)})")
    if wanted is None and (not deployment.dimensions or deployment.expected_dimensions):
        first_embedding(deployment, length)
    vectors = [fitted(vector, settings.dimensions or 0, wanted or 0, settings.truncate_dimensions) for vector in vectors]
    exchange.estimated = counted is None
    if counted is None:
        counted = sum(max(1, -(-len(text) // 4)) for text in texts)
    exchange.prompt_tokens = counted
    exchange.completion_tokens = 0
    packed: Sequence[str | list[float]] = [_little_endian(vector) for vector in vectors] if _encoding(asked) == "base64" else vectors
    return msgspec.json.encode(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(packed)],
            "model": exchange.asked,
            "usage": {"prompt_tokens": counted, "total_tokens": counted},
        }
    )
