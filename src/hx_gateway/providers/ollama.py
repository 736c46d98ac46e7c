"""The dialect of Ollama's native API, behind the gateway's OpenAI face.

Native rather than Ollama's own ``/v1``, because only the native API takes a context size, leaves the model file's
sampling values alone, and reports errors inside a stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, Exchange
from hx_gateway.core.errors import NOT_FOUND, Failure
from hx_gateway.core.interfaces import Headers, Outgoing, StreamReader
from hx_gateway.openai.requests import with_defaults
from hx_gateway.providers import ollama_embeddings, ollama_failure, ollama_reply, ollama_request, ollama_stream
from hx_gateway.providers.ollama_request import unsupported
from hx_gateway.providers.ollama_values import decoded

__all__ = ["OllamaProvider", "unsupported"]


class OllamaProvider:
    """Speaks to Ollama (`core.interfaces.Provider`); conformance-tested, not tested against a live Ollama server.

    Engine settings read from ``deployment.options``: ``num_ctx`` and ``keep_alive`` (both beat the client's; without
    ``num_ctx`` a client's own is sent only where the model is not loaded, or is with just that, since Ollama would load
    it again), ``dimensions`` and ``truncate_dimensions``, ``embedding_field``; and in ``extra``: any Ollama option as
    default, ``think``, ``truncate`` and ``shift`` as defaults, ``think_tags`` (true: ``<think>`` in the text is taken
    apart) and ``capabilities`` (a list, filled from what the server tells: without ``thinking`` in it no thinking is
    asked for, without ``vision`` images and without ``tools`` tools are refused).

    Args:
        wall: Returns seconds since the Unix epoch.
    """

    name = "ollama"

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall

    def prepare(self, exchange: Exchange, deployment: Any) -> Outgoing | list[Outgoing]:
        """The request as one native call, or several: one per choice, per prompt, or per text on an old server.

        Raises:
            Failure: The request is not valid, or asks for what Ollama cannot do.
        """
        base = deployment.endpoint.address.base
        route = exchange.route
        if route not in (CHAT, COMPLETIONS, EMBEDDINGS):
            raise Failure(NOT_FOUND, "Ollama has no such route; send the request to a model on another engine")
        body = decoded(exchange.body)
        if deployment.options.defaults and route is not EMBEDDINGS:
            body = decoded(with_defaults(exchange.body, deployment.options.defaults))
        dropped = ollama_request.unsupported(exchange.body) if route is not EMBEDDINGS else []
        if route is CHAT:
            calls = ollama_request.chat(body, deployment, bool(exchange.facts.stream), base)
        elif route is COMPLETIONS:
            calls = ollama_request.completions(body, deployment, bool(exchange.facts.stream), base)
        else:
            calls = ollama_embeddings.embeddings(body, deployment, base)
        calls[0].dropped = dropped + ollama_request.withheld(body, deployment, route is not EMBEDDINGS)
        return calls[0] if len(calls) == 1 else calls

    def whole(self, exchange: Exchange, deployment: Any, body: bytes) -> bytes:
        """One native answer as an OpenAI body; fills the token counts.

        Raises:
            Failure: The answer is not valid.
        """
        return self.join(exchange, deployment, [body])

    def join(self, exchange: Exchange, deployment: Any, bodies: Sequence[bytes]) -> bytes:
        """The answers to what `prepare` listed, in that order, as one OpenAI body; fills the token counts.

        Raises:
            Failure: An answer is not valid.
        """
        if exchange.route is EMBEDDINGS:
            return ollama_embeddings.embedding_list(exchange, deployment, bodies)
        write = ollama_reply.chat_completion if exchange.route is CHAT else ollama_reply.text_completion
        return write(exchange, deployment, bodies, int(self._wall()))

    def reader(self, exchange: Exchange, deployment: Any) -> StreamReader:
        """A reader for one stream of JSON lines."""
        return ollama_stream.reader(exchange, deployment, int(self._wall()))

    def failure(self, exchange: Exchange, deployment: Any, status: int, headers: Headers, body: bytes) -> Failure:
        """What a non-2xx answer means, by its status and by Ollama's message."""
        return ollama_failure.failure(exchange.route, deployment, status, headers, body, self._wall())
