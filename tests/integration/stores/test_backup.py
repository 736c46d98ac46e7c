"""A backup taken while the gateway runs, and everything lost afterwards: keys, usage and vectors come back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.faults.test_housekeeper import running
from tests.faults.test_switching import counted
from tests.support.vectors import PAPERS, point

from hx_gateway.ops.backup import opened
from hx_gateway.ops.host import Refused
from hx_gateway.stores.vectors.edge import EmbeddedStore


def command(*words: str | Path, state: Path, database: str) -> subprocess.CompletedProcess[str]:
    environ = {
        **os.environ,
        "XDG_STATE_HOME": str(state),
        "MASTER_KEY": "test-key-of-the-suite",
        **({"DATABASE_URL": database} if database else {}),
    }
    return subprocess.run([sys.executable, "-m", "hx_gateway", *map(str, words)], capture_output=True, text=True, timeout=100, env=environ)


async def _vectors(folder: Path, write: bool) -> list[str]:
    store = EmbeddedStore(folder / "vectors")
    try:
        if write:
            await store.create(PAPERS)
            await store.upsert("papers", [point(number, text=f"about {number}") for number in range(20)])
        return [found.id for found in await store.scroll("papers", "", 100)]
    finally:
        await store.close()


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_what_is_lost_comes_back(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("qdrant_edge")
    database = request.getfixturevalue("empty_postgres_url") if engine == "postgres" else ""
    state, file = tmp_path / "hx-gateway", tmp_path / "backup.tar"
    config = tmp_path / "config.yaml"
    config.write_text("service: {host: 127.0.0.1}\n")
    points = asyncio.run(_vectors(state, write=True))
    with running(tmp_path, database) as gateway:
        for number in range(10):
            assert chat(gateway.port, f"text {number}", "tiny").content == f"text {number}"
        url = database or f"sqlite:///{state / 'hx-gateway.db'}"
        wait_until(
            lambda: (
                (state / "housekeeper.json").exists()
                and json.loads((state / "housekeeper.json").read_text())["duties"]["ship"].get("records") == 10
            ),
            60,
        )
        made = command("keys", "create", "kept", "--config", config, state=tmp_path, database=database)
        assert made.returncode == 0, made.stderr
        done = command("backup", file, "--config", config, state=tmp_path, database=database)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("20 points\n")
        refused = command("restore", file, "--config", config, state=tmp_path, database=database)
        assert refused.returncode == 1 and "stop it first" in refused.stderr
    assert file.stat().st_mode & 0o777 == 0o600 and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    shutil.rmtree(state)
    if engine == "postgres":
        database = request.getfixturevalue("databases").empty()
        url = database
    done = command("restore", file, "--config", config, state=tmp_path, database=database)
    assert done.returncode == 0, done.stderr
    assert "papers: 20 points brought back and compared" in done.stdout
    assert asyncio.run(_vectors(state, write=False)) == points
    assert counted(url)[:2] == (10, 10)
    listed = json.loads(command("keys", "list", "--json", "--config", config, state=tmp_path, database=database).stdout)["keys"]
    assert [one["name"] for one in listed] == ["kept"]


@pytest.mark.parametrize(
    ("name", "kind", "link"), [("../out", tarfile.REGTYPE, ""), ("a/..", tarfile.DIRTYPE, ""), ("a", tarfile.SYMTYPE, "/tmp")]
)
def test_what_leads_out_of_a_backup_is_refused(name: str, kind: bytes, link: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in/backup.tar"
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)
    with pytest.raises(Refused, match="leads out of it"), opened(file):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["backup.tar", "in"]


def test_a_damaged_backup_changes_nothing(tmp_path: Path) -> None:
    config, file = tmp_path / "config.yaml", tmp_path / "backup.tar"
    config.write_text("service: {host: 127.0.0.1}\n")
    assert command("keys", "create", "one", "--config", config, state=tmp_path, database="").returncode == 0
    assert command("backup", file, "--config", config, state=tmp_path, database="").returncode == 0
    shown = json.loads(command("restore", file, "--show", state=tmp_path, database="").stdout)
    assert shown["rows"]["keys"] == 1
    with tarfile.open(file) as archive:
        offset = archive.getmember("database.sqlite").offset_data
    with file.open("r+b") as stream:
        stream.seek(offset + 200)
        stream.write(b"\xff")
    before = (tmp_path / "hx-gateway/hx-gateway.db").read_bytes()
    done = command("restore", file, "--config", config, state=tmp_path, database="")
    assert done.returncode == 1 and "database.sqlite in" in done.stderr and "is damaged" in done.stderr
    assert (tmp_path / "hx-gateway/hx-gateway.db").read_bytes() == before
