"""The monthly partitions of `usage` on Postgres: their names, their bounds, and how one is made."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

_LOCK = 0x68_78_67_78  # one process at a time changes partitions
_LOCK_MS = 2000  # a long report must not make everything behind it wait


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


def partitions_of(connection: Connection) -> list[Month]:
    """The months that have a partition, oldest first."""
    found = connection.execute(
        text("SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'usage'::regclass")
    )
    names = sorted(name for name in found.scalars() if name.removeprefix("usage_").replace("_", "").isdigit())
    return [month_of(int(datetime(int(name[6:10]), int(name[11:]), 1, tzinfo=UTC).timestamp()) * 1000) for name in names]


def _alone(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MS}"))
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def part(connection: Connection, month: Month) -> None:
    """Make the partition of a month, if it is missing, with the rows of that month that went to the default partition meanwhile."""
    _alone(connection)
    if month in partitions_of(connection):
        return
    name, bounds = month.partition, {"start": month.from_ms, "end": month.to_ms}
    connection.execute(text(f"CREATE TABLE {name} (LIKE usage INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES)"))
    gone = "DELETE FROM usage_default WHERE at_ms >= :start AND at_ms < :end RETURNING *"
    moved = f"WITH gone AS ({gone}) INSERT INTO {name} SELECT * FROM gone"  # noqa: S608 # the name is made of two numbers
    connection.execute(text(moved), bounds)
    connection.execute(text(f"ALTER TABLE usage ATTACH PARTITION {name} FOR VALUES FROM ({month.from_ms}) TO ({month.to_ms})"))


def stray(connection: Connection) -> Month | None:
    """The earliest month of which the default partition has rows."""
    at_ms = connection.scalar(text("SELECT min(at_ms) FROM usage_default"))
    return None if at_ms is None else month_of(at_ms)


def drop(connection: Connection, month: Month) -> None:
    """Drop the partition of a month, with its rows."""
    _alone(connection)
    connection.execute(text(f"DROP TABLE IF EXISTS {month.partition}"))
