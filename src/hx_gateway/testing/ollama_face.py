"""An Ollama face over real llama.cpp servers, so that the native dialect can be checked with real inference.

No Ollama server is needed, and none is imitated beyond its HTTP surface: the gateway's support for Ollama is
conformance-tested with it, not tested against a live Ollama server.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hx_gateway.testing.ollama_dialect import BANNER, details, error_body
from hx_gateway.testing.ollama_face_translation import chat_request, generate_request, ollama_calls, ollama_error, ollama_logprobs
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.wire import Listener

if TYPE_CHECKING:
    import httpx

_JSON = "application/json; charset=utf-8"
_NDJSON = "application/x-ndjson"
_VERSION = "0.13.5"
_LONGEST_WAIT_S = 120.0


class Refusal(Exception):
    """An error answer in Ollama's shape.

    Args:
        status: HTTP status.
        message: What stands under ``error``.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class _Clock:
    """The durations of one request, as Ollama reports them: in nanoseconds, zero left out."""

    def __init__(self) -> None:
        self._started_ns = time.perf_counter_ns()

    def metrics(self, chunk: dict[str, Any]) -> dict[str, int]:
        """From llama.cpp's usage and timings."""
        usage, timings = chunk.get("usage") or {}, chunk.get("timings") or {}
        found = {
            "total_duration": time.perf_counter_ns() - self._started_ns,
            "prompt_eval_count": usage.get("prompt_tokens", 0),
            "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
            "eval_count": usage.get("completion_tokens", 0),
            "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
        }
        return {name: value for name, value in found.items() if value}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 1_000_000_000:09d}Z"


class OllamaFace:
    """Speaks Ollama's native API and lets llama.cpp's HTTP server do the work.

    Args:
        chat_url: A llama.cpp server for chat and text, without ``/v1``.
        embedding_url: One started for embeddings; empty for none.
        model: The name under which both are shown.
    """

    def __init__(self, chat_url: str, embedding_url: str = "", model: str = "hx-tiny:latest") -> None:
        self._chat_url = chat_url
        self._embedding_url = embedding_url
        self._model = model
        self._client: httpx.AsyncClient | None = None
        self._listener = Listener(self._serve)
        self._loaded = True
        self._meta: dict[str, Any] = {}

    async def __aenter__(self) -> OllamaFace:
        import httpx  # a dependency of tests only

        self._client = httpx.AsyncClient(timeout=_LONGEST_WAIT_S)
        models = (await self._client.get(f"{self._chat_url}/v1/models")).raise_for_status().json()
        self._meta = models["data"][0].get("meta") or {}
        await self._listener.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._listener.stop()
        assert self._client is not None
        await self._client.aclose()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self._listener.host}:{self._listener.port}"

    async def _serve(self, received: Received, reply: Answer) -> None:
        try:
            if received.method in ("GET", "HEAD"):
                await self._look(received.path, reply)
            else:
                await self._post(received, reply)
        except Refusal as refusal:
            if reply.began:  # status and head are gone; Ollama says it in a line of the stream
                await reply.piece(error_body(refusal.message) + b"\n")
                await reply.end()
            else:
                await reply.whole(refusal.status, error_body(refusal.message), _JSON)

    async def _look(self, path: str, reply: Answer) -> None:
        if path == "/":
            await reply.whole(200, BANNER, "text/plain; charset=utf-8")
        elif path == "/api/version":
            await self._all(reply, {"version": _VERSION})
        elif path == "/api/tags":
            await self._all(reply, {"models": [{**self._listed(), "modified_at": _now()}]})
        elif path == "/api/ps":
            context = {"expires_at": "2318-01-01T00:00:00Z", "size_vram": 0, "context_length": self._meta.get("n_ctx_train", 0)}
            await self._all(reply, {"models": [{**self._listed(), **context}] if self._loaded else []})
        else:
            await reply.whole(404, b"404 page not found", "text/plain")

    def _listed(self) -> dict[str, Any]:
        digest = hashlib.sha256(self._model.encode()).hexdigest()
        return {"name": self._model, "model": self._model, "size": self._meta.get("size", 0), "digest": digest, "details": details("llama")}

    async def _post(self, received: Received, reply: Answer) -> None:
        routes = {
            "/api/chat": self._chat,
            "/api/generate": self._generate,
            "/api/embed": self._embed,
            "/api/embeddings": self._embeddings,
            "/api/show": self._show,
        }
        route = routes.get(received.path)
        if route is None:
            await reply.whole(404, b"404 page not found", "text/plain")
            return
        try:
            body = received.json()
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        name = body.get("model") or body.get("name")
        if not name:
            raise Refusal(400, "model is required")
        if name not in (self._model, self._model.removesuffix(":latest")):
            raise Refusal(404, f"model '{name}' not found")
        if body.get("think"):
            raise Refusal(400, f'"{name}" does not support thinking')
        if body.get("suffix"):
            raise Refusal(400, f'"{name}" does not support insert')
        self._loaded = body.get("keep_alive") not in (0, "0", "0s")
        await route(body, reply)

    async def _all(self, reply: Answer, content: dict[str, Any]) -> None:
        await reply.whole(200, json.dumps(content).encode(), _JSON)

    def _line(self, content: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": self._model, "created_at": _now(), **content, **more}

    async def _show(self, body: dict[str, Any], reply: Answer) -> None:
        await self._all(
            reply,
            {
                "modelfile": f"FROM {self._model}",
                "parameters": "",
                "template": "{{ .Prompt }}",
                "details": details("llama"),
                "model_info": {
                    "general.architecture": "llama",
                    "llama.context_length": self._meta.get("n_ctx_train", 0),
                    "llama.embedding_length": self._meta.get("n_embd", 0),
                },
                "capabilities": ["completion", "embedding"] if self._embedding_url else ["completion"],
                "modified_at": _now(),
            },
        )

    async def _ask(self, url: str, request: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None
        response = await self._client.post(url, json=request)
        if response.status_code != 200:
            raise Refusal(*ollama_error(response.status_code, response.content))
        answer: dict[str, Any] = response.json()
        return answer

    async def _events(self, url: str, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of llama.cpp's stream.

        Raises:
            Refusal: It refused, failed inside the stream, or broke off.
        """
        import httpx

        assert self._client is not None
        try:
            async with self._client.stream("POST", url, json=request) as response:
                if response.status_code != 200:
                    raise Refusal(*ollama_error(response.status_code, await response.aread()))
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith(("data: ", "error: ")):
                        chunk: dict[str, Any] = json.loads(line.partition(": ")[2])
                        if line.startswith("error") or "error" in chunk:
                            raise Refusal(*ollama_error(500, json.dumps(chunk if "error" in chunk else {"error": chunk}).encode()))
                        yield chunk
        except httpx.HTTPError as error:
            raise Refusal(500, f"llama runner: {type(error).__name__}") from error
        raise Refusal(500, "llama runner: unexpected EOF")

    async def _chat(self, body: dict[str, Any], reply: Answer) -> None:
        if not body.get("messages"):
            reason = "load" if self._loaded else "unload"
            await self._all(reply, self._line({"message": {"role": "assistant", "content": ""}}, done=True, done_reason=reason))
            return
        request = chat_request(body)
        await self._generated(f"{self._chat_url}/v1/chat/completions", request, body, reply, "message")

    async def _generate(self, body: dict[str, Any], reply: Answer) -> None:
        if not body.get("prompt"):
            await self._all(reply, self._line({"response": ""}, done=True, done_reason="load" if self._loaded else "unload"))
            return
        path, request = generate_request(body)
        await self._generated(self._chat_url + path, request, body, reply, "response")

    def _content(self, field: str, text: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        if field == "response":
            return {"response": text}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = calls
        return {"message": message}

    async def _generated(self, url: str, request: dict[str, Any], body: dict[str, Any], reply: Answer, field: str) -> None:
        clock = _Clock()
        if not body.get("stream", True):
            answer = await self._ask(url, request)
            choice = answer["choices"][0]
            message = choice.get("message") or {"content": choice.get("text")}
            content = self._content(field, message.get("content") or "", ollama_calls(message.get("tool_calls")))
            more = ollama_logprobs(choice.get("logprobs"))
            reason = "length" if choice.get("finish_reason") == "length" else "stop"
            await self._all(reply, self._line(content, done=True, done_reason=reason, **more, **clock.metrics(answer)))
            return
        last: dict[str, Any] = {}
        reason = "stop"
        calls: list[dict[str, Any]] = []
        async for chunk in self._events(url, {**request, "stream": True, "stream_options": {"include_usage": True}}):
            last = {**last, **{name: chunk[name] for name in ("usage", "timings") if chunk.get(name)}}
            for choice in chunk.get("choices") or ():
                delta = choice.get("delta") or {"content": choice.get("text")}
                _gather(calls, delta.get("tool_calls") or ())
                if choice.get("finish_reason") == "length":
                    reason = "length"
                if delta.get("content"):
                    more = ollama_logprobs(choice.get("logprobs"))
                    await self._write(reply, self._line(self._content(field, delta["content"], []), done=False, **more))
        if calls:  # Ollama hands calls on whole
            await self._write(reply, self._line(self._content(field, "", ollama_calls(calls)), done=False))
        await self._write(reply, self._line(self._content(field, "", []), done=True, done_reason=reason, **clock.metrics(last)))
        await reply.end()

    async def _write(self, reply: Answer, line: dict[str, Any]) -> None:
        if not reply.began:
            await reply.begin(200, _NDJSON)
        await reply.piece(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    async def _vectors(self, texts: list[str]) -> tuple[list[list[float]], dict[str, Any]]:
        if not self._embedding_url:
            raise Refusal(400, f'"{self._model}" does not support embeddings')
        answer = await self._ask(f"{self._embedding_url}/v1/embeddings", {"input": texts, "model": self._model})
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [row["embedding"] for row in rows], answer

    async def _embed(self, body: dict[str, Any], reply: Answer) -> None:
        clock = _Clock()
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, "invalid input type")
        vectors, answer = await self._vectors(texts) if texts else ([], {})
        if length := body.get("dimensions"):
            vectors = [_cut(vector, length) for vector in vectors]
        metrics = clock.metrics(answer)
        metrics.pop("eval_count", None)
        await self._all(reply, {"model": self._model, "embeddings": vectors, **metrics})

    async def _embeddings(self, body: dict[str, Any], reply: Answer) -> None:
        # As with Ollama, a request without ``prompt`` is answered with an empty vector.
        vectors, _ = await self._vectors([body["prompt"]]) if body.get("prompt") else ([[]], {})
        await self._all(reply, {"embedding": vectors[0]})


def _gather(calls: list[dict[str, Any]], pieces: Any) -> None:
    """Put the pieces of tool calls together."""
    for piece in pieces:
        function = piece.get("function") or {}
        while len(calls) <= piece.get("index", 0):
            calls.append({"id": "", "function": {"name": "", "arguments": ""}})
        call = calls[piece.get("index", 0)]
        call["id"] = call["id"] or piece.get("id") or ""
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _cut(vector: list[float], length: int) -> list[float]:
    head = vector[:length]
    norm = math.sqrt(sum(number * number for number in head))
    return [number / norm for number in head] if norm else head
