"""What can be asked of the ledger: which requests are meant, and where a page of them ends."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

BUCKETS = ("hour", "day", "month")
GROUPS = {"key": "key_name", **{name: name for name in ("team", "model", "endpoint", "outcome", "route", "cached")}, "group": "grp"}
"""What sums can be grouped by, and the columns of that in the store."""


class Place(NamedTuple):
    """Where a page of the log ended: the time and id of the last row looked at."""

    at_ms: int
    id: str


class Page(NamedTuple):
    """Some rows of the log, newest first, and where to go on; None at its end. A page may hold few rows, even none, and yet not be the last."""

    rows: list[dict[str, Any]]
    next: Place | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which requests are meant; None is any.

    Args:
        key, team, model, group, endpoint, outcome, route, cached: As in the record; ``key`` is the key's name.
        user: The end user.
        status: HTTP status.
        stream: Whether streamed.
        min_ms: Least duration.
        from_ms: Not before.
        to_ms: Before.
    """

    key: str | None = None
    team: str | None = None
    model: str | None = None
    group: str | None = None
    endpoint: str | None = None
    outcome: str | None = None
    route: str | None = None
    cached: str | None = None
    user: str | None = None
    status: int | None = None
    stream: bool | None = None
    min_ms: float | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    def given(self) -> dict[str, Any]:
        """What is asked for, but for the time."""
        return {one.name: value for one in fields(self)[:-2] if (value := getattr(self, one.name)) is not None}

    def of_key(self, name: str) -> Filter:
        """The same for the requests of one key."""
        return replace(self, key=name)

    def since(self, from_ms: int) -> Filter:
        """The same from a moment on."""
        return replace(self, from_ms=from_ms)
