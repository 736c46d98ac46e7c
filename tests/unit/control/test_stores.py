"""What /healthz/deps tells of the SQL store, by what the housekeeper wrote down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.unit.control.house import KEYS, MASTER, USER, House

POSTGRES = "postgresql://hx:test@sql.invalid/hidden"


def wrote(folder: Path, age_s: float = 0.0, **store: Any) -> None:
    """The housekeeper's state file."""
    at_ms = int((time.time() - age_s) * 1000)
    state = {"pid": 1, "at_ms": at_ms, "store": {"ok": None, "error": "", "since_ms": at_ms, "schema": "", **store}, "duties": {}}
    (folder / "housekeeper.json").write_text(json.dumps(state))


async def told(folder: Path | None, url: str = "", key: str = USER) -> tuple[bool | None, str]:
    house = House({"keys": KEYS, "storage": {"database_url": url or None}})
    house.backing.folder = folder
    async with house.client(key) as client:
        body = (await client.get("/healthz/deps")).json()
    return body["postgres"], body["details"]["postgres"]


async def test_sqlite_is_not_postgres(tmp_path: Path) -> None:
    wrote(tmp_path)
    assert await told(tmp_path) == (None, "SQLite file, not needed so far")
    wrote(tmp_path, ok=True, schema="0003")
    assert await told(tmp_path) == (None, "SQLite file, ok, schema 0003")
    assert await told(tmp_path, key=MASTER) == (None, f"SQLite file {tmp_path}/hx-gateway.db, ok, schema 0003")
    assert await told(tmp_path, f"sqlite:///{tmp_path}/other.db") == (None, "SQLite file, ok, schema 0003")


async def test_postgres_by_what_was_seen_last(tmp_path: Path) -> None:
    wrote(tmp_path, ok=True, schema="0003")
    assert await told(tmp_path, POSTGRES) == (True, "Postgres, ok, schema 0003")
    wrote(tmp_path, ok=False, error="connection refused by sql.invalid")
    assert await told(tmp_path, POSTGRES) == (False, "Postgres, not reachable; requests are served without it")
    assert await told(tmp_path, POSTGRES, MASTER) == (
        False,
        "Postgres, not reachable: connection refused by sql.invalid; requests are served without it",
    )


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"at_ms": 1}'])
async def test_a_housekeeper_that_is_silent(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "housekeeper.json").write_text(content)
    assert await told(tmp_path, POSTGRES) == (False, "Postgres, state not known: the housekeeper has not told its state")
    assert (await told(tmp_path))[0] is None


async def test_what_was_told_long_ago_does_not_count(tmp_path: Path) -> None:
    wrote(tmp_path, age_s=60, ok=True, schema="0003")
    assert (await told(tmp_path, POSTGRES))[0] is False


async def test_without_a_state_directory() -> None:
    assert await told(None, POSTGRES, MASTER) == (False, "Postgres, state not known: the state directory cannot be written")
    assert await told(None) == (None, "SQLite file, state not known: the state directory cannot be written")
