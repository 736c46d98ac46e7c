"""Filters over points: the part of Qdrant's filter language that every store here can follow, checked with the place of each fault."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hx_gateway.rag.points import Unfit

_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_OWN = ("document", "chunk")  # keys of a point itself; every other is one of its metadata
_CLAUSES = ("must", "must_not", "should")
_BOUNDS = ("gt", "gte", "lt", "lte")
_DEPTH, _CONDITIONS, _ANY = 4, 64, 1000


class Match(msgspec.Struct, frozen=True, tag=True):
    """A value, or one of a list of values, is one of ``values``.

    Args:
        path: Keys from the payload of a point inwards: `("document",)` or `("metadata", "author")`.
        values: Texts, whole numbers or truth values, all of one kind.
    """

    path: tuple[str, ...]
    values: tuple[str | int | bool, ...]


class Range(msgspec.Struct, frozen=True, tag=True):
    """A number, or one of a list of numbers, lies within bounds.

    Args:
        path: As in `Match`.
        bounds: Numbers by `gt`, `gte`, `lt` and `lte`; at least one.
    """

    path: tuple[str, ...]
    bounds: dict[str, float]


class Filter(msgspec.Struct, frozen=True, tag=True):
    """Which points: every one of ``must``, none of ``must_not``, and, where there are any, one of ``should``."""

    must: tuple[Match | Range | Filter, ...] = ()
    must_not: tuple[Match | Range | Filter, ...] = ()
    should: tuple[Match | Range | Filter, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.must or self.must_not or self.should)


Condition = Match | Range | Filter
EVERYTHING = Filter()


def of_documents(*documents: str) -> Filter:
    """The points of these documents."""
    return Filter(must=(Match(("document",), documents),))


def parsed(value: object, at: str = "filter") -> Filter:
    """A filter from JSON; None is `EVERYTHING`.

    Args:
        value: `{"must": [{"key": "year", "range": {"gte": 1960}}], "must_not": […], "should": […]}`, with conditions `{"key", "match": {"value"}}`,
            `{"key", "match": {"any": […]}}`, `{"key", "range": {"gt", "gte", "lt", "lte"}}` or filters again.
        at: Where it stands in the request, for errors.

    Raises:
        Unfit: It is malformed; `field` names the place.
    """
    return EVERYTHING if value is None else _filter(value, at, 1, [0])


def _filter(value: object, at: str, depth: int, seen: list[int]) -> Filter:
    if not isinstance(value, dict):
        raise Unfit(f"{at} should be an object with must, must_not or should", at)
    for name in value:
        if name not in _CLAUSES:
            raise Unfit(f"{at} knows must, must_not and should, not {str(name)[:40]!r}", f"{at}.{str(name)[:40]}")
    if depth > _DEPTH:
        raise Unfit(f"{at} is nested deeper than {_DEPTH} filters", at)
    found = {}
    for name in _CLAUSES:
        clause = value.get(name)
        items = clause if isinstance(clause, list) else [] if clause is None else [clause]  # Qdrant takes one condition alone too
        found[name] = tuple(_condition(item, f"{at}.{name}[{number}]", depth, seen) for number, item in enumerate(items))
    return Filter(**found)


def _condition(value: object, at: str, depth: int, seen: list[int]) -> Condition:
    seen[0] += 1
    if seen[0] > _CONDITIONS:
        raise Unfit(f"a filter has at most {_CONDITIONS} conditions", at)
    if not isinstance(value, dict):
        raise Unfit(f"{at} should be an object", at)
    if "key" not in value:
        return _filter(value, at, depth + 1, seen)
    key = value["key"]
    if not isinstance(key, str) or len(key) > 200 or _KEY.fullmatch(key) is None:
        raise Unfit(f"{at}.key should be a name of letters, digits, _ and -, with dots into nested objects", f"{at}.key")
    path = (key,) if key in _OWN else ("metadata", *key.removeprefix("metadata.").split("."))
    kinds = set(value) - {"key"}
    if kinds == {"match"}:
        return Match(path, _values(value["match"], f"{at}.match"))
    if kinds == {"range"}:
        return Range(path, _bounds(value["range"], f"{at}.range"))
    raise Unfit(f"{at} should have beside its key either match or range", at)


def _values(match: object, at: str) -> tuple[Any, ...]:
    if not isinstance(match, dict) or set(match) not in ({"value"}, {"any"}):
        raise Unfit(f"{at} should be an object with either value or any", at)
    ((name, given),) = match.items()
    values = given if name == "any" else [given]
    if not isinstance(values, list) or not 1 <= len(values) <= _ANY:
        raise Unfit(f"{at}.any should be a list of 1 to {_ANY} values", f"{at}.any")
    kinds = {type(item) for item in values}
    if len(kinds) != 1 or not kinds <= ({str, int} if name == "any" else {str, int, bool}):
        words = "texts or of whole numbers" if name == "any" else "a text, a whole number, true or false"
        raise Unfit(f"{at}.{name} should be {'a list of ' if name == 'any' else ''}{words}", f"{at}.{name}")
    if any(isinstance(item, str) and ("\0" in item or len(item) > 2000) for item in values):
        raise Unfit(f"{at}.{name} should be at most 2000 characters, none of them NUL", f"{at}.{name}")
    if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in values):
        raise Unfit(f"{at}.{name} should fit into 64 bits", f"{at}.{name}")
    return tuple(values)


def _bounds(given: object, at: str) -> dict[str, float]:
    if not isinstance(given, dict) or not given or not set(given) <= set(_BOUNDS):
        raise Unfit(f"{at} should be an object with one or more of {', '.join(_BOUNDS)}", at)
    for name, bound in given.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not abs(bound) < 1e300:
            raise Unfit(f"{at}.{name} should be a number", f"{at}.{name}")
    return {name: float(bound) for name, bound in given.items()}
