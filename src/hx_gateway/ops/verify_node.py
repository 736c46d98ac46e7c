"""Verifies one model server directly, without a gateway in between: an Ollama in its own dialect, anything else in OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from hx_gateway.ops.verify_client import SAY, Answer, Client, Said, shown, streamed, usage_of, whole
from hx_gateway.ops.verify_names import chat_body, embedded, twice
from hx_gateway.ops.verify_report import Fault, Report, Result

_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def run_node(
    url: str,
    key: str = "",
    models: tuple[str, ...] = (),
    dimensions: Mapping[str, int] | None = None,
    on_result: Callable[[Result], object] = lambda result: None,
    timeout_s: float = 180.0,
) -> Report:
    """Verify a model server.

    Args:
        url: Its address, without ``/v1``.
        key: The bearer key it wants; empty for none.
        models: The models that must work; empty for all that it lists. Each of them is loaded.
        dimensions: What the length of a model's vectors must be.
        on_result: Called with each result as it comes.
        timeout_s: Longest wait for a byte of an answer, in seconds.

    Raises:
        ValueError: The address is none.
    """
    client = Client(url, key, timeout_s)
    report = Report(client.url, on_result=on_result)
    listed: list[str] = []
    node: _Ollama | _OpenAI
    try:
        version = client.ask("GET", "/api/version")
        told = version.json() if version.status == 200 else None
        node = _Ollama(client) if isinstance(told, dict) and "version" in told else _OpenAI(client)
        report.version = f"Ollama {told['version']}" if isinstance(node, _Ollama) and told else "OpenAI-compatible"
    except Fault:
        node = _OpenAI(client)
    if not report.check("models", "", lambda: _listed(node, listed)):
        return report
    for model in models or tuple(listed):
        length = (dimensions or {}).get(model)
        if model not in listed and f"{model}:latest" not in listed:
            report.check("listed", model, lambda: _missing(listed))
        elif length is not None or node.embeds(model):
            report.check("embeddings", model, lambda model=model, length=length: embedded(_counting(report, model, node.embed), length))  # type: ignore[misc]
        elif report.check("chat", model, lambda model=model: twice(_counting(report, model, node.chat), exact=False)):  # type: ignore[misc]
            report.check("stream", model, lambda model=model: _stream(_counting(report, model, node.stream)))  # type: ignore[misc]
    return report


def _counting(report: Report, model: str, ask: Callable[..., Any]) -> Callable[..., Any]:
    def asked(**body: Any) -> Any:
        try:
            found = ask(model, **body)
        except Fault:
            report.counted(model, well=False)
            raise
        report.counted(model, well=True)
        return found

    return asked


def _listed(node: _Ollama | _OpenAI, listed: list[str]) -> str:
    listed += node.models()
    if not listed:
        raise Fault("it has no model")
    return ", ".join(listed)


def _missing(listed: list[str]) -> str:
    raise Fault(f"it does not have this model; it has {', '.join(listed)}")


def _stream(ask: Callable[[], Said]) -> str:
    said = ask()
    if SAY not in said.content:
        raise Fault(f"streamed {said.content!r} where {SAY!r} was asked for")
    return f"{said.content!r} in order, {said.counted()}"


def _same(said: Said, model: str) -> Said:
    if said.model.removesuffix(":latest") != model.removesuffix(":latest"):
        raise Fault(f"wrong model: {model!r} was asked, and the answer says it is from {said.model!r}")
    return said


class _OpenAI:
    """A server of OpenAI's dialect."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def models(self) -> list[str]:
        try:
            return [str(one["id"]) for one in self._client.ask("GET", "/v1/models").wanted().json()["data"]]
        except (KeyError, TypeError):
            raise Fault("/v1/models lists nothing") from None

    def embeds(self, model: str) -> bool:
        # Nothing in the dialect tells; a server that only embeds refuses a chat.
        chats = self._client.ask("POST", "/v1/chat/completions", {"model": model, **chat_body("ping", 1)}).status == 200
        return not chats and self.embed(model, input="ping").status == 200

    def chat(self, model: str) -> Said:
        said = _same(whole(self._client.ask("POST", "/v1/chat/completions", {"model": model, **chat_body()})), model)
        said.counted()
        return said

    def stream(self, model: str) -> Said:
        return _same(streamed(self._client.ask("POST", "/v1/chat/completions", {"model": model, **chat_body(), **_STREAM})), model)

    def embed(self, model: str, **body: Any) -> Answer:
        return self._client.ask("POST", "/v1/embeddings", {"model": model, **body})


class _Ollama:
    """An Ollama, in its own dialect."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def models(self) -> list[str]:
        try:
            return [str(one["name"]) for one in self._client.ask("GET", "/api/tags").wanted().json()["models"]]
        except (KeyError, TypeError):
            raise Fault("/api/tags lists nothing") from None

    def _able(self, model: str) -> list[str]:
        told = self._client.ask("POST", "/api/show", {"model": model})
        able = told.json().get("capabilities") if told.status == 200 else None
        return able if isinstance(able, list) else []

    def embeds(self, model: str) -> bool:
        able = self._able(model)
        return "embedding" in able and "completion" not in able

    def _body(self, model: str, stream: bool) -> dict[str, Any]:
        thinks = "thinking" in self._able(model)
        chat = chat_body()
        options = {"temperature": 0, "num_predict": 512 if thinks else chat["max_tokens"]}
        return {"model": model, "messages": chat["messages"], "stream": stream, "options": options, **({"think": False} if thinks else {})}

    def chat(self, model: str) -> Said:
        answer = self._client.ask("POST", "/api/chat", self._body(model, False))
        said = _same(_line(answer.wanted().json()), model)
        said.counted()
        return said

    def stream(self, model: str) -> Said:
        answer = self._client.ask("POST", "/api/chat", self._body(model, True)).wanted()
        try:
            lines = [json.loads(line) for line in answer.body.splitlines() if line.strip()]
        except ValueError:
            raise Fault(f"a line of the stream is no JSON: {shown(answer.body)}") from None
        said = [_line(line) for line in lines]
        if [number for number, line in enumerate(lines, 1) if line.get("done")] != [len(lines)]:
            raise Fault(f"stream order: of {len(lines)} lines the last one, and no other, must say that it is done")
        return _same(Said("".join(one.content for one in said), said[-1].usage, said[-1].model), model)

    def embed(self, model: str, **body: Any) -> Answer:
        answer = self._client.ask("POST", "/api/embed", {"model": model, **body}).wanted()
        found = answer.json().get("embeddings") or []
        # In the words of the other dialect, so that one judge reads both.
        data = [{"index": index, "embedding": one} for index, one in enumerate(found)]
        return Answer(200, answer.headers, json.dumps({"data": data}).encode())


def _line(document: Any) -> Said:
    if not isinstance(document, dict) or "error" in document:
        raise Fault(f"it answered with an error: {shown(json.dumps(document))}")
    message = document.get("message") or {}
    return Said(str(message.get("content") or ""), usage_of(document, "prompt_eval_count", "eval_count"), str(document.get("model", "")))
