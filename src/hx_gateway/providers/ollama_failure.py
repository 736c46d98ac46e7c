"""Reads Ollama's errors: whose fault they are, and what the client shall be told."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, Route
from hx_gateway.core.errors import (
    CONTEXT_LENGTH,
    UPSTREAM_BUSY,
    UPSTREAM_CREDENTIALS,
    UPSTREAM_ERROR,
    UPSTREAM_REFUSED,
    Failure,
)
from hx_gateway.core.interfaces import Headers

_LONGEST_MESSAGE = 500
_BUSY_RETRY_S = 1.0
_LONGEST_RETRY_S = 3600.0

# Ollama's runner puts its own address and paths into messages; they are nobody's business outside.
_PRIVATE = re.compile(r'"?https?://[^\s"]+"?|(?<![\w.])(?:/[\w.@-]+){2,}|\b[A-Za-z]:\\[^\s"]+')
_BUSY = re.compile(r"maximum pending requests|server busy|llm busy|no slots available|too many (?:concurrent )?requests", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"exceed\w* (?:the |max |maximum |available |model'?s? )*context|context length exceeded|(?:prompt|input) (?:is )?too long",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(r"\bmodel\b.*\bnot found\b|no such model", re.IGNORECASE)
_INCAPABLE = re.compile(r"does not support (\w+)|think value .* not supported|invalid think value", re.IGNORECASE)
_PARAMS = {
    "thinking": "reasoning_effort",
    "tools": "tools",
    "insert": "suffix",
    "vision": "messages",
    "embeddings": "model",
    "chat": "model",
    "generate": "model",
}
_FIELDS = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input"}


def shown(message: Any) -> str:
    """Ollama's message made fit for a client: one line, no addresses or paths, of bounded length."""
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    text = _PRIVATE.sub("(address)", " ".join(text.split()))
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"


def _retry_after_s(headers: Headers, now_s: float) -> float | None:
    """Seconds from a Retry-After header (a number or a date); None when there is none that can be read."""
    for name, value in headers:
        if name != b"retry-after":
            continue
        text = value.decode("latin-1").strip()
        try:
            seconds = float(text)
        except ValueError:
            try:
                seconds = parsedate_to_datetime(text).timestamp() - now_s
            except ValueError:
                return None
        return min(max(seconds, 0.0), _LONGEST_RETRY_S) if seconds == seconds else None
    return None


def _refused(message: str, status: int) -> Failure:
    incapable = _INCAPABLE.search(message)
    param = None
    if incapable:
        param = _PARAMS.get((incapable.group(1) or "thinking").lower())
    return Failure(UPSTREAM_REFUSED, message, param=param, upstream_status=status)


def from_message(message: Any, route: Route, deployment: Any, status: int | None = None, retry_after_s: float | None = None) -> Failure:
    """The failure that Ollama's error text stands for.

    Args:
        message: What stood under ``error``.
        route: Decides which field is named when the input is too long.
        deployment: Names the model in the message for the client.
        status: The HTTP status, None when the error came inside an answer of status 200.
        retry_after_s: Seconds the server asked us to wait.
    """
    text = shown(message)
    if status == 429 or _BUSY.search(text):
        # A full Ollama says 503 and why; a 503 without that comes from something broken in front of it.
        wait_s = retry_after_s if retry_after_s is not None else _BUSY_RETRY_S
        return Failure(UPSTREAM_BUSY, text or "the model server is full", retry_after_s=wait_s)
    if status in (401, 403):
        return Failure(UPSTREAM_CREDENTIALS, "the model server refused the gateway's credentials; check the api_key of its endpoint")
    if _TOO_LONG.search(text):
        return Failure(CONTEXT_LENGTH, f"{text}; shorten the prompt, or choose a model with a larger context", param=_FIELDS.get(route))
    if _INCAPABLE.search(text):
        return _refused(text, 400)
    if status == 404 or _NO_MODEL.search(text):
        return Failure(UPSTREAM_ERROR, _missing(text, deployment))
    if status is not None and 400 <= status < 500:
        return _refused(text or f"the model server answered {status}", status)
    server_error = status if status is not None and status >= 500 else None
    return Failure(UPSTREAM_ERROR, text or "the model server failed without saying why", upstream_status=server_error)


def _missing(text: str, deployment: Any) -> str:
    if "page not found" in text.lower() or not text:
        return "the model server does not know this route; its Ollama is too old, or its address points to something else"
    return f"the model behind {deployment.model!r} is not installed on the chosen model server; pull it there, or remove the deployment"


def failure(route: Route, deployment: Any, status: int, headers: Headers, body: bytes, now_s: float) -> Failure:
    """What a non-2xx answer means.

    Args:
        route: What was asked for.
        deployment: Where it came from.
        status: Its HTTP status.
        headers: Its headers.
        body: Its body: ``{"error": "..."}`` as a rule, plain text from what stands before or instead of Ollama.
        now_s: Seconds since the Unix epoch, for a Retry-After given as a date.
    """
    message: Any = ""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        plain = body[: 4 * _LONGEST_MESSAGE].decode("utf-8", "replace")
        message = "" if "<" in plain else plain  # a proxy's HTML page tells a client nothing
    else:
        error = decoded.get("error") if isinstance(decoded, dict) else None
        if isinstance(error, dict):  # Ollama's own OpenAI side, or a proxy that speaks it
            error = error.get("message")
        message = error if isinstance(error, str) else ""
    return from_message(message, route, deployment, status, _retry_after_s(headers, now_s))
