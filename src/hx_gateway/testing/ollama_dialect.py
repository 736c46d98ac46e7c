"""Ollama's native HTTP dialect as the scripted model server speaks it."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hx_gateway.testing import openai_dialect
from hx_gateway.testing.faults import Fault
from hx_gateway.testing.openai_dialect import broken_vectors, fault_of
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.script import Model, Plan, plan, vector

if TYPE_CHECKING:
    from hx_gateway.testing.backend import Backend

_JSON = "application/json; charset=utf-8"
_NDJSON = "application/x-ndjson"
_MODIFIED = "2026-01-02T03:04:05.678901Z"
_FAR = "2318-01-01T00:00:00Z"
BANNER = b"Ollama is running"


@dataclass(slots=True)
class _Turn:
    """One inference request on its way to its answer."""

    backend: Backend
    model: Model
    body: dict[str, Any]
    texts: list[str]
    reply: Answer
    fault: Fault | None
    load_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> str:
        """The kind of the fault; empty for none."""
        return self.fault.kind if self.fault is not None else ""


def error_body(message: str) -> bytes:
    """An error in Ollama's shape."""
    return json.dumps({"error": message}).encode()


async def refuse(reply: Answer, fault: Fault, model: Any) -> bool:
    """Answer with the error that the fault stands for; False when it stands for none."""
    headers = {"retry-after": f"{fault.retry_after_s:g}"} if fault.retry_after_s >= 0 else {}
    known = {
        "status": (fault.status, fault.message),
        "busy": (503, "server busy, please try again.  maximum pending requests exceeded"),
        "not_found": (404, f"model '{model}' not found"),
        "too_long": (400, "the input length exceeds the context length"),
        "error_200": (200, fault.message),
    }
    if fault.kind in known:
        status, message = known[fault.kind]
        await reply.whole(status, error_body(message), _JSON, headers)
    elif fault.kind == "garbage_json":
        await reply.whole(200, b'{"model": "m", "message": {"role"', _JSON)
    elif fault.kind == "empty":
        await reply.whole(200, b"", _JSON)
    else:
        return False
    return True


async def answer(backend: Backend, received: Received, reply: Answer, fault: Fault | None) -> None:
    """Answer one request."""
    path, method = received.path, received.method
    if path == "/" and method in ("GET", "HEAD"):
        await reply.whole(200, BANNER, "text/plain; charset=utf-8")
    elif not backend.authorised(received):
        await reply.whole(401, error_body("unauthorized"), _JSON)
    elif path.startswith("/v1/"):
        await openai_dialect.answer(backend, received, reply, fault)
    elif method in ("GET", "HEAD"):
        if fault is None or not await refuse(reply, fault, ""):
            await _look(backend, path, reply)
    elif method == "POST" and path in _ROUTES and not (path == "/api/embed" and backend.legacy_embeddings):
        await _post(backend, received, reply, fault)
    else:
        await reply.whole(404, b"404 page not found", "text/plain")


async def _look(backend: Backend, path: str, reply: Answer) -> None:
    if path == "/api/version":
        found: Any = {"version": backend.version}
    elif path == "/api/tags":
        found = {"models": [{**_named(model), "modified_at": _MODIFIED} for model in backend.models.values()]}
    elif path == "/api/ps":
        present = [model for model in backend.models.values() if model.name in backend.loaded]
        extra = [{"expires_at": _FAR, "size_vram": model.size, "context_length": min(4096, model.context_length)} for model in present]
        found = {"models": [{**_named(model), **more} for model, more in zip(present, extra, strict=True)]}
    else:
        await reply.whole(404, b"404 page not found", "text/plain")
        return
    await reply.whole(200, json.dumps(found).encode(), _JSON)


def details(family: str = "scripted") -> dict[str, Any]:
    """A model's ``details``."""
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "1B",
        "quantization_level": "Q4_0",
    }


def _named(model: Model) -> dict[str, Any]:
    return {"name": model.name, "model": model.name, "size": model.size, "digest": model.digest, "details": details()}


async def _post(backend: Backend, received: Received, reply: Answer, fault: Fault | None) -> None:
    try:
        body = received.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        await reply.whole(400, error_body("invalid character in request body"), _JSON)
        return
    asked = body.get("model", body.get("name"))
    texts, fault = fault_of(body.get("messages") or body.get("prompt") or body.get("input") or "", fault)
    reply.fault = fault
    if fault is not None and await refuse(reply, fault, asked):
        return
    if not asked:
        await reply.whole(400, error_body("model is required"), _JSON)
        return
    model = backend.find(asked)
    if model is None:
        await reply.whole(404, error_body(f"model '{asked}' not found"), _JSON)
        return
    route = _ROUTES[received.path]
    turn = _Turn(backend, model, body, texts, reply, fault)
    if route is _show:
        await _show(turn)
        return
    if lacking := _lacking(model, body, received.path):
        await reply.whole(400, error_body(f'"{asked}" does not support {lacking}'), _JSON)
        return

    async def work() -> None:
        turn.load_s = await backend.load(model.name)
        await route(turn)

    if not await backend.in_slot(work):
        await reply.whole(503, error_body("server busy, please try again.  maximum pending requests exceeded"), _JSON)
    if body.get("keep_alive") in (0, "0", "0s"):
        backend.loaded.discard(model.name)


def _lacking(model: Model, body: dict[str, Any], path: str) -> str:
    """The capability that the request needs and the model has not; empty for none."""
    wanted = []
    if path in ("/api/chat", "/api/generate") and "completion" not in model.capabilities:
        return path.removeprefix("/api/")
    if body.get("think"):
        wanted.append("thinking")
    if body.get("tools"):
        wanted.append("tools")
    if body.get("suffix"):
        wanted.append("insert")
    return next((name for name in wanted if name not in model.capabilities), "")


def _plan(turn: _Turn) -> Plan:
    body, texts = turn.body, turn.texts
    options = body.get("options") or {}
    limit = options.get("num_predict")
    return plan(
        texts[-1] if texts else "",
        " ".join(texts),
        offered=tuple(tool["function"]["name"] for tool in body.get("tools") or ()),
        think=bool(body.get("think")),
        limit=limit if limit is not None and limit > 0 else None,
        stop=tuple(options.get("stop") or ()),
        schema=body.get("format") or None,
    )


def _metrics(turn: _Turn, said: Plan) -> dict[str, int]:
    """Durations in nanoseconds and counts; what is zero is left out, as Ollama does."""
    elapsed_ns = int((time.monotonic() - turn.started_s) * 1e9) + 1
    metrics = {"total_duration": elapsed_ns, "load_duration": int(turn.load_s * 1e9)}
    if turn.kind != "no_usage":
        metrics |= {"prompt_eval_count": said.prompt_tokens, "eval_count": said.completion_tokens}
        metrics |= {"prompt_eval_duration": elapsed_ns // 3, "eval_duration": elapsed_ns // 3}
    return {name: value for name, value in metrics.items() if value}


async def _chat(turn: _Turn) -> None:
    if not turn.body.get("messages"):
        unloaded = turn.body.get("keep_alive") in (0, "0", "0s")
        reason = "unload" if unloaded else "load"
        await _all(turn, {"message": {"role": "assistant", "content": ""}}, reason, {})
        return
    said = _plan(turn)
    calls = [{"function": {"index": 0, "name": name, "arguments": arguments}} for name, arguments in said.calls]

    def line(**message: Any) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": "", **message}}

    if turn.body.get("stream", True):
        lines = [line(thinking=piece) for piece in said.thinking] + [line(content=piece) for piece in said.content]
        lines += [line(tool_calls=[call]) for call in calls]
        await _stream(turn, said, lines, line())
        return
    await _take_time(turn, said)
    whole: dict[str, Any] = {"content": "".join(said.content)}
    if said.thinking:
        whole["thinking"] = "".join(said.thinking)
    if calls:
        whole["tool_calls"] = calls
    await _all(turn, line(**whole), said.finish, _metrics(turn, said))


async def _generate(turn: _Turn) -> None:
    if not turn.body.get("prompt"):
        await _all(turn, {"response": ""}, "unload" if turn.body.get("keep_alive") == 0 else "load", {})
        return
    said = _plan(turn)
    if turn.body.get("stream", True):
        lines = [{"response": "", "thinking": piece} for piece in said.thinking] + [{"response": piece} for piece in said.content]
        await _stream(turn, said, lines, {"response": ""})
        return
    await _take_time(turn, said)
    await _all(turn, {"response": "".join(said.content)}, said.finish, _metrics(turn, said))


async def _take_time(turn: _Turn, said: Plan) -> None:
    for index in range(max(1, said.completion_tokens)):
        await turn.backend.pause(index == 0)


def _line(model: Model, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": model.name, "created_at": _MODIFIED, **content, **more}


async def _all(turn: _Turn, content: dict[str, Any], reason: str, metrics: dict[str, int]) -> None:
    await turn.reply.whole(200, json.dumps(_line(turn.model, content, done=True, done_reason=reason, **metrics)).encode(), _JSON)


async def _stream(turn: _Turn, said: Plan, lines: list[dict[str, Any]], last: dict[str, Any]) -> None:
    reply, model, fault, kind = turn.reply, turn.model, turn.fault, turn.kind
    after = fault.after if fault is not None else 0
    end = b"\r\n" if kind == "crlf" else b"\n"

    async def write(data: bytes) -> None:
        if not reply.began:
            await reply.begin(200, _NDJSON)
        await reply.piece(data)

    for content in lines:
        await turn.backend.pause(reply.pieces == 0)
        if reply.pieces >= after and kind in ("truncated", "error_event", "garbage_events"):
            break
        await write(json.dumps(_line(model, content, done=False), ensure_ascii=False).encode() + end)
    if kind == "error_event" and fault is not None:
        await write(error_body(fault.message) + b"\n")
    elif kind == "garbage_events":
        await write(b'{"model": \n')
    elif kind != "truncated":
        final = _line(model, last, done=True, done_reason=said.finish, **_metrics(turn, said))
        await write(json.dumps(final).encode() + (b"" if kind == "no_final_blank" else end))
    if not reply.began:
        await reply.begin(200, _NDJSON)
    await reply.end()


async def _embed(turn: _Turn) -> None:
    await turn.backend.pause(True)
    given = turn.body.get("input")
    if not isinstance(given, str) and not (isinstance(given, list) and all(isinstance(item, str) for item in given)):
        await turn.reply.whole(400, error_body("invalid input type"), _JSON)
        return
    names = turn.texts if given else []
    length = min(turn.body.get("dimensions") or turn.model.dimensions, turn.model.dimensions)
    rows = broken_vectors([vector(name, length) for name in names], turn.fault)
    counted = Plan(prompt_tokens=sum(plan(name, name).prompt_tokens for name in names))
    metrics = _metrics(turn, counted)
    metrics.pop("eval_duration", None)
    await turn.reply.whole(200, json.dumps({"model": turn.model.name, "embeddings": rows, **metrics}).encode(), _JSON)


async def _embeddings(turn: _Turn) -> None:
    await turn.backend.pause(True)
    # ``input`` is not read here, and what is not there gives an empty vector with status 200.
    row = vector(turn.texts[0], turn.model.dimensions) if turn.body.get("prompt") else []
    rows = broken_vectors([row], turn.fault)
    await turn.reply.whole(200, json.dumps({"embedding": rows[0] if rows else []}).encode(), _JSON)


async def _show(turn: _Turn) -> None:
    model = turn.model
    shown = {
        "modelfile": f"FROM {model.name}",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": details(),
        "model_info": {
            "general.architecture": "scripted",
            "scripted.context_length": model.context_length,
            "scripted.embedding_length": model.dimensions,
        },
        "capabilities": list(model.capabilities),
        "modified_at": _MODIFIED,
    }
    await turn.reply.whole(200, json.dumps(shown).encode(), _JSON)


_ROUTES: dict[str, Callable[[_Turn], Awaitable[None]]] = {
    "/api/chat": _chat,
    "/api/generate": _generate,
    "/api/embed": _embed,
    "/api/embeddings": _embeddings,
    "/api/show": _show,
}
