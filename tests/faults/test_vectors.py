"""Vector stores that are killed, hang and are full: a clear error soon, nothing accepted lost, and all well again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.integration.vectors.conftest import owners
from tests.support.engines import Postgres
from tests.support.qdrant import StandIn
from tests.support.vectors import EAST, PAPERS, point

from hx_gateway.rag.filters import EVERYTHING
from hx_gateway.rag.points import StoreUnavailable, VectorStore
from hx_gateway.stores.vectors import shard
from hx_gateway.stores.vectors.edge import EmbeddedStore
from hx_gateway.stores.vectors.pgvector import PostgresStore
from hx_gateway.stores.vectors.qdrant import QdrantStore

SOON_S = 2.0
SLACK_S = 6.0  # a machine under load; what is late by design is late by far more


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.05)


async def the_owner(folder: Path) -> psutil.Process:
    found: list[psutil.Process] = []

    async def there() -> bool:
        found[:] = owners(folder)
        return len(found) == 1

    await until(there)
    return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of an embedded store; whoever owns it is ended."""
    yield tmp_path / "vectors"
    for owner in owners(tmp_path / "vectors"):
        owner.kill()


@pytest.fixture
async def embedded(folder: Path) -> AsyncIterator[EmbeddedStore]:
    """With an empty collection."""
    store = EmbeddedStore(folder)
    await store.create(PAPERS)
    yield store
    await store.close()


async def test_nothing_accepted_is_lost_when_the_owner_is_killed_again_and_again(embedded: EmbeddedStore, folder: Path) -> None:
    accepted: set[int] = set()
    over = False

    async def write(worker: int) -> None:
        number = worker
        while not over:
            batch = [point(number + 4 * step) for step in range(5)]
            with contextlib.suppress(StoreUnavailable):
                await embedded.upsert("papers", batch)
                accepted.update(number + 4 * step for step in range(5))
                number += 20
            await asyncio.sleep(0)

    writers = [asyncio.create_task(write(worker)) for worker in range(4)]
    for _ in range(4):
        before = len(accepted)

        async def grown(before: int = before) -> bool:
            return len(accepted) > before + 100

        await until(grown)
        (await the_owner(folder)).kill()
    over = True
    await asyncio.gather(*writers)

    async def back() -> bool:
        with contextlib.suppress(StoreUnavailable):
            await embedded.ping()
            return True
        return False

    await until(back)
    seen: list[str] = []
    while page := await embedded.scroll("papers", seen[-1] if seen else "", 1000):
        seen += [item.id for item in page]
    assert len(seen) == len(set(seen)) == await embedded.count("papers", "default", EVERYTHING)
    assert {point(number).id for number in accepted} <= set(seen)
    assert len(accepted) > 400


async def test_an_owner_ends_with_its_last_worker_and_only_one_ever_works(folder: Path) -> None:
    stores = [EmbeddedStore(folder) for _ in range(4)]
    await asyncio.gather(*(store.create(PAPERS) for store in stores))
    await stores[0].upsert("papers", [point(1)])
    assert [await store.count("papers", "default", EVERYTHING) for store in stores] == [1] * 4

    async def one() -> bool:
        return len(owners(folder)) == 1

    await until(one)
    assert os.stat(folder / "owner.sock").st_mode & 0o777 == 0o600
    for store in stores:
        await store.close()

    async def none() -> bool:
        return not owners(folder)

    await until(none)
    assert not (folder / "owner.sock").exists()
    with pytest.raises(StoreUnavailable, match="closed"):
        await stores[0].count("papers", "default", EVERYTHING)


@pytest.fixture(params=["embedded", "postgres", "qdrant"])
def disturbed(request: pytest.FixtureRequest) -> str:
    """Which store is disturbed."""
    name: str = request.param
    return name


@pytest.fixture
def server(disturbed: str, request: pytest.FixtureRequest) -> Postgres | None:
    """The Postgres to be disturbed, where that is the store."""
    return request.getfixturevalue("own_postgres") if disturbed == "postgres" else None


async def test_a_store_that_hangs_or_dies_is_told_within_two_seconds_and_used_again_when_it_is_back(
    disturbed: str, server: Postgres | None, folder: Path
) -> None:
    stand_in = StandIn()
    await stand_in.start()
    store: VectorStore
    if disturbed == "embedded":
        store = EmbeddedStore(folder)
    elif server is not None:
        store = PostgresStore(server.url())
    else:
        store = QdrantStore(stand_in.url)
    await store.create(PAPERS)
    await store.upsert("papers", [point(number, text="wing") for number in range(50)])

    async def hang() -> Callable[[], Awaitable[None]]:
        if disturbed == "embedded":
            owner = await the_owner(folder)
            owner.suspend()
            return lambda: asyncio.to_thread(owner.resume)
        if server is not None:
            await asyncio.to_thread(server.hang)
            return lambda: asyncio.to_thread(server.resume)
        stand_in.hang()

        async def resume() -> None:
            stand_in.resume()

        return resume

    async def kill() -> Callable[[], Awaitable[None]]:
        if disturbed == "embedded":
            owner = await the_owner(folder)
            (folder / "owner.lock").unlink()
            (folder / "owner.lock").mkdir()  # so that none takes its place
            owner.kill()

            async def again() -> None:
                (folder / "owner.lock").rmdir()

            return again
        if server is not None:
            await asyncio.to_thread(server.kill)
            return lambda: asyncio.to_thread(server.start)
        await stand_in.stop()
        return stand_in.start

    async def fails(call: Callable[[], Awaitable[object]]) -> None:
        begun_s = time.monotonic()
        with pytest.raises(StoreUnavailable) as failed:
            await call()
        assert time.monotonic() - begun_s < SOON_S + SLACK_S
        assert failed.value.store == disturbed and disturbed in str(failed.value)

    async def works() -> bool:
        with contextlib.suppress(StoreUnavailable):
            return len(await store.dense("papers", "default", EAST, 10, EVERYTHING)) == 10
        return False

    for disturb in (hang, kill):
        undo = await disturb()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.dense("papers", "default", EAST, 10, EVERYTHING),
            lambda: store.upsert("papers", [point(7, text="wing")]),
            lambda: store.count("papers", "default", EVERYTHING),
            store.ping,
        ]
        await asyncio.gather(*(fails(call) for call in calls * 3))
        await undo()
        await until(works)
        await store.upsert("papers", [point(51)])
        assert await store.count("papers", "default", EVERYTHING) == 51
    await store.close()
    await stand_in.stop()


async def test_a_full_qdrant_is_told_with_its_words() -> None:
    async with StandIn() as stand_in:
        store = QdrantStore(stand_in.url)
        await store.create(PAPERS)
        stand_in.fault = 500
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            await store.upsert("papers", [point(1)])
        stand_in.fault = 403
        with pytest.raises(StoreUnavailable, match="qdrant_api_key"):
            await store.upsert("papers", [point(1)])
        stand_in.fault = 0
        await store.upsert("papers", [point(1)])
        await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        os.geteuid()
        or mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(place)], check=False).returncode
    ):
        pytest.skip("needs the right to mount a disk")
    try:
        yield place
    finally:
        for owner in owners(place / "vectors"):
            owner.kill()
            owner.wait(30)
        subprocess.run(["umount", "-l", str(place)], check=False)


async def test_a_full_disk_refuses_what_is_new_and_keeps_and_finds_what_is_there(small_disk: Path) -> None:
    store = EmbeddedStore(small_disk / "vectors")
    await store.create(PAPERS)
    await store.upsert("papers", [point(number) for number in range(100)])
    free = shutil.disk_usage(small_disk).free
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - shard.LEAST_FREE + (4 << 20))
    with pytest.raises(StoreUnavailable, match="has no room"):
        await store.upsert("papers", [point(100)])
    assert len(await store.dense("papers", "default", EAST, 10, EVERYTHING)) == 10
    ballast.unlink()
    await store.upsert("papers", [point(100)])
    assert await store.count("papers", "default", EVERYTHING) == 101
    await store.close()
