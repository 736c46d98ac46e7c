"""Sums of usage by day, made of those by hour."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_DIMENSIONS = ("key_id", "key_name", "team", "model", "grp", "endpoint", "route", "outcome", "cached")
_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
_AMOUNTS = ("cost", "engine_ms", "duration_ms", "ttft_ms")
_DAY_MS = 86_400_000


def upgrade() -> None:
    """Make the table and fill it."""
    op.create_table(
        "usage_daily",
        sa.Column("day_ms", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in _DIMENSIONS),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in _COUNTS),
        *(sa.Column(name, sa.Double, nullable=False) for name in _AMOUNTS),
        sa.Column("ttft_count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("day_ms", *_DIMENSIONS, name="usage_daily_pkey"),
        sqlite_with_rowid=False,
    )
    names = ", ".join(_DIMENSIONS)
    columns = (*_COUNTS, *_AMOUNTS, "ttft_count")
    day = f"hour_ms - hour_ms % {_DAY_MS}"
    op.execute(
        f"INSERT INTO usage_daily (day_ms, {names}, {', '.join(columns)}) "  # noqa: S608 # made of nothing but the names above
        f"SELECT {day}, {names}, {', '.join(f'sum({name})' for name in columns)} FROM usage_hourly GROUP BY {day}, {names}"
    )
