"""OpenAI's HTTP dialect as the scripted model server speaks it, for vLLM's kind of server and for Ollama's own ``/v1``."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hx_gateway.testing.faults import Fault, take_marker
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.script import Model, Plan, plan, text_of, vector

if TYPE_CHECKING:
    from hx_gateway.testing.backend import Backend

_CREATED = 1_700_000_000
_TYPES = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
_OLLAMA_TYPES = {400: "invalid_request_error", 404: "not_found_error"}
_SSE = "text/event-stream; charset=utf-8"


def error_body(backend: Backend, status: int, message: str) -> bytes:
    """An error in this server's shape."""
    kind = _OLLAMA_TYPES.get(status, "api_error") if backend.dialect == "ollama" else _TYPES.get(status, "InternalServerError")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}}).encode()


def fault_of(messages: Any, given: Fault | None) -> tuple[list[str], Fault | None]:
    """The texts of messages or prompts without their fault markers, and the fault that is to strike."""
    texts = []
    for message in messages if isinstance(messages, list) else [messages]:
        text, marked = take_marker(text_of(message.get("content") if isinstance(message, dict) else message))
        texts.append(text)
        given = marked or given
    return texts, given


async def refuse(backend: Backend, answer: Answer, fault: Fault) -> bool:
    """Answer with the error that the fault stands for; False when it stands for none."""
    headers = {"retry-after": f"{fault.retry_after_s:g}"} if fault.retry_after_s >= 0 else {}
    known = {
        "status": (fault.status, fault.message),
        "busy": (429, "too many requests"),
        "not_found": (404, "The model does not exist."),
        "too_long": (400, "This model's maximum context length is 8 tokens; please reduce the length of the messages."),
        "error_200": (200, fault.message),
    }
    if fault.kind in known:
        status, message = known[fault.kind]
        if fault.kind == "busy":
            headers.setdefault("retry-after", "2")
        await answer.whole(status, error_body(backend, 500 if status == 200 else status, message), headers=headers)
    elif fault.kind == "garbage_json":
        await answer.whole(200, b'{"id": "chatcmpl-1", "choices": [{"index"')
    elif fault.kind == "empty":
        await answer.whole(200, b"")
    else:
        return False
    return True


async def answer(backend: Backend, received: Received, reply: Answer, fault: Fault | None) -> None:
    """Answer one request."""
    path = received.path
    if path in ("/health", "/ping") and received.method == "GET":
        if fault is None or not await refuse(backend, reply, fault):
            await reply.whole(200, b"", "text/plain")
    elif not backend.authorised(received):
        await reply.whole(401, error_body(backend, 401, "Unauthorized"))
    elif received.method == "GET":
        if fault is None or not await refuse(backend, reply, fault):
            await _look(backend, path, reply)
    elif received.method != "POST":
        await reply.whole(405, error_body(backend, 405, "Method Not Allowed"))
    else:
        await post(backend, received, reply, fault)


async def _look(backend: Backend, path: str, reply: Answer) -> None:
    if path == "/v1/models":
        data = [listed(backend, model) for model in backend.models.values()]
        await reply.whole(200, json.dumps({"object": "list", "data": data}).encode())
    elif path.startswith("/v1/models/") and (model := backend.find(path[len("/v1/models/") :])) is not None:
        await reply.whole(200, json.dumps(listed(backend, model)).encode())
    elif path == "/version":
        await reply.whole(200, json.dumps({"version": backend.version}).encode())
    elif path == "/metrics":
        running = backend.working
        text = (
            f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {running}\n"
            f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting {max(0, backend.in_flight - running - 1)}\n"
            f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc {running / (backend.slots or 100):g}\n"
        )
        await reply.whole(200, text.encode(), "text/plain; version=0.0.4")
    else:
        await reply.whole(404, error_body(backend, 404, "Not Found"))


def listed(backend: Backend, model: Model) -> dict[str, Any]:
    """A model as ``/v1/models`` lists it."""
    entry: dict[str, Any] = {"id": model.name, "object": "model", "created": _CREATED, "owned_by": "library"}
    if backend.dialect == "openai":
        entry["max_model_len"] = model.context_length
    return entry


async def post(backend: Backend, received: Received, reply: Answer, fault: Fault | None) -> None:
    """Answer an inference request."""
    routes = {"/v1/chat/completions": _chat, "/v1/completions": _completions, "/v1/embeddings": _embeddings}
    route = routes.get(received.path)
    if route is None:
        await reply.whole(404, error_body(backend, 404, "Not Found"))
        return
    try:
        body = received.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        await reply.whole(400, error_body(backend, 400, "the body is not a JSON object"))
        return
    texts, fault = fault_of(body.get("messages", body.get("prompt", body.get("input"))), fault)
    reply.fault = fault
    if fault is not None and await refuse(backend, reply, fault):
        return
    model = backend.find(body.get("model"))
    if model is None:
        await reply.whole(404, error_body(backend, 404, f"The model `{body.get('model')}` does not exist."))
        return

    async def work() -> None:
        await backend.load(model.name)
        await route(backend, model, body, texts, reply, fault)

    if not await backend.in_slot(work):
        await reply.whole(429, error_body(backend, 429, "too many requests"), headers={"retry-after": "1"})


def _plan(body: dict[str, Any], texts: list[str], model: Model) -> Plan:
    offered = tuple(tool["function"]["name"] for tool in body.get("tools") or ())
    choice = body.get("tool_choice")
    forced = choice["function"]["name"] if isinstance(choice, dict) else offered[0] if choice == "required" and offered else ""
    form = body.get("response_format") or {}
    schema = "json" if form.get("type") == "json_object" else (form.get("json_schema") or {}).get("schema")
    stop = body.get("stop") or ()
    effort = body.get("reasoning_effort")
    return plan(
        texts[-1] if texts else "",
        " ".join(texts),
        offered=() if choice == "none" else offered,
        forced=forced,
        think=effort not in (None, "none") and "thinking" in model.capabilities,
        limit=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        schema=schema,
    )


def _usage(said: Plan, choices: int) -> dict[str, Any]:
    completion = said.completion_tokens * choices
    return {"prompt_tokens": said.prompt_tokens, "completion_tokens": completion, "total_tokens": said.prompt_tokens + completion}


def _head(backend: Backend, model: Model, kind: str) -> dict[str, Any]:
    prefix = "cmpl" if kind.startswith("text") else "chatcmpl"
    head: dict[str, Any] = {"id": f"{prefix}-{len(backend.requests)}", "object": kind, "created": _CREATED, "model": model.name}
    if backend.dialect == "ollama":
        head["system_fingerprint"] = "fp_ollama"
    return head


def _reasoning(backend: Backend, text: str) -> dict[str, str]:
    return {"reasoning" if backend.dialect == "ollama" else "reasoning_content": text}


async def _say_all(backend: Backend, said: Plan) -> None:
    """Take the time that the answer takes when it is not streamed."""
    for index in range(max(1, said.completion_tokens)):
        await backend.pause(index == 0)


async def _chat(backend: Backend, model: Model, body: dict[str, Any], texts: list[str], reply: Answer, fault: Fault | None) -> None:
    said = _plan(body, texts, model)
    count = body.get("n") or 1
    if fault is not None and fault.kind == "other_model":
        model = replace(model, name=f"not-{model.name}")
    if fault is not None and fault.kind == "fickle":
        said.content.append(f" {len(backend.requests)}")
    if body.get("stream"):
        await _Stream(backend, model, body, reply, fault).chat(said, count)
        return
    await _say_all(backend, said)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(said.content)}
    if said.thinking:
        message |= _reasoning(backend, "".join(said.thinking))
    if said.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for index, (name, arguments) in enumerate(said.calls)
        ]
    reason = "tool_calls" if said.calls else said.finish
    choices = [{"index": index, "message": message, "logprobs": None, "finish_reason": reason} for index in range(count)]
    answer_body = {**_head(backend, model, "chat.completion"), "choices": choices}
    if fault is None or fault.kind != "no_usage":
        answer_body["usage"] = _usage(said, count)
    await reply.whole(200, json.dumps(answer_body).encode())


async def _completions(backend: Backend, model: Model, body: dict[str, Any], texts: list[str], reply: Answer, fault: Fault | None) -> None:
    said = _plan(body, texts, model)
    if body.get("stream"):
        await _Stream(backend, model, body, reply, fault).text(said)
        return
    await _say_all(backend, said)
    plans = [_plan(body, [text], model) for text in texts]
    choices = [{"index": i, "text": "".join(p.content), "logprobs": None, "finish_reason": p.finish} for i, p in enumerate(plans)]
    usage = {"prompt_tokens": sum(p.prompt_tokens for p in plans), "completion_tokens": sum(p.completion_tokens for p in plans)}
    usage["total_tokens"] = sum(usage.values())
    await reply.whole(200, json.dumps({**_head(backend, model, "text_completion"), "choices": choices, "usage": usage}).encode())


async def _embeddings(backend: Backend, model: Model, body: dict[str, Any], texts: list[str], reply: Answer, fault: Fault | None) -> None:
    await backend.pause(True)
    given = body.get("input")
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    names = texts if len(texts) == len(inputs) and all(isinstance(item, str) for item in inputs) else [json.dumps(item) for item in inputs]
    vectors: list[Any] = broken_vectors([vector(name, body.get("dimensions") or model.dimensions) for name in names], fault)
    if body.get("encoding_format") == "base64":
        vectors = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() for row in vectors]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(vectors)]
    counted = sum(plan(name, name).prompt_tokens for name in names)
    answer_body = {"object": "list", "data": data, "model": model.name, "usage": {"prompt_tokens": counted, "total_tokens": counted}}
    await reply.whole(200, json.dumps(answer_body).encode())


def broken_vectors(vectors: list[list[float]], fault: Fault | None) -> list[Any]:
    """The vectors as the fault has them."""
    if fault is None:
        return vectors
    if fault.kind == "nested_embedding":
        return [[row, row] for row in vectors]
    if fault.kind == "empty_embedding":
        return [*vectors[:-1], []]
    return vectors[:-1] if fault.kind == "fewer_embeddings" else vectors


class _Stream:
    """One streamed answer, with the faults that streams can have."""

    def __init__(self, backend: Backend, model: Model, body: dict[str, Any], reply: Answer, fault: Fault | None) -> None:
        self._backend = backend
        self._model = model
        self._reply = reply
        self._fault = fault
        self._kind = fault.kind if fault is not None else ""
        self._usage_wanted = bool((body.get("stream_options") or {}).get("include_usage")) and self._kind != "no_usage"
        self._head: dict[str, Any] = {}
        self._ended = False

    async def chat(self, said: Plan, count: int) -> None:
        """The events of a chat completion."""
        self._head = _head(self._backend, self._model, "chat.completion.chunk")
        for index in range(count):
            await self._choice(index, delta={"role": "assistant", "content": ""})
        for piece in said.thinking:
            for index in range(count):
                await self._choice(index, delta=_reasoning(self._backend, piece))
        for number, piece in enumerate(said.content, 1):
            for index in range(count):
                early = "stop" if self._kind == "early_finish" and number == len(said.content) else None
                if early:
                    await self._choice(index, early, delta={})
                await self._choice(index, delta={"content": piece})
        for number, (name, arguments) in enumerate(said.calls):
            text = json.dumps(arguments)
            call = {"index": number, "id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": ""}}
            await self._choice(0, delta={"tool_calls": [call]})
            for part in (text[: len(text) // 2], text[len(text) // 2 :]):
                await self._choice(0, delta={"tool_calls": [{"index": number, "function": {"arguments": part}}]})
        await self._finish(said, count, {"delta": {}}, "tool_calls" if said.calls else said.finish)

    async def text(self, said: Plan) -> None:
        """The events of a text completion."""
        self._head = _head(self._backend, self._model, "text_completion")
        for piece in said.content:
            await self._choice(0, text=piece)
        await self._finish(said, 1, {"text": ""}, said.finish)

    async def _finish(self, said: Plan, count: int, empty: dict[str, Any], reason: str) -> None:
        if self._kind == "truncated":
            self._ended = True
        usage = _usage(said, count)
        for index in range(count):
            for _ in range(2 if self._kind == "repeated_finish" else 1):
                await self._choice(index, reason, usage if self._kind == "usage_in_last" and self._usage_wanted else None, **empty)
        if self._usage_wanted and self._kind != "usage_in_last":
            choices = [{"index": 0, **empty, "finish_reason": None}] if self._kind == "usage_with_choice" else []
            await self._event({**self._head, "choices": choices, "usage": usage})
        await self._write(b"data: [DONE]\n\n")
        if not self._reply.began:
            await self._reply.begin(200, _SSE)
        await self._reply.end()

    async def _choice(self, index: int, reason: str | None = None, usage: dict[str, Any] | None = None, **what: Any) -> None:
        event = {**self._head, "choices": [{"index": index, **what, "logprobs": None, "finish_reason": reason}]}
        if self._usage_wanted:
            event["usage"] = usage
        await self._backend.pause(self._reply.pieces == 0)
        await self._event(event)

    async def _event(self, event: dict[str, Any]) -> None:
        fault = self._fault
        if fault is not None and not self._ended and self._reply.pieces >= fault.after:
            if self._kind == "garbage_events":
                await self._write(b'data: {"choices": [{\n\n')
            elif self._kind == "error_event":
                await self._write(b"data: " + error_body(self._backend, 500, fault.message) + b"\n\n")
                self._ended = True
            elif self._kind == "truncated":
                self._ended = True
        await self._write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    async def _write(self, data: bytes) -> None:
        if self._ended and self._kind in ("truncated", "error_event"):
            return
        if not self._reply.began:
            await self._reply.begin(200, _SSE, {"cache-control": "no-cache"})
            if self._kind == "bom":
                data = b"\xef\xbb\xbf" + data
        if self._kind == "comments":
            data = b": still here\n\n" + data
        if self._kind == "no_final_blank" and data.endswith(b"[DONE]\n\n"):
            data = data[:-1]
        if self._kind == "crlf":
            data = data.replace(b"\n", b"\r\n")
        await self._reply.piece(data)
