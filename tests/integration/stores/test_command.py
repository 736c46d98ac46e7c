"""``hx-gateway db``: what it shows, what it changes, and what it never shows."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import text
from tests.support.engines import Databases

from hx_gateway.stores.sql.engine import Store
from hx_gateway.stores.sql.upgrade import newest, upgrade


def db(*words: str, url: str = "") -> subprocess.CompletedProcess[str]:
    import os

    environ = {**os.environ, **({"DATABASE_URL": url} if url else {})}
    return subprocess.run(
        [sys.executable, "-m", "hx_gateway", "db", *words], capture_output=True, text=True, timeout=60, check=False, env=environ
    )


def test_a_database_that_is_not_there_yet_is_not_made_by_looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    done = db("status")
    assert done.returncode == 0 and f"none yet; this release needs {newest()}" in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = db("upgrade")
    assert (done.returncode, done.stderr) == (0, "") and "upgraded from nothing" in done.stdout
    done = db("status", "--json")
    found = json.loads(done.stdout)
    assert (found["kind"], found["schema"], found["place"]) == ("sqlite", newest(), str(tmp_path / "hx-gateway" / "hx-gateway.db"))
    assert found["rows"]["versions"] == 1 and found["rows"]["usage"] == 0 and found["size_bytes"] > 10_000


def test_an_old_file_is_copied_and_upgraded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    asyncio.run(upgrade(url, "0001"))
    assert f"0001; this release needs {newest()}" in db("status", url=url).stdout
    done = db("upgrade", "--json", url=url)
    found = json.loads(done.stdout)
    assert (found["before"], found["schema"]) == ("0001", newest())
    with sqlite3.connect(found["backup"]) as copy:
        assert copy.execute("SELECT value FROM versions").fetchall() == [(0,)]
    copy.close()
    assert "nothing to do" in db("upgrade", url=url).stdout


def test_the_copy_from_before_an_upgrade_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    url = f"sqlite:///{tmp_path}/own.db"
    asyncio.run(upgrade(url, "0001"))
    done = db("revert", url=url)
    assert done.returncode == 1 and "there is no copy from before the upgrade to schema 0001 (own.db.before-0001)" in done.stderr
    db("upgrade", url=url)
    lock = tmp_path / "state/hx-gateway/housekeeper.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = db("revert", url=url)
        assert done.returncode == 1 and "a gateway uses" in done.stderr and "stop it first" in done.stderr
    done = db("revert", url=url)
    assert done.returncode == 0 and f"schema    0001; this release needs {newest()}" in done.stdout
    (aside,) = tmp_path.glob("own.db.before-restore-*")
    assert json.loads(db("status", "--json", url=f"sqlite:///{aside}").stdout)["schema"] == newest()
    done = db("revert", url="postgresql://u:secret@127.0.0.1:9/x")
    assert done.returncode == 1 and "restore your own backup" in done.stderr and "secret" not in done.stderr


def test_postgres(empty_postgres_url: str, databases: Databases) -> None:
    assert "none yet" in db("status", url=empty_postgres_url).stdout
    assert "upgraded from nothing" in db("upgrade", url=empty_postgres_url).stdout
    found = json.loads(db("status", "--json", url=empty_postgres_url).stdout)
    assert (found["kind"], found["schema"]) == ("postgresql", newest()) and found["size_bytes"] > 1_000_000

    async def age() -> None:
        store = Store(empty_postgres_url)
        async with store.writing() as connection:
            await connection.execute(text("UPDATE hx_gateway_schema SET version_num = '9999'"))
        await store.close()

    asyncio.run(age())
    done = db("upgrade", url=empty_postgres_url)
    assert done.returncode == 1 and "newer release" in done.stderr


def test_a_server_that_is_not_there_is_said_without_the_password() -> None:
    done = db("status", url=f"postgresql://hx:{'hidden' * 2}@127.0.0.1:1/hx")
    assert done.returncode == 1 and "127.0.0.1:1/hx" in done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
