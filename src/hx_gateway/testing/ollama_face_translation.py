"""Words between Ollama's native dialect and llama.cpp's OpenAI routes, for the face that the conformance tests use."""

from __future__ import annotations

import json
from typing import Any

_SAME = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "presence_penalty", "frequency_penalty", "repeat_penalty",
    "repeat_last_n", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("options") or {}
    request = {name: options[name] for name in _SAME if options.get(name) is not None}
    limit = options.get("num_predict")
    if limit is not None and limit > 0:
        request["max_tokens"] = limit
    form = body.get("format")
    if form == "json":
        request["response_format"] = {"type": "json_object"}
    elif form:
        request["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    return request


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content: Any = message.get("content") or ""
    if message.get("images"):
        content = [{"type": "text", "text": content}]
        content += [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}} for image in message["images"]]
    result: dict[str, Any] = {"role": message["role"], "content": content}
    if message.get("tool_calls"):
        result["tool_calls"] = [
            {
                "id": call.get("id") or f"call_{index}",
                "type": "function",
                "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"].get("arguments") or {})},
            }
            for index, call in enumerate(message["tool_calls"])
        ]
    if message["role"] == "tool":
        result["tool_call_id"] = message.get("tool_call_id") or "call_0"
        if message.get("tool_name"):
            result["name"] = message["tool_name"]
    return result


def chat_request(body: dict[str, Any]) -> dict[str, Any]:
    """``/api/chat`` as a chat completion."""
    request = {"messages": [_message(message) for message in body["messages"]], **_settings(body)}
    if body.get("tools"):
        request["tools"] = body["tools"]
    if body.get("logprobs"):
        request |= {"logprobs": True, "top_logprobs": body.get("top_logprobs", 0)}
    return request


def generate_request(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """``/api/generate`` as path and request: a text completion when raw, else a chat of one or two messages."""
    if body.get("raw"):
        request = {"prompt": body["prompt"], **_settings(body)}
        if body.get("logprobs"):
            request["logprobs"] = max(1, body.get("top_logprobs", 0))
        return "/v1/completions", request
    messages = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    messages.append({"role": "user", "content": body["prompt"], "images": body.get("images")})
    return "/v1/chat/completions", chat_request({**body, "messages": messages})


def ollama_calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects."""
    return [
        {
            "id": call.get("id") or f"call_{index}",
            "function": {"index": index, "name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"] or "{}")},
        }
        for index, call in enumerate(calls or ())
    ]


def ollama_logprobs(logprobs: Any) -> dict[str, Any]:
    """``logprobs`` of a line; nothing when llama.cpp gave none."""
    entries = (logprobs or {}).get("content")
    if not entries:
        return {}
    kept = ("token", "logprob", "bytes")
    return {
        "logprobs": [
            {
                **{name: entry[name] for name in kept if name in entry},
                "top_logprobs": [{name: top[name] for name in kept if name in top} for top in entry.get("top_logprobs") or ()],
            }
            for entry in entries
        ]
    }


def ollama_error(status: int, body: bytes) -> tuple[int, str]:
    """llama.cpp's error as Ollama's status and message."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return status, body.decode("utf-8", "replace")
    message = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    if "context" in message and ("exceed" in message or "larger" in message) or "too large to process" in message:
        return 400, "the input length exceeds the context length"
    return status, message
