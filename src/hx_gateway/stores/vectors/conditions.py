"""Filters in the words of Qdrant's engine, and the indexes that answer them."""

from __future__ import annotations

from typing import Any

import qdrant_edge as engine

from hx_gateway.rag.filters import Filter, Match, Range


def named(key: str, value: str) -> Any:
    """A condition: that key has that value."""
    return engine.FieldCondition(key=key, match=engine.MatchValue(value))


def within(namespace: str, filter: Filter) -> Any:
    """All conditions in one filter: the engine begins with the rarest, and looks for it in the outermost alone."""
    own = [named("namespace", namespace)] if namespace else []
    clauses = [[_condition(inner) for inner in clause] or None for clause in (filter.must, filter.must_not, filter.should)]
    must = [*own, *(clauses[0] or ())] or None
    return engine.Filter(must=must, must_not=clauses[1], should=clauses[2]) if must or any(clauses) else None


def _key(condition: Match | Range) -> str:
    path = condition.path
    if isinstance(condition, Match) and isinstance(condition.values[0], bool):
        path = ("flags", *path[1:])
    return ".".join(path)


def indexes(condition: Match | Range | Filter) -> list[tuple[str, Any]]:
    """The keys that a condition asks for, each with the index that answers it; where there is another one, the points are read."""
    if isinstance(condition, Filter):
        return [found for inner in (*condition.must, *condition.must_not, *condition.should) for found in indexes(inner)]
    if isinstance(condition, Range):
        return [(_key(condition), engine.FloatIndexParams())]
    whole = type(condition.values[0]) is int
    return [(_key(condition), engine.IntegerIndexParams(lookup=True, range=False) if whole else engine.KeywordIndexParams())]


def _condition(condition: Match | Range | Filter) -> Any:
    if isinstance(condition, Filter):
        clauses: dict[str, Any] = {
            name: [_condition(inner) for inner in getattr(condition, name)] or None for name in ("must", "must_not", "should")
        }
        return engine.Filter(**clauses)
    key = _key(condition)
    if isinstance(condition, Range):
        return engine.FieldCondition(key=key, range=engine.RangeFloat(**condition.bounds))
    values: list[Any] = [str(value) if isinstance(value, bool) else value for value in condition.values]
    return engine.FieldCondition(key=key, match=engine.MatchValue(values[0]) if len(values) == 1 else engine.MatchAny(values))
