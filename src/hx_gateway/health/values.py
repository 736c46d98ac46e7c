"""Reads single values out of what a model server answered, whatever it answered; what is missing or odd is empty or 0."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

_LONGEST = 512  # characters of a text that are kept
_MOST_ITEMS = 4096
_COUNT = re.compile(r"([0-9.]+)\s*([KMBT]?)", re.IGNORECASE)
_LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')
_SCALE = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def section(document: Any, key: str) -> Any:
    """What stands under ``key``; None when there is nothing, or the document is no object."""
    return document.get(key) if isinstance(document, dict) else None


def items(document: Any, key: str) -> list[dict[str, Any]]:
    """The objects in the list under ``key``."""
    listed = section(document, key)
    return [item for item in listed[:_MOST_ITEMS] if isinstance(item, dict)] if isinstance(listed, list) else []


def text(document: Any, key: str) -> str:
    """The text under ``key``, cut to a bounded length."""
    value = section(document, key)
    return value[:_LONGEST] if isinstance(value, str) else ""


def number(document: Any, key: str) -> float:
    """The finite number under ``key`` that is not negative."""
    value = section(document, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        return 0.0
    return float(value)


def truth(document: Any, key: str) -> bool | None:
    """The boolean under ``key``; None when there is none."""
    value = section(document, key)
    return value if isinstance(value, bool) else None


def parameter_count(words: str) -> float:
    """The number in ``8.0B`` or ``137M``."""
    found = _COUNT.fullmatch(words.strip())
    if found is None:
        return 0.0
    try:
        return float(found[1]) * _SCALE[found[2].upper()]
    except ValueError:
        return 0.0


def moment(words: str) -> float:
    """Unix time of an RFC 3339 text, with as many decimals as Go writes; its zero time, of the year 1, is 0.0."""
    if not words:
        return 0.0
    try:
        return max(0.0, datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", words)).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0.0


def samples(exposition: bytes, names: Iterable[str]) -> dict[str, list[float]]:
    """The finite values of some metrics in a Prometheus exposition, by name, over all their labels.

    Args:
        exposition: The text.
        names: Names looked for.
    """
    wanted = "|".join(re.escape(name) for name in names).encode()
    found: dict[str, list[float]] = {}
    for match in re.finditer(rb"^(" + wanted + rb")(?:\{[^\n]*\})?[ \t]+(\S+)", exposition, re.MULTILINE):
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value):
            found.setdefault(match[1].decode(), []).append(value)
    return found


def labels(exposition: bytes, name: str) -> list[dict[str, str]]:
    """The labels of each sample of a metric in a Prometheus exposition.

    Args:
        exposition: The text.
        name: The metric's name.
    """
    found = re.finditer(rb"^" + re.escape(name).encode() + rb"\{([^\n]*)\}[ \t]", exposition, re.MULTILINE)
    return [{key.decode(): value.decode("utf-8", "replace") for key, value in _LABEL.findall(match[1])} for match in found]
