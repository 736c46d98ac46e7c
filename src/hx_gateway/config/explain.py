"""Says in plain words what the schema has against a value, without ever repeating the value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hx_gateway.config.located import Path
from hx_gateway.config.problems import Finding
from hx_gateway.config.shape import at, elsewhere, nearest

_SHOULD_BE = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list, e.g. [a, b]",
    "list_type": "a list, e.g. [a, b]",
    "dict_type": "a mapping of names to settings",
    "model_type": "a mapping of settings",
    "model_attributes_type": "a mapping of settings",
    "string_unicode": "valid Unicode text",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_PATTERNS = {"key_hash": "should be sha256: and 64 hexadecimal digits"}
_KEY = "[key]"  # how the validator marks that the name of an entry is at fault


def _kind(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, float):
        return "a fraction" if math.isfinite(value) else "an infinite one"
    if isinstance(value, int):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list) else "a mapping"


def _place(data: Any, location: Sequence[int | str], kind: str) -> Path:
    """The path of an error in ``data``: the validator's own labels for branches of a union are left out."""
    path: list[str | int] = []
    for position, part in enumerate(location):
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if inside:
            data = data[part]
        elif not (kind == "missing" and position == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def _value(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data


def _words(error: ErrorDetails, path: Path, data: Any) -> str:
    kind = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "extra_forbidden":
        shape = at(path[:-1])
        known = shape.section.model_fields if shape is not None and shape.section is not None else ()
        name = str(path[-1])
        return "unknown setting" + (nearest(name, known) or elsewhere(name))
    if kind == "missing":
        return "is missing, and needed"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"should be {words} {context[name]:g}" if isinstance(context[name], float) else f"should be {words} {context[name]}"
    if kind == "literal_error":
        shape = at(path)
        choices = shape.choices if shape is not None else ()
        value = _value(data, path)
        hint = nearest(value, [choice for choice in choices if choice]) if isinstance(value, str) else ""
        return "should be one of " + ", ".join(choice or "empty" for choice in choices) + hint
    if kind in ("string_too_short", "too_short"):
        return "should not be empty"
    if kind == "string_too_long":
        return f"should have at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(str(path[-1]) if path else "", "should have no spaces and no control characters")
    if kind == "value_error":
        return str(context["error"])
    return error["msg"] if kind == "secret" else "has a value that cannot be used here"


def _above(paths: Iterable[Path]) -> set[Path]:
    """Every path that has one of ``paths`` below it."""
    return {path[:length] for path in paths for length in range(len(path))}


def findings(error: ValidationError, data: Any) -> list[Finding]:
    """Every reason why ``data`` does not fit the schema, one finding for each place.

    Args:
        error: What the schema's validation raised.
        data: What was validated, as plain data.
    """
    expected: dict[Path, list[str]] = {}
    found: dict[Path, Finding] = {}
    for detail in error.errors(include_url=False, include_input=False):
        location = detail["loc"]
        of_key = bool(location) and location[-1] == _KEY
        path = _place(data, location[:-1] if of_key else location, detail["type"])
        if detail["type"] in _SHOULD_BE and not of_key:
            expected.setdefault(path, []).append(_SHOULD_BE[detail["type"]])
        elif path not in found:
            on_key = of_key or detail["type"] in ("extra_forbidden", "missing")
            found[path] = Finding(path, _words(detail, path, data), on_key=on_key)
    around = _above([*expected, *found])
    for path in list(found):
        # The validator does not count wrong items, so a list of nothing else seems empty to it.
        if path in around and isinstance(_value(data, path), list):
            del found[path]
    around = _above(found)
    for path, kinds in expected.items():
        # Another branch of the same union got further: what that one says is nearer to what was meant.
        if path in found or path in around:
            continue
        value = _value(data, path)
        remedy = ""
        if value is None:
            remedy = "; leave the line out for the default"
        elif kinds == ["text"] and isinstance(value, int | float):
            remedy = "; put it in quotes"
        found[path] = Finding(path, f"should be {' or '.join(dict.fromkeys(kinds))}, not {_kind(value)}{remedy}")
    return list(found.values())
