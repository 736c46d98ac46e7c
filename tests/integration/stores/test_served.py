"""What was served where can be asked of the store, with the digests of the models, also when it is no longer served."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.faults.conftest import wait_until
from tests.faults.test_housekeeper import running
from tests.unit.control.house import fleet

from hx_gateway.stores.served import FILE, Row, Served, ServedFile, rows_of
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.schema import REGISTRY
from hx_gateway.stores.sql.served import note

ROW = Row("chat", "one", "tiny", "ollama", "abc", ("completion", "tools"), 4096, 0)


async def rows(store: Store) -> list[dict[str, object]]:
    async with store.reading() as connection:
        return [dict(row) for row in (await connection.execute(select(REGISTRY).order_by(REGISTRY.c.name))).mappings()]


@pytest.fixture
async def store(database_url: str):
    """A store with the newest schema; once for each engine."""
    opened = Store(database_url)
    yield opened
    await opened.close()


async def test_rows_are_renewed_and_never_go(store: Store, tmp_path: Path) -> None:
    await note(store, [ROW], 1000)
    (first,) = await rows(store)
    expected = {"name": "chat", "endpoint": "one", "model": "tiny", "provider": "ollama", "digest": "abc", "context_length": 4096}
    assert {**first, **expected} == first and first["dimensions"] is None
    assert json.loads(str(first["capabilities"])) == ["completion", "tools"] and first["first_seen_ms"] == first["seen_ms"] == 1000
    await note(store, [Row("chat", "one", "tiny", "ollama", "", (), 0, 0), Row("b", "one", "m", "p", "x", (), 0, 8)], 2000)
    other, again = await rows(store)
    assert (again["digest"], again["first_seen_ms"], again["seen_ms"], other["dimensions"]) == ("abc", 1000, 2000, 8)
    await note(store, [], 3000)
    assert len(await rows(store)) == 2


async def test_the_duty_follows_the_file(store: Store, tmp_path: Path) -> None:
    duty = Served(tmp_path, store.url)
    assert not duty.pending()
    ServedFile.write(tmp_path, [ROW])
    assert duty.pending() and await duty.run(store) == {"rows": 1}
    assert not duty.pending()
    ServedFile.write(tmp_path, [ROW])
    assert not duty.pending(), "another worker wrote the same"
    os.utime(tmp_path / FILE, ns=(1, 1))
    assert duty.pending()
    assert [row["digest"] for row in await rows(store)] == ["abc"]
    assert os.listdir(tmp_path).count(FILE) == 1 and len([name for name in os.listdir(tmp_path) if name.startswith(FILE)]) == 1


def test_the_file_of_a_gateway_without_a_store_waits_for_the_database(tmp_path: Path) -> None:
    ServedFile.write(tmp_path, [ROW])
    assert not Served(tmp_path, f"sqlite:///{tmp_path / 'hx-gateway.db'}").pending()


def test_the_worker_writes_what_changes() -> None:
    registry = fleet()
    looking = ServedFile()
    first = looking.news(registry)
    assert first == rows_of(registry) and {row.name for row in first} == set(registry.targets)
    assert looking.news(registry) == [] and looking.news(fleet()) == []


def test_a_gateway_tells_what_it_serves(tmp_path: Path, postgres_url: str) -> None:
    import asyncio

    async def names() -> list[tuple[object, ...]]:
        store = Store(postgres_url)
        try:
            return [(row["name"], row["endpoint"], row["provider"]) for row in await rows(store)]
        finally:
            await store.close()

    with running(tmp_path, postgres_url) as gateway:
        wait_until(lambda: asyncio.run(names()) == [("tiny", "one", "openai"), ("tiny:1b", "one", "openai")], 60)
        assert "Traceback" not in gateway.log
