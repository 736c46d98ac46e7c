"""Writes chat and text completion requests in Ollama's native dialect, and names what had to be left out."""

from __future__ import annotations

from typing import Any

import msgspec

from hx_gateway.core.interfaces import Outgoing
from hx_gateway.providers.ollama_messages import messages, tools, uses_functions
from hx_gateway.providers.ollama_values import (
    OPTION_NAMES,
    TOP_LEVEL_OPTIONS,
    Body,
    answer_format,
    flag,
    integer,
    invalid,
    options,
    strings,
    think,
    unsupported_by_ollama,
)

CHAT_PATH = "/api/chat"
GENERATE_PATH = "/api/generate"
_MAX_CHOICES = 128
_MAX_PROMPTS = 256

# Honoured here, or nothing an engine has to know (who asks, what it is filed under).
_HONOURED = TOP_LEVEL_OPTIONS | {
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "logprobs",
    "top_logprobs", "tools", "tool_choice", "functions", "function_call", "response_format", "reasoning_effort",
    "reasoning", "think", "options", "keep_alive", "truncate", "shift", "parallel_tool_calls", "modalities",
    "prompt", "suffix", "echo", "input", "dimensions", "encoding_format", "best_of", "user", "metadata", "store",
    "service_tier", "safety_identifier", "prompt_cache_key",
}  # fmt: skip


def unsupported(raw: bytes) -> list[str]:
    """Names of the request's fields that Ollama cannot honour and that are left out or only approximated.

    Reads the top level only. What would change the meaning of the answer is not listed but refused by ``prepare``.
    A body that is no JSON object gives an empty list.
    """
    try:
        body = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        native = msgspec.json.decode(body.get("options", b"null"))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return []
    named = [name for name, value in body.items() if name not in _HONOURED and bytes(value) != b"null"]
    if bytes(body.get("tool_choice", b"")) == b'"required"':
        named.append("tool_choice")
    if bytes(body.get("parallel_tool_calls", b"")) == b"false":
        named.append("parallel_tool_calls")
    if bytes(body.get("best_of", b"")) not in (b"", b"null", b"1"):
        named.append("best_of")
    if isinstance(native, dict):
        named += [f"options.{name}" for name in native if name not in OPTION_NAMES]
    return named


def engine_options(body: Body, deployment: Any) -> dict[str, Any]:
    """Ollama's ``options`` for a request to a deployment; none of them makes it load a model again that it has in memory.

    Ollama does so for any other context size than the one the model was loaded with. The deployment's own ``num_ctx``
    beats the client's; without one, a client's that differs from what is loaded is left out (`withheld` names it).

    Raises:
        Failure: A value is out of range; ``param`` names it.
    """
    settings = deployment.options
    chosen = options(body, settings.num_ctx, settings.extra)
    if settings.num_ctx is None and _contexts(body, deployment.loaded_context):
        chosen.pop("num_ctx", None)
    return chosen


def basis(body: Body, deployment: Any) -> dict[str, Any]:
    """What every request has: model, options and loading policy, the latter two where there is something to say.

    Raises:
        Failure: A value is out of range; ``param`` names it.
    """
    request: dict[str, Any] = {"model": deployment.upstream_model}
    chosen = engine_options(body, deployment)
    if chosen:
        request["options"] = chosen
    keep = keep_alive(body, deployment.options.keep_alive)
    if keep is not None:
        request["keep_alive"] = keep
    return request


def _contexts(body: Body, kept: int | None) -> list[str]:
    """The fields in which a client asks for another context size than ``kept``; none where that is 0 or None."""
    if not kept:
        return []
    native = body.get("options")
    asked = {"num_ctx": body.get("num_ctx"), "options.num_ctx": native.get("num_ctx") if isinstance(native, dict) else None}
    return [name for name, value in asked.items() if value is not None and value != kept]


def withheld(body: Body, deployment: Any, writes: bool = True) -> list[str]:
    """Names of the request's fields that are left out because of the model it goes to, or of how that is loaded.

    Args:
        body: The request.
        deployment: Where it goes.
        writes: Whether it asks for text, so that there could be thinking.
    """
    settings = deployment.options
    named = _contexts(body, settings.num_ctx or deployment.loaded_context)
    capabilities = settings.extra.get("capabilities")
    if writes and capabilities is not None and "thinking" not in capabilities and think(body, {}):
        named += [name for name in ("think", "reasoning_effort", "reasoning") if body.get(name) is not None][:1]
    return named


def _lacks(deployment: Any, capability: str) -> bool:
    capabilities = deployment.options.extra.get("capabilities")
    return capabilities is not None and capability not in capabilities


def _envelope(body: Body, deployment: Any, stream: bool) -> dict[str, Any]:
    """What every generating request has: its basis, stream (Ollama's own default is true), format and thinking."""
    settings = deployment.options
    request = {**basis(body, deployment), "stream": stream}
    form = answer_format(body)
    if form is not None:
        request["format"] = form
    level = think(body, settings.extra)
    if level is not None:
        request["think"] = level
    for name in ("truncate", "shift"):
        value = flag(body, name)
        if value is None:
            value = settings.extra.get(name)
        if value is not None:
            request[name] = value
    return request


def keep_alive(body: Body, policy: str | int | None) -> str | int | float | None:
    """How long the model stays loaded after the answer: the operator's policy, else the client's wish (seconds or ``"5m"``).

    Raises:
        Failure: The client's value is neither number nor text (400).
    """
    if policy is not None:
        return policy
    value = body.get("keep_alive")
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
        raise invalid("keep_alive", 'must be seconds or a duration such as "5m"')
    return value


def _logprobs(body: Body, request: dict[str, Any]) -> None:
    wanted = body.get("logprobs")
    top = integer(body, "top_logprobs", 0, 20)
    if wanted is None or wanted is False:
        if top is not None:
            raise invalid("top_logprobs", 'needs "logprobs": true')
        return
    if wanted is not True:
        raise invalid("logprobs", "must be true or false")
    request["logprobs"] = True
    if top:
        request["top_logprobs"] = top


def _choices(body: Body, stream: bool) -> int:
    count = integer(body, "n", 1, _MAX_CHOICES) or 1
    if count > 1 and stream:
        raise unsupported_by_ollama("n", "a streamed answer of Ollama has one choice; leave n out, or ask without stream")
    return count


def _outgoing(path: bytes, request: dict[str, Any], count: int) -> list[Outgoing]:
    stream = request["stream"]
    result = []
    for choice in range(count):
        if choice:
            seed = request.get("options", {}).get("seed")
            if seed is not None:  # the same seed would give the same choice n times
                request["options"]["seed"] = seed + 1 if seed < 2**63 - 1 else 0
        result.append(Outgoing(path, msgspec.json.encode(request), stream=stream))
    return result


def chat(body: Body, deployment: Any, stream: bool, base: str) -> list[Outgoing]:
    """A chat completion as calls of ``/api/chat``, one per choice.

    Raises:
        Failure: The request is not valid, or Ollama cannot do what it asks (400).
    """
    count = _choices(body, stream)
    modalities = body.get("modalities")
    if isinstance(modalities, list) and "audio" in modalities:
        raise unsupported_by_ollama("modalities", "Ollama answers in text only")
    request = _envelope(body, deployment, stream)
    request["messages"] = messages(body)
    if _lacks(deployment, "vision"):
        for index, message in enumerate(request["messages"]):
            if "images" in message:
                remedy = "send text only, or choose a model with the capability vision"
                raise unsupported_by_ollama(f"messages[{index}].content", f"the model {deployment.model!r} does not take images; {remedy}")
    offered = tools(body)
    if offered:
        if _lacks(deployment, "tools"):
            field = "functions" if uses_functions(body) else "tools"
            remedy = f"leave {field} out, or choose a model with the capability tools"
            raise unsupported_by_ollama(field, f"the model {deployment.model!r} does not take tools; {remedy}")
        request["tools"] = offered
    _logprobs(body, request)
    return _outgoing((base + CHAT_PATH).encode(), request, count)


def prompts(body: Body) -> list[str]:
    """The prompts of a text completion.

    Raises:
        Failure: None is given, one is empty, or they are token ids (400).
    """
    # An empty one would be an order to load the model.
    return strings(body.get("prompt"), "prompt", _MAX_PROMPTS)


def completions(body: Body, deployment: Any, stream: bool, base: str) -> list[Outgoing]:
    """A text completion as calls of ``/api/generate``, one per prompt and choice, choices of a prompt side by side.

    Raises:
        Failure: The request is not valid, or Ollama cannot do what it asks (400).
    """
    texts = prompts(body)
    if stream and len(texts) > 1:
        raise unsupported_by_ollama("prompt", "a streamed answer of Ollama has one prompt; send the prompts one by one, or without stream")
    count = _choices(body, stream)
    if count * len(texts) > _MAX_PROMPTS:
        raise invalid("n", f"must ask for at most {_MAX_PROMPTS} answers in all; send the prompts in several requests")
    request = _envelope(body, deployment, stream)
    suffix = body.get("suffix")
    if suffix is not None and not isinstance(suffix, str):
        raise invalid("suffix", "must be a string")
    if suffix:
        request["suffix"] = suffix  # only the model's template knows how to place it, so this one is not raw
    else:
        request["raw"] = True
    logprobs = body.get("logprobs")
    if logprobs is True:
        _logprobs(body, request)
    elif logprobs is not False and (top := integer(body, "logprobs", 0, 20)) is not None:
        request["logprobs"] = True
        if top:
            request["top_logprobs"] = top
    if flag(body, "echo") and request.get("logprobs"):
        raise unsupported_by_ollama("echo", "Ollama gives no log probabilities of the prompt; leave echo or logprobs out")
    result: list[Outgoing] = []
    seed = request.get("options", {}).get("seed")
    for text in texts:
        request["prompt"] = text
        if seed is not None:
            request["options"]["seed"] = seed
        result += _outgoing((base + GENERATE_PATH).encode(), request, count)
    return result


def speaks_functions(raw: bytes) -> bool:
    """Whether the answer must come as ``function_call``; looks at the bytes first, since almost none do."""
    return b'"functions"' in raw and uses_functions(msgspec.json.decode(raw))
