"""The monthly partitions of `usage` on Postgres: their names, their bounds, and how one is made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text


class Month(NamedTuple):
    """One calendar month in UTC, from ``from_ms`` up to but without ``to_ms``."""

    partition: str
    from_ms: int
    to_ms: int


def month_of(at_ms: int) -> Month:
    """The month that holds a moment, with the name of its partition."""
    first = datetime.fromtimestamp(at_ms / 1000, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + timedelta(days=32)).replace(day=1)
    return Month(f"usage_{first:%Y_%m}", int(first.timestamp()) * 1000, int(following.timestamp()) * 1000)


def make_partition(connection: Connection, month: Month) -> None:
    """Make the partition of a month, if it is missing; the default partition must hold no rows of it."""
    connection.execute(
        text(f"CREATE TABLE IF NOT EXISTS {month.partition} PARTITION OF usage FOR VALUES FROM ({month.from_ms}) TO ({month.to_ms})")
    )
