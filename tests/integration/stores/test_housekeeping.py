"""The duties of the housekeeper on real databases: each fails alone, state is told, and the end is orderly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.engines import Postgres

from hx_gateway import housekeeping
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.housekeeping import Housekeeping, read_state
from hx_gateway.stores.sql import engine
from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.upgrade import newest, revision_of


class Work:
    """A duty that counts its runs."""

    def __init__(self, name: str, run: Callable[[Store], Any] | None = None, at_end: bool = False, interval_s: float = 0.01) -> None:
        self.name = name
        self.interval_s = interval_s
        self.at_end = at_end
        self.runs = 0
        self.wanted = True
        self.does = run

    def pending(self) -> bool:
        return self.wanted

    async def run(self, store: Store) -> dict[str, Any] | None:
        self.runs += 1
        if self.does is not None:
            await self.does(store)
        async with store.reading() as connection:
            await connection.execute(text("SELECT count(*) FROM usage"))
        return {"lag_s": self.runs}


@contextlib.asynccontextmanager
async def at_work(folder: Path, *duties: Work, url: str | None = None) -> AsyncIterator[asyncio.Event]:
    """Housekeeping under way; it ends with the block."""
    stop = asyncio.Event()
    config = GatewayConfig.model_validate({"storage": {"database_url": url}})
    task = asyncio.create_task(Housekeeping(config, folder, duties).run(stop))
    try:
        yield stop
    finally:
        stop.set()
        await task


async def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "what was waited for did not come"
        await asyncio.sleep(0.02)


def told(folder: Path) -> dict[str, Any]:
    return read_state(folder) or {"store": {"ok": None}, "duties": {}}


async def test_nothing_is_made_while_there_is_nothing_to_do(tmp_path: Path) -> None:
    idle = Work("idle")
    idle.wanted = False
    async with at_work(tmp_path, idle):
        await until(lambda: read_state(tmp_path))
        assert told(tmp_path)["store"]["ok"] is None
        assert not (tmp_path / "hx-gateway.db").exists()
        idle.wanted = True
        await until(lambda: told(tmp_path)["store"]["ok"] is True)
        assert told(tmp_path)["store"]["schema"] == newest()
    assert idle.runs > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["housekeeper.lock", "hx-gateway.db", "hx-gateway.db.lock"]
    assert oct((tmp_path / "hx-gateway.db").stat().st_mode)[-3:] == "600"


IDLE = """
import asyncio, sys
from pathlib import Path
from hx_gateway import housekeeping
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.housekeeping import Housekeeping, read_state

async def main():
    stop = asyncio.Event()
    work = asyncio.create_task(Housekeeping(GatewayConfig(), Path(sys.argv[1]), []).run(stop))
    while read_state(Path(sys.argv[1])) is None:
        await asyncio.sleep(0.01)
    stop.set()
    await work

asyncio.run(main())
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "alembic", "asyncpg", "fastapi", "uvicorn"}))
"""


def test_nothing_heavy_is_imported_until_there_is_work(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IDLE, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


async def test_a_duty_that_fails_leaves_the_others_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_: Store) -> None:
        raise ValueError("no such month")

    bad, good = Work("bad", fails), Work("good")
    with caplog.at_level(logging.WARNING):
        async with at_work(tmp_path, bad, good):
            await until(lambda: good.runs > 20 and bad.runs >= 2 and told(tmp_path)["duties"].get("bad", {}).get("error"))
            await until(lambda: told(tmp_path)["duties"]["good"]["ok_ms"] > 0)
            state = told(tmp_path)
            bad.does = None
            await until(lambda: told(tmp_path)["duties"]["bad"]["error"] == "")
    assert state["duties"]["bad"] == {"ok_ms": 0, "error": "ValueError: no such month"}
    assert state["duties"]["good"]["lag_s"] > 0 and state["duties"]["good"]["error"] == ""
    assert [record.getMessage() for record in caplog.records] == ["bad failed and is tried again: ValueError: no such month"]


async def test_what_is_marked_runs_once_more_at_the_end(tmp_path: Path) -> None:
    last, other = Work("last", at_end=True, interval_s=3600), Work("other", interval_s=3600)
    async with at_work(tmp_path, last, other):
        await until(lambda: (last.runs, other.runs) == (1, 1))
    assert (last.runs, other.runs) == (2, 1)
    assert not (tmp_path / "housekeeper.json").exists()


async def test_a_database_that_was_replaced_is_made_anew(empty_postgres_url: str, tmp_path: Path) -> None:
    duty = Work("ship")
    async with at_work(tmp_path, duty, url=empty_postgres_url):
        await until(lambda: duty.runs > 3)
        store = Store(empty_postgres_url)
        async with store.writing() as connection:
            await connection.execute(text("DROP SCHEMA public CASCADE"))
            await connection.execute(text("CREATE SCHEMA public"))
        before = duty.runs
        await until(lambda: duty.runs > before + 10 and told(tmp_path)["duties"]["ship"]["error"] == "")
        async with store.reading() as connection:
            assert await connection.run_sync(revision_of) == newest()
        await store.close()


async def test_only_one_keeps_a_state_directory(tmp_path: Path) -> None:
    first, second = Work("first"), Work("second")
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(at_work(tmp_path, first))
        await until(lambda: first.runs > 2)
        await stack.enter_async_context(at_work(tmp_path, second))
        before = first.runs
        await until(lambda: first.runs > before + 50)
        assert second.runs == 0
        one.set()
        await until(lambda: second.runs > 2)


async def test_postgres_that_hangs(
    own_postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CONNECT_S", 1.0)  # what is waited for is the same, only sooner
    monkeypatch.setattr(housekeeping, "LAST_S", 1.0)
    duty = Work("ship", at_end=True)
    async with at_work(tmp_path, duty, url=own_postgres.url()):
        await until(lambda: told(tmp_path)["store"]["ok"] is True and duty.runs > 3)
        own_postgres.hang()
        await until(lambda: told(tmp_path)["store"]["ok"] is False)
        assert told(tmp_path)["store"]["error"] == "no answer in time"
    # A database that hangs does not hold up the end.
    assert "left for its next start" in caplog.text


async def test_a_state_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "housekeeper.json").mkdir()
    duty = Work("ship")
    async with at_work(tmp_path, duty):
        await until(lambda: "state directory cannot be written: Is a directory" in caplog.text)
        before = duty.runs
        await until(lambda: duty.runs > before + 200)
    assert caplog.text.count("cannot be written") == 1


def test_without_a_housekeeper_there_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None and read_state(None) is None
