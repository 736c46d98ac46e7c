"""What a store does beside answering: putting folders in order, making indexes, telling what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.integration.vectors.conftest import owners
from tests.support.qdrant import ROUTES, StandIn
from tests.support.vectors import EAST, PAPERS, ident, point

from hx_gateway.rag.filters import EVERYTHING, Filter, Match, of_documents
from hx_gateway.rag.fusion import cosine
from hx_gateway.rag.points import Collection, Point, StoreUnavailable, Unfit, packed, unpacked
from hx_gateway.rag.sparse import query_terms
from hx_gateway.stores.vectors.edge import EmbeddedStore
from hx_gateway.stores.vectors.pgvector import PostgresStore
from hx_gateway.stores.vectors.qdrant import QdrantStore
from hx_gateway.stores.vectors.shard import Shard
from hx_gateway.stores.vectors.wire import DONE, PROTOCOL, Codec, listening, read_frame, socket_path


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    """An empty collection, opened in this process."""
    Shard.make(tmp_path / "papers", PAPERS)
    opened = Shard(tmp_path / "papers")
    yield opened
    opened.close()


def put_in_order(copy: Path) -> int:
    words = [sys.executable, "-m", "hx_gateway.stores.vectors.owner", "--put-in-order", str(copy), str(os.getpid())]
    return subprocess.run(words, check=False, timeout=100).returncode


def test_what_changes_while_a_collection_is_tidied_is_in_it_afterwards(shard: Shard, tmp_path: Path) -> None:
    shard.upsert([point(number, text=f"wing {number}") for number in range(2000)])
    shard.delete("default", [ident(number) for number in range(500)])
    copy = shard.copy()
    assert put_in_order(copy) == 0
    shard.upsert([point(600, text="changed"), point(5000, text="new")])
    shard.delete("default", of_documents("d200"))
    assert len(shard.dense("default", EAST, 10, EVERYTHING, None)) == 10
    before = shard.scroll("", 10_000)
    shard.take(copy)
    after = shard.scroll("", 10_000)
    assert after == before and len(after) == 2000 - 500 + 1 - 4
    assert shard.fetch("default", [ident(600)], False)[0].text == "changed"
    terms = query_terms("changed")
    assert terms is not None and [hit.point.id for hit in shard.sparse("default", terms, 5, EVERYTHING)] == [ident(600)]
    shard.upsert([point(5001)])
    shard.close()
    again = Shard(tmp_path / "papers")
    assert len(again.scroll("", 10_000)) == len(before) + 1
    assert [path.name for path in again.folder.iterdir() if path.is_dir()] == [copy.name]
    again.close()
    shard.close = lambda: None  # type: ignore[method-assign] # closed already


def test_a_copy_that_could_not_be_put_in_order_is_forgotten(shard: Shard) -> None:
    shard.upsert([point(number) for number in range(10)])
    copy = shard.copy()
    (copy / "edge_config.json").write_text("?")
    assert put_in_order(copy) != 0
    shard.abandon()
    shard.upsert([point(11)])
    assert shard.count("default", EVERYTHING) == 11 and not copy.exists()


def test_a_collection_is_untidy_once_much_of_it_was_replaced(shard: Shard) -> None:
    few = [point(number) for number in range(1000)]
    for _ in range(10):
        shard.upsert(few)
    assert not shard.untidy()
    for _ in range(2):
        shard.upsert(few)
    assert shard.untidy()
    shard.copy()
    shard.abandon()
    assert not shard.untidy()


def test_a_half_made_collection_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    (folder / ".new-papers" / "1").mkdir(parents=True)
    (folder / ".gone-papers-1").mkdir()

    async def use() -> None:
        store = EmbeddedStore(folder)
        await store.create(PAPERS)
        assert await store.collections() == [await store.create(PAPERS)]
        await store.close()

    with asyncio.Runner() as runner:
        runner.run(use())
    assert not (folder / ".new-papers").exists() and not (folder / ".gone-papers-1").exists()
    for owner in owners(folder):
        owner.terminate()


async def test_a_state_directory_with_a_long_name_will_do(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20) / "vectors"
    store = EmbeddedStore(folder)
    await store.create(PAPERS)
    await store.upsert("papers", [point(1)])
    assert await store.count("papers", "default", EVERYTHING) == 1
    await store.close()
    for owner in owners(folder):
        owner.terminate()


async def test_a_large_collection_of_postgres_gets_an_index_and_finds_the_same(empty_postgres_url: str) -> None:
    import asyncpg

    store = PostgresStore(empty_postgres_url, index_at=300)
    await store.create(PAPERS)
    await store.upsert("papers", [point(number, f"n{number % 2}") for number in range(90)])
    exact = await store.dense("papers", "n0", EAST, 20, EVERYTHING)
    await store.upsert("papers", [point(number, f"n{number % 2}") for number in range(90, 720)])
    connection = await asyncpg.connect(empty_postgres_url)
    async with asyncio.timeout(60):
        while not await connection.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('hx_vectors.points_1_near')"):
            await asyncio.sleep(0.05)
    found = await store.dense("papers", "n0", EAST, 20, EVERYTHING)
    assert [round(hit.score, 4) for hit in found[:8]] == [1.0] * 8 and len(found) == 20
    assert {hit.point.namespace for hit in found} == {"n0"} and exact[0].point.id in {hit.point.id for hit in found[:8]}
    await connection.close()
    await store.close()


async def test_a_full_or_poor_postgres_is_told_with_the_remedy(empty_postgres_url: str) -> None:
    import asyncpg

    store = PostgresStore(empty_postgres_url)
    await store.create(PAPERS)
    connection = await asyncpg.connect(empty_postgres_url)
    await connection.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$; "
        "CREATE TRIGGER full_disk BEFORE INSERT ON hx_vectors.points_1 FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    with pytest.raises(StoreUnavailable, match="has no room: no space left"):
        await store.upsert("papers", [point(1)])
    await connection.execute("DROP TRIGGER full_disk ON hx_vectors.points_1")
    await store.upsert("papers", [point(1)])
    with pytest.raises(Unfit, match="16000"):
        await store.create(msgspec.structs.replace(PAPERS, name="wide", dimension=20_000))
    await connection.execute("DROP SCHEMA hx_vectors CASCADE; DROP EXTENSION vector")
    await connection.execute("CREATE ROLE poor LOGIN")
    poor = PostgresStore(empty_postgres_url.replace("postgres@", "poor@"))
    with pytest.raises(StoreUnavailable, match="CREATE EXTENSION vector"):
        await poor.ping()
    await poor.close()
    await store.close()
    await connection.execute("DROP ROLE poor")
    await connection.close()


async def test_a_collection_dropped_and_made_anew_elsewhere_is_noticed(empty_postgres_url: str) -> None:
    one, other = PostgresStore(empty_postgres_url), PostgresStore(empty_postgres_url)
    await one.create(PAPERS)
    await one.upsert("papers", [point(1)])
    await other.drop("papers")
    assert await one.count("papers", "default", EVERYTHING) == 0
    await other.create(PAPERS)
    await one.upsert("papers", [point(2)])
    assert await other.count("papers", "default", EVERYTHING) == 1
    await one.close()
    await other.close()


async def test_every_request_to_qdrant_is_one_that_its_description_knows() -> None:
    async with StandIn() as server:
        store = QdrantStore(server.url)
        await store.ping()
        await store.create(PAPERS)
        await store.upsert("papers", [point(number, text="wing") for number in range(300)])
        terms = query_terms("wing")
        assert terms is not None
        await store.dense("papers", "default", EAST, 5, of_documents("d1"), 0.5)
        await store.sparse("papers", "default", terms, 5, of_documents("d1", "d2"))
        await store.fetch("papers", "default", [ident(1)], vectors=True)
        await store.documents("papers", "default", ["d1"])
        await store.namespaces("papers")
        await store.scroll("papers", ident(3), 5)
        await store.delete("papers", "default", [ident(1)])
        assert server.indexes == {"papers": {"namespace": "keyword", "document": "keyword"}}
        await store.drop("papers")
        assert set(server.seen) == {kind for *_, kind in ROUTES}
        await store.close()


async def test_a_collection_of_qdrant_dropped_elsewhere_is_made_again() -> None:
    async with StandIn() as server:
        store = QdrantStore(server.url)
        await store.create(PAPERS)
        await store.upsert("papers", [point(1)])
        await server.local.delete_collection("papers")
        server.indexes.clear()
        assert await store.count("papers", "default", EVERYTHING) == 0
        await store.create(PAPERS)
        await store.upsert("papers", [point(2)])
        assert await store.count("papers", "default", EVERYTHING) == 1 and set(server.indexes["papers"]) == {"namespace", "document"}
        await store.close()


async def test_a_collection_of_somebody_else_in_qdrant_is_left_alone() -> None:
    from qdrant_client import models

    async with StandIn() as server:
        await server.local.create_collection("papers", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
        store = QdrantStore(server.url)
        assert await store.collections() == []
        for call in (store.create(PAPERS), store.upsert("papers", [point(1)]), store.drop("papers")):
            with pytest.raises(Unfit, match="not made by this gateway"):
                await call
        await store.close()


async def test_a_store_whose_package_is_missing_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for store, extra in (
        (EmbeddedStore(tmp_path / "vectors"), "rag"),
        (PostgresStore("postgresql://nobody@127.0.0.1:1/x"), "postgres"),
        (QdrantStore("http://127.0.0.1:1"), "qdrant"),
    ):
        with pytest.raises(StoreUnavailable, match=rf"hx-gateway\[{extra}\]"):
            await store.ping()
        with contextlib.suppress(StoreUnavailable):
            await store.close()


def test_vectors_keep_every_bit_in_the_embedded_store(shard: Shard) -> None:
    points = [point(number) for number in range(90)]
    shard.upsert(points)
    assert [item.vector for item in shard.scroll("", 100)] == [item.vector for item in points]


def test_so_many_points_that_codes_are_compared_first_find_the_same_also_after_a_crash(tmp_path: Path) -> None:
    chance = random.Random(5)
    folder = tmp_path / "many"
    Shard.make(folder, Collection(name="many", model="none", digest="", dimension=48))
    shard = Shard(folder)
    vectors = {ident(number): packed(chance.gauss(0, 1) for _ in range(48)) for number in range(6_000)}
    points = [
        Point(id=id, namespace=f"n{number % 2}", document=id, chunk=0, text="x", vector=vector, metadata={"colour": f"c{number // 2 % 10}"})
        for number, (id, vector) in enumerate(vectors.items())
    ]
    shard.upsert(points)
    shutil.copytree(folder, tmp_path / "copy" / "many")  # of the moment: what a crash leaves behind
    again = Shard(tmp_path / "copy" / "many")
    red = Filter(must=(Match(("metadata", "colour"), ("c3",)),))
    for _ in range(3):
        asked = packed(chance.gauss(0, 1) for _ in range(48))
        near = {id: cosine(unpacked(asked), unpacked(vector)) for id, vector in vectors.items()}
        ranked = sorted(points, key=lambda item: -near[item.id])
        for filter, wanted in ((EVERYTHING, ranked), (red, [item for item in ranked if item.metadata["colour"] == "c3"])):
            best = [item.id for item in wanted if item.namespace == "n0"][:10]
            for opened in (shard, again):
                hits = opened.dense("n0", asked, 10, filter, None)
                assert [hit.point.id for hit in hits] == best
                assert all(abs(hit.score - near[hit.point.id]) < 1e-5 for hit in hits)
                assert len(opened.dense("n0", asked, 10, filter, near[best[4]] - 1e-5)) == 5
    shard.close()
    again.close()


async def test_an_owner_that_says_it_is_busy_is_waited_for(tmp_path: Path) -> None:
    folder, codec = tmp_path / "vectors", Codec()
    folder.mkdir()

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = codec.request(await read_frame(reader))
        writer.write(codec.frame(hello.number, DONE, PROTOCOL))
        asked = codec.request(await read_frame(reader))
        writer.write(codec.frame(0, DONE, None))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(read_frame(reader), 2.5)  # not asked meanwhile whether it lives
            asked.number += 1000
        writer.write(codec.frame(asked.number, DONE, 7))
        writer.close()

    async with await asyncio.start_unix_server(busy, sock=listening(socket_path(folder))):
        store = EmbeddedStore(folder)
        assert await store.count("papers", "default", EVERYTHING) == 7
        await store.close()
