"""Reads single fields of an OpenAI request and turns them into Ollama's options, refusing values that cannot be meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hx_gateway.core.errors import INVALID_JSON, INVALID_VALUE, UNSUPPORTED_PARAMETER, Failure

Body = Mapping[str, Any]

_FLOATS = (
    # field, lowest, highest
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("min_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repeat_penalty", 0.0, 100.0),
    ("tfs_z", 0.0, 100.0),
    ("mirostat_tau", 0.0, 100.0),
    ("mirostat_eta", 0.0, 100.0),
)
_INTEGERS = (
    ("seed", -(2**63), 2**63 - 1),
    ("top_k", 0, 2**31 - 1),
    ("repeat_last_n", -1, 2**31 - 1),
    ("mirostat", 0, 2),
    ("num_keep", -1, 2**31 - 1),
    ("num_ctx", 1, 2**31 - 1),
)
_OTHER = ("num_predict", "penalize_newline", "stop")
OPTION_NAMES = frozenset([name for name, _, _ in _FLOATS] + [name for name, _, _ in _INTEGERS] + list(_OTHER))
"""Options a client may set. What loads the model anew (batch, GPU layers, memory mapping …) is the operator's alone."""

TOP_LEVEL_OPTIONS = OPTION_NAMES - {"num_predict"}
"""Options that are also read at the top level of a request, where SDKs put their "extra body"."""


def invalid(param: str, message: str) -> Failure:
    """A 400 for the field ``param``."""
    return Failure(INVALID_VALUE, f"{param}: {message}", param=param)


def unsupported_by_ollama(param: str, message: str) -> Failure:
    """A 400 for a field that Ollama cannot honour."""
    return Failure(UNSUPPORTED_PARAMETER, f"{param}: {message}", param=param)


def decoded(raw: bytes) -> dict[str, Any]:
    """The request body as a dictionary.

    Raises:
        Failure: It is no JSON object (400).
    """
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Failure(INVALID_JSON, f"the body is not valid JSON: {error}") from error
    if not isinstance(body, dict):
        raise Failure(INVALID_JSON, "the body must be a JSON object")
    return body


def strings(given: Any, param: str, most: int) -> list[str]:
    """One text, or a list of at most ``most``, as a list.

    Raises:
        Failure: There is none, one is empty, or they are token ids (400).
    """
    alone = isinstance(given, str)
    if alone:
        given = [given]
    if not isinstance(given, list) or not given:
        raise invalid(param, "must be a string or a list of strings, and not empty")
    if len(given) > most:
        raise invalid(param, f"must be at most {most} texts; send them in several requests")
    for index, item in enumerate(given):
        if isinstance(item, int | list):
            raise unsupported_by_ollama(param, "Ollama takes text, not token ids; send it as strings")
        if not item or not isinstance(item, str):
            raise invalid(param if alone else f"{param}[{index}]", "must be a string, and not empty")
    return given


def number(body: Body, name: str, low: float, high: float, where: str = "") -> float | int | None:
    """The number in field ``name``, or None when it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(where + name, "must be a number")
    if not low <= value <= high:
        raise invalid(where + name, f"must be between {low:g} and {high:g}")
    return value


def integer(body: Body, name: str, low: int, high: int, where: str = "") -> int | None:
    """The whole number in field ``name``, or None when it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(where + name, "must be a whole number")
    if value < low or value > high:
        raise invalid(where + name, f"must be at least {low}" if value < low else f"must be at most {high}")
    return value


def flag(body: Body, name: str) -> bool | None:
    """The boolean in field ``name``, or None when it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, "must be true or false")
    return value


def _stop(value: Any, param: str) -> list[str] | None:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise invalid(param, "must be a string or a list of strings")
    # An empty stop string would end every answer at once.
    return [item for item in value if item] or None


def _read(source: Body, where: str, into: dict[str, Any]) -> None:
    for name, low, high in _FLOATS:
        if name in source and (value := number(source, name, low, high, where)) is not None:
            into[name] = value
    for name, lowest, highest in _INTEGERS:
        if name in source and (whole := integer(source, name, lowest, highest, where)) is not None:
            into[name] = whole
    if source.get("stop") is not None and (stop := _stop(source["stop"], where + "stop")) is not None:
        into["stop"] = stop
    newline = source.get("penalize_newline")
    if newline is not None:
        if not isinstance(newline, bool):
            raise invalid(where + "penalize_newline", "must be true or false")
        into["penalize_newline"] = newline


def options(body: Body, pinned_num_ctx: int | None, defaults: Body) -> dict[str, Any]:
    """Ollama's ``options`` for a request; what the client left open stays open, so that the model file's own values hold.

    Args:
        body: The OpenAI request.
        pinned_num_ctx: The deployment's context size in tokens. It beats the client's, because any other value makes
            Ollama load the model again.
        defaults: The deployment's engine settings, used where the client says nothing.

    Raises:
        Failure: A value is out of range; ``param`` names it.
    """
    result = {name: value for name, value in defaults.items() if name in OPTION_NAMES}
    native = body.get("options")
    if native is not None:
        if not isinstance(native, dict):
            raise invalid("options", "must be an object of Ollama options")
        _read(native, "options.", result)
        if (limit := integer(native, "num_predict", -2, 2**31 - 1, "options.")) is not None:
            result["num_predict"] = limit
    _read(body, "", result)
    # Ollama takes 0 for "no limit", the opposite of what a client means by it; hence at least 1.
    limit = integer(body, "max_tokens", 1, 2**31 - 1)
    newer = integer(body, "max_completion_tokens", 1, 2**31 - 1)
    if newer is not None or limit is not None:
        result["num_predict"] = newer if newer is not None else limit
    if pinned_num_ctx is not None:
        result["num_ctx"] = pinned_num_ctx
    return result


_THINK: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}


def think(body: Body, defaults: Body) -> bool | str | None:
    """Ollama's ``think``: None to leave it to the model, False, True or a level.

    ``think`` beats ``reasoning_effort``, which beats ``reasoning.effort``. A deployment whose ``capabilities`` are known
    and lack ``thinking`` gets None instead of a level, since Ollama refuses the request otherwise.

    Raises:
        Failure: The value is none of the known ones (400).
    """
    chosen: bool | str | None
    value = body.get("think")
    if value is not None:
        if not isinstance(value, bool) and value not in ("low", "medium", "high", "max"):
            raise invalid("think", 'must be true, false, "low", "medium", "high" or "max"')
        chosen = value
    else:
        param, effort = "reasoning_effort", body.get("reasoning_effort")
        reasoning = body.get("reasoning")
        if effort is None and reasoning is not None:
            if not isinstance(reasoning, dict):
                raise invalid("reasoning", 'must be an object such as {"effort": "low"}')
            param, effort = "reasoning.effort", reasoning.get("effort")
        if effort is None:
            chosen = defaults.get("think")
        elif not isinstance(effort, str) or effort not in _THINK:
            raise invalid(param, f"must be one of {', '.join(_THINK)}")
        else:
            chosen = _THINK[effort]
    capabilities = defaults.get("capabilities")
    if chosen and capabilities is not None and "thinking" not in capabilities:
        return None
    return chosen


def answer_format(body: Body) -> Any:
    """Ollama's ``format``: None, ``"json"`` or a JSON schema.

    Raises:
        Failure: ``response_format`` has another shape (400).
    """
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    if kind == "json_schema":
        described = wanted.get("json_schema")
        schema = described.get("schema") if isinstance(described, dict) else None
        if not isinstance(schema, dict):
            raise invalid("response_format.json_schema.schema", "must be a JSON schema object")
        return schema
    raise invalid("response_format.type", 'must be "text", "json_object" or "json_schema"')
