"""Collections moved between stores, and the proof that they are the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.vectors.conftest import owners
from tests.support.qdrant import StandIn
from tests.support.vectors import PAPERS, point
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.rag.filters import EVERYTHING
from hx_gateway.rag.points import Unfit, VectorStore
from hx_gateway.stores.vectors.edge import EmbeddedStore
from hx_gateway.stores.vectors.moving import Differs, compared, move
from hx_gateway.stores.vectors.pgvector import PostgresStore
from hx_gateway.stores.vectors.qdrant import QdrantStore


@pytest.fixture
async def stores(tmp_path: Path, empty_postgres_url: str) -> AsyncIterator[list[VectorStore]]:
    """One of each, the first filled."""
    async with StandIn() as server:
        found: list[VectorStore] = [EmbeddedStore(tmp_path / "vectors"), PostgresStore(empty_postgres_url), QdrantStore(server.url)]
        await found[0].create(PAPERS)
        points = [
            point(number, f"n{number % 3}", text=f"wing number {number}", year=1900 + number, part=1 / (number + 1))
            for number in range(700)
        ]
        await found[0].upsert("papers", points)
        yield found
        for store in found:
            await store.close()
        for owner in owners(tmp_path / "vectors"):
            owner.terminate()


async def test_a_collection_goes_round_through_all_stores_and_stays_the_same(stores: list[VectorStore], tmp_path: Path) -> None:
    embedded, postgres, qdrant = stores
    told: list[int] = []
    first = await move(embedded, postgres, "papers", told.append)
    assert first.points == 700 and len(first.checksum) == 64 and told == [500, 700]
    assert await move(postgres, qdrant, "papers") == first
    back = EmbeddedStore(tmp_path / "back")
    try:
        assert await move(qdrant, back, "papers") == first
        assert await move(qdrant, back, "papers") == first  # once more changes nothing
        assert await compared(embedded, back, "papers") == first
        assert (await back.collections()) == (await embedded.collections())
    finally:
        await back.close()


async def test_what_differs_is_found(stores: list[VectorStore]) -> None:
    embedded, postgres, _ = stores
    await move(embedded, postgres, "papers")
    for changed in (
        point(7, "n1", text="wing number 8"),
        msgspec.structs.replace(point(7, "n1", text="wing number 7", year=1907, part=1 / 8), vector=point(8).vector),
        msgspec.structs.replace(point(7, "n1", text="wing number 7", year=1907, part=1 / 8), sparse=None),
    ):
        await postgres.upsert("papers", [changed])
        with pytest.raises(Differs, match=changed.id):
            await compared(embedded, postgres, "papers")
    await move(embedded, postgres, "papers")
    await postgres.upsert("papers", [point(999)])
    with pytest.raises(Differs, match="nothing"):
        await compared(embedded, postgres, "papers")
    await postgres.delete("papers", "default", EVERYTHING)
    await postgres.delete("papers", "n0", [point(699, "n0").id])
    with pytest.raises(Differs, match=point(699, "n0").id):
        await compared(embedded, postgres, "papers")


async def test_what_cannot_be_moved_is_refused(stores: list[VectorStore]) -> None:
    embedded, postgres, _ = stores
    with pytest.raises(Differs, match="no collection"):
        await move(embedded, postgres, "books")
    await postgres.create(msgspec.structs.replace(PAPERS, model="other"))
    with pytest.raises(Unfit, match="other"):
        await move(embedded, postgres, "papers")


def test_the_command_moves_everything_and_prints_the_proof(tmp_path: Path, empty_postgres_url: str) -> None:
    import asyncio

    async def fill() -> None:
        store = EmbeddedStore(tmp_path / "state" / "vectors")
        await store.create(PAPERS)
        await store.upsert("papers", [point(number) for number in range(10)])
        await store.close()

    with asyncio.Runner() as runner:
        runner.run(fill())
    config = tmp_path / "gateway.yaml"
    config.write_text(f"storage: {{state_directory: {tmp_path}/state, database_url: '{empty_postgres_url}'}}\n")
    asked = ["rag", "migrate", "--config", str(config), "--from", "embedded", "--to"]
    done = CliRunner().invoke(application(), [*asked, "postgres", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["papers"]["points"] == 10
    assert CliRunner().invoke(application(), [*asked, "embedded"]).exit_code == 2
    done = CliRunner().invoke(application(), [*asked, "qdrant"])
    assert done.exit_code == 1 and "qdrant_url" in done.output
    for owner in owners(tmp_path / "state" / "vectors"):
        owner.terminate()
