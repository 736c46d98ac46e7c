"""The tables as they are now, for statements; the steps of `migrations` make them, and a test compares the two.

Times are milliseconds since the Unix epoch (``*_ms``), money is a double, JSON is kept as text that its writers encode. Types are those
that SQLite and Postgres 12 have in common.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)


def _column(name: str, kind: Any = Text, null: bool = False) -> Column[Any]:
    return Column(name, kind, nullable=null)


METADATA = MetaData()

KEYS = Table(
    "keys",
    METADATA,
    _column("id"),  # a ULID
    _column("name"),
    _column("hash", LargeBinary),  # 32 bytes
    _column("old_hash", LargeBinary, null=True),  # before the last rotation, valid until `old_until_ms`
    _column("old_until_ms", BigInteger, null=True),
    _column("hint"),  # the first characters of the key, for people
    _column("owner"),
    _column("team"),
    _column("tags"),  # JSON
    _column("admin", Boolean),
    _column("models", null=True),  # JSON; null for all
    _column("namespaces", null=True),  # JSON; null for all
    _column("show_endpoints", Boolean),
    _column("limits"),  # JSON
    _column("created_ms", BigInteger),
    _column("expires_ms", BigInteger, null=True),
    _column("revoked_ms", BigInteger, null=True),
    _column("rotated_ms", BigInteger, null=True),
    _column("used_ms", BigInteger, null=True),
    PrimaryKeyConstraint("id", name="keys_pkey"),
    UniqueConstraint("name", name="keys_name_key"),
    UniqueConstraint("hash", name="keys_hash_key"),
)
"""API keys made at run time."""

VERSIONS = Table("versions", METADATA, _column("name"), _column("value", BigInteger), PrimaryKeyConstraint("name", name="versions_pkey"))
"""Numbers that rise with every change of what they name, in the same transaction; ``keys`` is there from the start, at 0."""

AUDIT = Table(
    "audit",
    METADATA,
    _column("id"),  # a ULID
    _column("at_ms", BigInteger),
    _column("actor"),
    _column("action"),
    _column("subject"),
    _column("detail"),  # JSON
    _column("address"),
    PrimaryKeyConstraint("id", name="audit_pkey"),
)
"""What administrators did."""

USAGE = Table(
    "usage",
    METADATA,
    _column("id"),  # a ULID
    _column("at_ms", BigInteger),
    _column("duration_ms", Double),
    _column("ttft_ms", Double, null=True),
    _column("queued_ms", Double),
    _column("load_ms", Double),
    _column("route"),
    _column("key_id"),  # empty for keys of the configuration
    _column("key_name"),
    _column("team"),
    _column("user"),
    _column("asked"),  # the model as the client wrote it
    _column("model"),
    _column("grp"),
    _column("endpoint"),
    _column("attempts", Integer),
    _column("trail", null=True),  # JSON: attempts that failed
    _column("status", Integer),
    _column("outcome"),  # "ok", or the code of the error
    _column("stream", Boolean),
    _column("cached"),
    _column("prompt_tokens", BigInteger, null=True),
    _column("completion_tokens", BigInteger, null=True),
    _column("cached_tokens", BigInteger, null=True),
    _column("estimated", Boolean),
    _column("cost", Double),
    _column("engine_ms", Double),
    _column("tags", null=True),  # JSON
    PrimaryKeyConstraint("at_ms", "id", name="usage_pkey"),
    Index("usage_by_key", "key_name", "at_ms", "id"),
    Index("usage_by_model", "model", "at_ms", "id"),
    Index("usage_by_outcome", "outcome", "at_ms", "id"),
    Index("usage_by_endpoint", "endpoint", "at_ms", "id"),
    postgresql_partition_by="RANGE (at_ms)",
    sqlite_with_rowid=False,  # the table itself lies in the order of time
)
"""One row for every exchange; on Postgres in partitions by calendar month, see `partitions`."""

DIMENSIONS = ("hour_ms", "key_id", "key_name", "team", "model", "grp", "endpoint", "route", "outcome", "cached")
"""What a roll-up keeps apart."""


def _rolled_up(name: str, time: str) -> Table:
    return Table(
        name,
        METADATA,
        _column(time, BigInteger),
        *(_column(dimension) for dimension in DIMENSIONS[1:]),
        *(_column(count, BigInteger) for count in ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")),
        *(_column(amount, Double) for amount in ("cost", "engine_ms", "duration_ms", "ttft_ms")),
        _column("ttft_count", BigInteger),  # rows that `ttft_ms` is the sum of
        PrimaryKeyConstraint(time, *DIMENSIONS[1:], name=f"{name}_pkey"),
        sqlite_with_rowid=False,
    )


USAGE_HOURLY = _rolled_up("usage_hourly", "hour_ms")
"""Sums of `usage` by hour, written in the transaction that inserts the rows."""

USAGE_DAILY = _rolled_up("usage_daily", "day_ms")
"""The same by day (UTC), written in the same transaction."""

JOURNAL_POSITIONS = Table(
    "journal_positions",
    METADATA,
    _column("segment"),
    _column("offset", BigInteger),  # bytes
    _column("updated_ms", BigInteger),
    PrimaryKeyConstraint("segment", name="journal_positions_pkey"),
)
"""How far each journal segment has been read, raised in the transaction that inserts its rows."""

BODIES = Table(
    "bodies",
    METADATA,
    _column("id"),  # of the row in `usage`
    _column("at_ms", BigInteger),
    _column("request", LargeBinary, null=True),
    _column("response", LargeBinary, null=True),
    PrimaryKeyConstraint("id", name="bodies_pkey"),
    Index("bodies_by_time", "at_ms"),
)
"""Bodies of requests and answers, where they are kept at all."""

REGISTRY = Table(
    "registry",
    METADATA,
    _column("name"),
    _column("endpoint"),
    _column("model"),
    _column("provider"),
    _column("digest"),
    _column("capabilities"),  # JSON
    _column("context_length", Integer, null=True),
    _column("dimensions", Integer, null=True),
    _column("first_seen_ms", BigInteger),
    _column("seen_ms", BigInteger),
    PrimaryKeyConstraint("name", "endpoint", "model", name="registry_pkey"),
)
"""The models that were served, and where."""

ROUTED = Table(
    "routed",
    METADATA,
    _column("id"),  # of the row in `usage`
    _column("at_ms", BigInteger),
    _column("grp"),
    _column("model"),  # that answered
    _column("features", LargeBinary),  # `routing.learned.features.Features.pack`: hashes, no text
    _column("detail"),  # JSON: what decided, and what was expected
    PrimaryKeyConstraint("id", name="routed_pkey"),
    Index("routed_by_time", "at_ms"),
)
"""Decisions of groups that learn, written in the transaction that inserts their rows of `usage`."""

FEEDBACK = Table(
    "feedback",
    METADATA,
    _column("id"),  # of the row in `usage`
    _column("at_ms", BigInteger),
    _column("grp"),
    _column("model"),
    _column("key_name"),  # who judged
    _column("score", Double),
    _column("comment"),
    _column("applied", BigInteger, null=True),  # its turn: the same answers in this order give the same scorer
    PrimaryKeyConstraint("id", name="feedback_pkey"),
    Index("feedback_by_turn", "grp", "applied", "at_ms"),
)
"""How good answers were."""

ARTIFACTS = Table(
    "artifacts",
    METADATA,
    _column("grp"),
    _column("version"),
    _column("created_ms", BigInteger),
    _column("data", LargeBinary),
    PrimaryKeyConstraint("grp", "version", name="artifacts_pkey"),
)
"""Scorers that were trained, as their files."""

LEARNED = Table(
    "learned",
    METADATA,
    _column("grp"),
    _column("revision", BigInteger),
    _column("standing", LargeBinary),  # `stores.learned_files.Standing`
    _column("updated_ms", BigInteger),
    PrimaryKeyConstraint("grp", name="learned_pkey"),
)
"""Where the learning of each group stands; whoever raises the revision by one has written it."""
