"""Turns OpenAI chat messages, tools and tool choices into Ollama's, one message for one message."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from hx_gateway.providers.ollama_values import Body, invalid, unsupported_by_ollama

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool", "function": "tool"}


def _image(url: Any, param: str) -> str:
    if not isinstance(url, str):
        raise invalid(param, "must be a data: URI with a base64 image")
    if not url.startswith("data:"):
        raise invalid(param, "remote images are not fetched; send the image itself as a data: URI with base64")
    kind, comma, data = url.partition(",")
    if not comma or not kind.endswith(";base64"):
        raise invalid(param, "must be a data: URI with base64 (data:image/png;base64,...)")
    data = data.replace("\n", "").replace("\r", "")
    try:
        empty = not base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(param, "the image is not valid base64") from error
    if empty:
        raise invalid(param, "the image is empty")
    return data


def _parts(content: list[Any], where: str) -> tuple[str, list[str]]:
    texts: list[str] = []
    images: list[str] = []
    for index, part in enumerate(content):
        at = f"{where}[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "refusal"):
            text = part.get(kind)
            if not isinstance(text, str):
                raise invalid(f"{at}.{kind}", "must be a string")
            texts.append(text)
        elif kind == "image_url":
            image = part.get("image_url")
            images.append(_image(image.get("url") if isinstance(image, dict) else image, f"{at}.image_url.url"))
        elif isinstance(kind, str):
            remedy = "choose a model on another engine"
            raise unsupported_by_ollama(f"{at}.type", f"Ollama takes text and image_url parts, not {kind!r}; {remedy}")
        else:
            raise invalid(at, 'must be an object with a "type"')
    # A line break keeps two parts from running into one word.
    return "\n".join(texts), images


def _arguments(value: Any, param: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as error:
            raise invalid(param, f"must be a JSON object as text: {error}") from error
    if not isinstance(value, dict):
        raise invalid(param, "must be a JSON object as text")
    return value


def _function(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise invalid(f"{where}.function.name", "must be the name of the function called")
    return {"name": function["name"], "arguments": _arguments(function.get("arguments"), f"{where}.function.arguments")}


def _calls(message: Body, where: str, names: dict[str, str]) -> list[dict[str, Any]]:
    given = message.get("tool_calls")
    if given is None:
        legacy = message.get("function_call")
        return [{"function": _function({"function": legacy}, f"{where}.function_call")}] if legacy is not None else []
    if not isinstance(given, list):
        raise invalid(f"{where}.tool_calls", "must be a list")
    result = []
    for index, call in enumerate(given):
        function = _function(call, f"{where}.tool_calls[{index}]")
        function["index"] = index
        entry: dict[str, Any] = {"function": function}
        if isinstance(call.get("id"), str):
            entry["id"] = call["id"]
            names[call["id"]] = function["name"]
        result.append(entry)
    return result


def _message(message: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(where, "must be a message object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    result: dict[str, Any] = {"role": _ROLES[role]}
    calls = _calls(message, where, names) if role == "assistant" else []
    content = message.get("content")
    if isinstance(content, str):
        result["content"] = content
    elif isinstance(content, list):
        result["content"], images = _parts(content, f"{where}.content")
        if images:
            result["images"] = images
    elif content is None and role == "assistant":
        refusal = message.get("refusal")
        result["content"] = refusal if isinstance(refusal, str) else ""
    else:
        raise invalid(f"{where}.content", "must be a string or a list of content parts")
    if calls:
        result["tool_calls"] = calls
    if role == "assistant":
        thinking = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(thinking, str):
            result["thinking"] = thinking
    elif result["role"] == "tool":
        identifier = message.get("tool_call_id")
        name = message.get("name")
        if isinstance(identifier, str):
            result["tool_call_id"] = identifier
            if not isinstance(name, str):
                name = names.get(identifier)
        if isinstance(name, str) and name:
            result["tool_name"] = name
    return result


def messages(body: Body) -> list[dict[str, Any]]:
    """Ollama's ``messages``.

    Raises:
        Failure: A message cannot be understood, or holds what Ollama cannot take; ``param`` says where.
    """
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        # Ollama would take an empty list as an order to load the model, and answer with nothing.
        raise invalid("messages", "must be a list with at least one message")
    names: dict[str, str] = {}
    return [_message(message, f"messages[{index}]", names) for index, message in enumerate(given)]


def uses_functions(body: Body) -> bool:
    """Whether the client speaks of ``functions`` as before there were tools, and wants ``function_call`` back."""
    return body.get("functions") is not None and body.get("tools") is None


def _named(tools: list[Any], wanted: set[Any], param: str) -> list[Any]:
    kept = [tool for tool in tools if tool["function"]["name"] in wanted]
    if len({tool["function"]["name"] for tool in kept}) != len(wanted):
        raise invalid(param, "names a function that is not among the tools")
    return kept


def _choice_names(choice: dict[str, Any], param: str) -> set[Any]:
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        entries = allowed.get("tools") if isinstance(allowed, dict) else None
    else:
        entries = [choice]
    names = set()
    for entry in entries if isinstance(entries, list) else [None]:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise invalid(param, 'must be "none", "auto", "required" or name a function')
        names.add(name)
    return names


def tools(body: Body) -> list[Any] | None:
    """The tools to offer, after ``tool_choice``: Ollama knows no choice, so what must not be called is left out.

    Raises:
        Failure: Tools or choice cannot be understood (400).
    """
    if uses_functions(body):
        field, choice_field = "functions", "function_call"
        given = body["functions"]
        wrapped = [{"type": "function", "function": function} for function in given] if isinstance(given, list) else given
    else:
        field, choice_field = "tools", "tool_choice"
        wrapped = body.get("tools")
    if wrapped is not None and not isinstance(wrapped, list):
        raise invalid(field, "must be a list")
    for index, tool in enumerate(wrapped or ()):
        kind = tool.get("type", "function") if isinstance(tool, dict) else None
        if isinstance(kind, str) and kind != "function":
            raise unsupported_by_ollama(f"{field}[{index}].type", "Ollama takes tools of type function only")
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise invalid(f"{field}[{index}]", "must describe a function with a name")
    choice = body.get(choice_field)
    if choice is None or choice in ("auto", "required"):
        return wrapped or None
    if choice == "none":
        return None
    if not isinstance(choice, dict):
        raise invalid(choice_field, 'must be "none", "auto", "required" or name a function')
    return _named(wrapped or [], _choice_names(choice, choice_field), choice_field)
