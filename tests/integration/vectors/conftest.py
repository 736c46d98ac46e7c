"""Every vector store, opened the same way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from hx_gateway.rag.points import VectorStore
from hx_gateway.stores.vectors.edge import EmbeddedStore
from hx_gateway.stores.vectors.pgvector import PostgresStore
from hx_gateway.stores.vectors.qdrant import QdrantStore

STORES = ("embedded", "postgres", "qdrant")


def owners(folder: Path) -> list[psutil.Process]:
    """The processes that own the embedded vectors of a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "hx_gateway.stores.vectors.owner" in words and str(folder) in words:
                found.append(process)
    return found


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    """Which store."""
    name: str = request.param
    return name


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest) -> str:
    """Address of an empty Postgres database, for the store that needs one."""
    return str(request.getfixturevalue("empty_postgres_url")) if kind == "postgres" else ""


@pytest.fixture
async def reopened(kind: str, tmp_path: Path, database: str) -> AsyncIterator[Callable[[], Awaitable[VectorStore]]]:
    """Opens the store; whenever it is called again, anew, as after a restart of the gateway."""
    opened: list[VectorStore] = []
    async with contextlib.AsyncExitStack() as stack:
        if kind == "qdrant":
            from tests.support.qdrant import StandIn

            server = await stack.enter_async_context(StandIn(api_key="sesame"))

        async def again() -> VectorStore:
            while opened:
                await opened.pop().close()
            made: dict[str, Callable[[], VectorStore]] = {
                "embedded": lambda: EmbeddedStore(tmp_path / "vectors"),
                "postgres": lambda: PostgresStore(database),
                "qdrant": lambda: QdrantStore(server.url, "sesame"),
            }
            opened.append(made[kind]())
            return opened[0]

        yield again
        for store in opened:
            await store.close()
        for owner in owners(tmp_path / "vectors"):
            owner.terminate()
            await asyncio.to_thread(owner.wait, 30)


@pytest.fixture
async def store(reopened: Callable[[], Awaitable[VectorStore]]) -> VectorStore:
    """The store, empty."""
    return await reopened()
