"""The OpenAPI description of the inference routes, which the data plane serves without the framework."""

from __future__ import annotations

from typing import Any

from hx_gateway.control.examples import illustrate

SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of this gateway; x-api-key and api-key are read as well."}
}
_NEEDS_KEY: list[dict[str, list[str]]] = [{"bearer": []}]
_ERROR = {"$ref": "#/components/schemas/Error"}
_MODEL = {"type": "string", "description": "Model, alias or group; without it, the X-HX-Model-Group header or the default model decides."}
_STREAM = {"type": "boolean", "default": False, "description": "Whether the answer comes as server-sent events, ended by [DONE]."}
_STREAM_OPTIONS = {
    "type": "object",
    "properties": {"include_usage": {"type": "boolean", "description": "Send a last chunk with token counts."}},
}
_TOKENS = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}

SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string", "description": "What is wrong, and what to do about it."},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"], "description": "The field at fault."},
                    "code": {"type": "string", "description": "Stable name; see the reference of errors."},
                },
            }
        },
    },
    "ChatRequest": {
        "type": "object",
        "required": ["messages"],
        "additionalProperties": True,
        "properties": {
            "model": _MODEL,
            "messages": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["role"],
                    "properties": {
                        "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool", "function"]},
                        "content": {"description": "Text, or a list of parts.", "type": ["string", "array", "null"]},
                    },
                },
            },
            "stream": _STREAM,
            "stream_options": _STREAM_OPTIONS,
            "max_tokens": {"type": "integer"},
            "max_completion_tokens": {"type": "integer"},
            "temperature": {"type": "number"},
            "top_p": {"type": "number"},
            "seed": {"type": "integer"},
            "stop": {"type": ["string", "array", "null"]},
            "tools": {"type": "array", "items": {"type": "object"}},
            "tool_choice": {"type": ["string", "object"]},
            "response_format": {"type": "object"},
            "reasoning_effort": {"type": "string"},
        },
    },
    "CompletionRequest": {
        "type": "object",
        "required": ["prompt"],
        "additionalProperties": True,
        "properties": {
            "model": _MODEL,
            "prompt": {"description": "Text, a list of texts, or token ids.", "type": ["string", "array"]},
            "suffix": {"type": "string"},
            "stream": _STREAM,
            "stream_options": _STREAM_OPTIONS,
            "max_tokens": {"type": "integer"},
            "temperature": {"type": "number"},
        },
    },
    "EmbeddingsRequest": {
        "type": "object",
        "required": ["input"],
        "additionalProperties": True,
        "properties": {
            "model": _MODEL,
            "input": {"description": "Text, a list of texts, or token ids.", "type": ["string", "array"]},
            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
            "dimensions": {"type": "integer", "minimum": 1},
        },
    },
}

_CHAT = {
    "model": "hx-chat",
    "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}],
    "max_tokens": 10,
    "temperature": 0,
}
_CHAT_ANSWER = {
    "id": "chatcmpl-01JD3W6Y",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "hx-chat",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "HX-OK"}, "finish_reason": "stop"}],
    "usage": _TOKENS,
}
_TEXT = {"model": "hx-chat", "prompt": "One, two,", "max_tokens": 4}
_TEXT_ANSWER = {
    "id": "cmpl-01JD3W6Y",
    "object": "text_completion",
    "created": 1700000000,
    "model": "hx-chat",
    "choices": [{"index": 0, "text": " three, four", "finish_reason": "length", "logprobs": None}],
    "usage": _TOKENS,
}
_EMBEDDINGS = {"model": "emb-premium", "input": "HX-OK"}
_EMBEDDINGS_ANSWER = {
    "object": "list",
    "model": "emb-premium",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.013, -0.027]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}

_FAILURES = {
    "400": "The body is not valid, or asks for what the model server cannot do.",
    "401": "No key, or one that is not known.",
    "403": "The key may not use this model, or is no admin key.",
    "404": "Nothing has this name.",
    "409": "The change does not go with what is there.",
    "413": "The body is larger than http.max_body_bytes.",
    "429": "A rate limit, or every model server is full; Retry-After tells when to try again.",
    "502": "The model server failed, and so did the others that were tried.",
    "503": "Nothing can take the request now; Retry-After tells when to try again.",
    "504": "The model server did not answer in time.",
}


def failures(*statuses: str) -> dict[int | str, Any]:
    """Error answers for an operation, all of OpenAI's shape."""
    return {
        status: {"description": _FAILURES[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in statuses or sorted(_FAILURES.keys() - {"409"})
    }


def _operation(name: str, summary: str, schema: str, example: Any, answer: Any, streams: bool) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"example": answer}}
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}, "example": "data: {…}\n\ndata: [DONE]\n\n"}
    header = {"schema": {"type": "string"}}
    headers = {"x-request-id": header, "x-hx-model": header, "x-hx-endpoint": header}
    return {
        "tags": ["inference"],
        "operationId": name,
        "summary": summary,
        "security": _NEEDS_KEY,
        "parameters": [
            {"name": "X-HX-Model-Group", "in": "header", "required": False, "schema": {"type": "string"},
             "description": "Model, alias or group for a body that names none."},
            {"name": "X-Request-ID", "in": "header", "required": False, "schema": {"type": "string"},
             "description": "Comes back in the answer and goes to the model server, if it is a plain token."},
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}},
        },
        "responses": {"200": {"description": "The answer.", "headers": headers, "content": content}, **failures()},
    }  # fmt: skip


def inference_paths() -> dict[str, Any]:
    """The path items of the inference routes and of what is forwarded."""
    anything = {
        "tags": ["inference"],
        "summary": "Any other path below /v1, forwarded to the default upstream as it is.",
        "security": _NEEDS_KEY,
        "parameters": [{"name": "path", "in": "path", "required": True, "schema": {"type": "string"}}],
        "responses": {"default": {"description": "The upstream's own answer."}, **failures("401", "404", "502", "504")},
    }
    return {
        "/v1/chat/completions": {
            "post": _operation("chat", "Answer a conversation.", "ChatRequest", _CHAT, _CHAT_ANSWER, True),
        },
        "/v1/completions": {
            "post": _operation("completions", "Continue a text.", "CompletionRequest", _TEXT, _TEXT_ANSWER, True),
        },
        "/v1/embeddings": {
            "post": _operation("embeddings", "Turn texts into vectors.", "EmbeddingsRequest", _EMBEDDINGS, _EMBEDDINGS_ANSWER, False),
        },
        "/v1/{path}": {method: {**anything, "operationId": f"forward_{method}"} for method in ("get", "post", "put", "patch", "delete")},
    }


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The framework's document of the control routes with everything that it cannot know."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    components["securitySchemes"] = SECURITY
    for path, item in document["paths"].items():
        for operation in item.values():
            if path.startswith("/admin/"):
                operation["security"] = _NEEDS_KEY
            if path.startswith("/v1/"):
                operation["security"] = _NEEDS_KEY
                operation["responses"].update(failures("401", "404") if "{" in path else failures("401"))
            if "422" in operation["responses"]:
                operation["responses"]["422"] = {
                    "description": "A value cannot be used.",
                    "content": {"application/json": {"schema": _ERROR}},
                }
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    document["paths"] = {**inference_paths(), **document["paths"]}
    illustrate(document)
    return document
