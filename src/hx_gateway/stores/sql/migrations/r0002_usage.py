"""The ledger: usage with its roll-ups, and how far the journal has been read."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

from hx_gateway.stores.sql.partitions import make_partition, month_of

revision = "0002"
down_revision = "0001"


def _texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _bigs(*names: str, null: bool = False) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=null) for name in names]


def _doubles(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.Double, nullable=False) for name in names]


def upgrade() -> None:
    """Make the tables; on Postgres with the partitions of this month and the next."""
    op.create_table(
        "usage",
        *_texts("id"),
        *_bigs("at_ms"),
        *_doubles("duration_ms"),
        sa.Column("ttft_ms", sa.Double),
        *_doubles("queued_ms", "load_ms"),
        *_texts("route", "key_id", "key_name", "team", "user", "asked", "model", "grp", "endpoint"),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("trail", sa.Text),
        sa.Column("status", sa.Integer, nullable=False),
        *_texts("outcome"),
        sa.Column("stream", sa.Boolean, nullable=False),
        *_texts("cached"),
        *_bigs("prompt_tokens", "completion_tokens", "cached_tokens", null=True),
        sa.Column("estimated", sa.Boolean, nullable=False),
        *_doubles("cost", "engine_ms"),
        sa.Column("tags", sa.Text),
        sa.PrimaryKeyConstraint("at_ms", "id", name="usage_pkey"),
        postgresql_partition_by="RANGE (at_ms)",
        sqlite_with_rowid=False,
    )
    for name, column in (("key", "key_name"), ("model", "model"), ("outcome", "outcome"), ("endpoint", "endpoint")):
        op.create_index(f"usage_by_{name}", "usage", [column, "at_ms", "id"])
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("CREATE TABLE usage_default PARTITION OF usage DEFAULT")
        month = month_of(int(time.time() * 1000))
        make_partition(connection, month)
        make_partition(connection, month_of(month.to_ms))
    dimensions = ("key_id", "key_name", "team", "model", "grp", "endpoint", "route", "outcome", "cached")
    op.create_table(
        "usage_hourly",
        *_bigs("hour_ms"),
        *_texts(*dimensions),
        *_bigs("requests", "prompt_tokens", "completion_tokens", "cached_tokens"),
        *_doubles("cost", "engine_ms", "duration_ms", "ttft_ms"),
        *_bigs("ttft_count"),
        sa.PrimaryKeyConstraint("hour_ms", *dimensions, name="usage_hourly_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "journal_positions",
        *_texts("segment"),
        *_bigs("offset", "updated_ms"),
        sa.PrimaryKeyConstraint("segment", name="journal_positions_pkey"),
    )
