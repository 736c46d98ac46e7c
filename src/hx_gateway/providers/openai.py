"""Servers that speak OpenAI's dialect (vLLM, llama.cpp, SGLang, LiteLLM …): bytes pass untouched where no rewrite is due."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Headers, Outgoing, StreamReader
from hx_gateway.fleet.checks import first_embedding
from hx_gateway.openai import answers
from hx_gateway.openai.requests import ChatFacts, EmbeddingsFacts, Facts, asking_usage, decoded, rewritten, with_defaults, with_model
from hx_gateway.openai.sse import Relay, said_error
from hx_gateway.openai.wants import holds_images

_base64_format = re.compile(rb'("encoding_format"[ \t\r\n]*:[ \t\r\n]*)"base64"')
_context_words = ("context length", "context_length", "context size", "context window", "maximum context", "too many tokens")
_no_images = "image input is not supported"  # llama.cpp says that with status 500, too
_too_large = "is too large to process"  # llama.cpp says so with status 500 of an input to embed, though nothing is wrong with it


class OpenAIProvider:
    """The OpenAI dialect, towards model servers."""

    name = "openai"

    def prepare(self, exchange: Exchange, deployment: Any) -> Outgoing | list[Outgoing]:
        facts: Facts = exchange.facts
        body = exchange.body
        model = deployment.upstream_model
        if deployment.unable and "vision" in deployment.unable and isinstance(facts, ChatFacts) and holds_images(facts.messages or ()):
            raise _takes_no_images(deployment)
        if facts.model != model or not facts.plain:
            body = with_model(body, facts, model)
        if facts.stream and not facts.include_usage:
            body = asking_usage(body, facts)
        elif exchange.route is EMBEDDINGS:
            body = _embeddings(body, exchange.facts, deployment.options)
        if deployment.options.defaults and exchange.route in (CHAT, COMPLETIONS):
            body = with_defaults(body, deployment.options.defaults)
        return Outgoing(deployment.endpoint.paths[exchange.route], body, facts.stream is True, b"POST", b"".join(exchange.forward))

    def whole(self, exchange: Exchange, deployment: Any, body: bytes) -> bytes:
        if exchange.route is EMBEDDINGS:
            facts: EmbeddingsFacts = exchange.facts
            options = deployment.options
            if facts.dimensions is None and (not deployment.dimensions or deployment.expected_dimensions):
                length = answers.embedding_length(body)
                if length:
                    first_embedding(deployment, length)
            return answers.checked_embeddings(
                exchange,
                body,
                options.dimensions or 0,
                facts.encoding_format == "base64",
                facts.dimensions or 0,
                options.truncate_dimensions,
            )
        return answers.checked(exchange, body)

    def join(self, exchange: Exchange, deployment: Any, bodies: Sequence[bytes]) -> bytes:
        return self.whole(exchange, deployment, answers.joined(exchange, list(bodies)))

    def reader(self, exchange: Exchange, deployment: Any) -> StreamReader:
        return Relay(exchange, exchange.facts.include_usage)

    def failure(self, exchange: Exchange, deployment: Any, status: int, headers: Headers, body: bytes) -> Failure:
        said = _error_of(body)
        message = said_error(said, "") if said else ""
        if status == 403 or answers.refuses_credentials(status, body):
            return Failure(
                errors.UPSTREAM_CREDENTIALS,
                f"the model server {deployment.endpoint.name} refused the gateway's own credentials, or has no database for them",
                upstream_status=status,
            )
        if status == 429 or (status == 503 and _is_busy(message)):
            return Failure(
                errors.UPSTREAM_BUSY,
                f"the model server is busy: {message or 'it gave no reason'}",
                retry_after_s=_retry_after_s(headers),
                upstream_status=status,
            )
        if status == 404:
            return Failure(
                errors.UPSTREAM_ERROR,
                f"the model server does not serve {deployment.upstream_model!r} on this route: {message or 'not found'}",
                upstream_status=502,
            )
        if status == 500 and _no_images in message:
            return _takes_no_images(deployment)
        if status == 500 and _too_large in message:
            return Failure(errors.CONTEXT_LENGTH, message, param="input" if exchange.route is EMBEDDINGS else "messages")
        if status >= 500 or status < 400:
            return Failure(
                errors.UPSTREAM_ERROR,
                f"the model server answered {status}: {message[:300] or 'it gave no reason'}",
                upstream_status=status if status >= 500 else 502,
            )
        kind = errors.UPSTREAM_REFUSED
        if status == 400 and any(word in message.lower() for word in _context_words):
            kind = errors.CONTEXT_LENGTH
        # A code that clients act upon is said in our words; what only people read, in the server's own.
        shaped = kind is not errors.CONTEXT_LENGTH and said is not None and said[:1] == b"{"
        return Failure(
            kind,
            message or f"the model server refused the request with status {status}",
            upstream_status=status,
            upstream_body=body if shaped else None,
        )


def _takes_no_images(deployment: Any) -> Failure:
    remedy = "send text only, or choose a model with the capability vision"
    return Failure(
        errors.UNSUPPORTED_PARAMETER, f"messages: the model {deployment.model!r} does not take images; {remedy}", param="messages"
    )


def _embeddings(body: bytes, facts: EmbeddingsFacts, options: Any) -> bytes:
    """Ask for floats, whatever the client wants (base64 is made here); never forward a null; name the field as the server wants it.

    Raises:
        Failure: The client asks for longer vectors than the model has (400).
    """
    if facts.dimensions is not None and options.dimensions and facts.dimensions > options.dimensions:
        message = f"dimensions: must be at most {options.dimensions}, the length of this model's embeddings"
        raise Failure(errors.INVALID_VALUE, message, param="dimensions")
    if facts.encoding_format == "base64":
        if facts.plain:
            body = _base64_format.sub(rb'\1"float"', body, count=1)
        else:
            body = rewritten(body, {"encoding_format": "float"})
    elif facts.encoding_format is None and b'"encoding_format"' in body:
        body = rewritten(body, {}, drop=("encoding_format",))
    if options.embedding_field == "prompt":
        whole = decoded(body)
        return rewritten(body, {"prompt": whole.get("input", whole.get("prompt"))}, drop=("input",))
    if b'"input"' not in body:
        body = rewritten(body, {"input": decoded(body).get("prompt")}, drop=("prompt",))
    return body


class _Said(msgspec.Struct):
    error: msgspec.Raw = msgspec.Raw()
    detail: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


_decode_said = msgspec.json.Decoder(_Said).decode


def _error_of(body: bytes) -> bytes | None:
    """The error value of a body in any of the usual shapes; None when there is none."""
    try:
        said = _decode_said(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    return bytes(said.error) or bytes(said.detail) or bytes(said.message) or None


def _is_busy(message: str) -> bool:
    lowered = message.lower()
    return "busy" in lowered or "pending requests" in lowered or "overloaded" in lowered or "no slot" in lowered


def _retry_after_s(headers: Headers) -> float | None:
    for name, value in headers:
        if name == b"retry-after-ms" and value.isdigit():
            return int(value) / 1000
        if name == b"retry-after" and value.isdigit():
            return float(value)
    return None
