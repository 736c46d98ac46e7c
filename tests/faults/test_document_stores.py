"""The stores of documents killed, hung and full under load: documents alone are refused, by the store's name, and nothing accepted is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.conftest import wait_until
from tests.faults.test_documents import CHAT, Putting, documents, unharmed
from tests.support import required
from tests.support.documents import House, housed
from tests.support.engines import Postgres
from tests.support.gateway import KEY
from tests.support.offering import offer

from hx_gateway.stores.vectors import shard


class Disk:
    """A small disk of its own, which can be filled.

    Args:
        place: Where it is mounted.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self, leave: int = 0) -> None:
        """Leave so many bytes free."""
        with self._ballast.open("ab") as file:
            free = shutil.disk_usage(self.place).free - leave
            os.posix_fallocate(file.fileno(), self._ballast.stat().st_size, free)

    def clear(self) -> None:
        """As it was before it was filled."""
        self._ballast.unlink()


class Stored:
    """A gateway whose documents are in a store that a test may disturb.

    Args:
        store: `embedded` or `postgres`.
        house: The gateway.
    """

    def __init__(self, store: str, house: House) -> None:
        self.store = store
        self.house = house

    async def disturbed(self, disturb: Callable[[], None], undo: Callable[[], None], why: str) -> None:
        """Documents are added and chats asked while the store is disturbed, and documents added again when it is well."""
        with Putting(self.house, why or "d") as putting:  # documents of their own, which no round before has stored
            wait_until(lambda: len(putting.stored) > 2, 30)
            disturb()
            try:
                chats = await offer([self.house.gateway.port], 60, 3, KEY, CHAT)
                wait_until(lambda: len(putting.refused) > 1, 60)
            finally:
                undo()
            accepted = len(putting.stored)
            wait_until(lambda: len(putting.stored) > accepted + 2, 60)
        assert unharmed(chats)
        for status, code, words in putting.refused:
            assert (status, code) == (503, "store_unavailable") and f"({self.store})" in words and why in words, words
        there = documents(self.house)
        assert set(putting.stored) <= set(there), "a document that was accepted is gone"
        assert len(there) == len(set(there)), "a document is there twice"


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Readable for the user that Postgres runs as, which a test's own folder is not."""
    place, mount = Path(tempfile.mkdtemp(prefix="hx-disk-")), shutil.which("mount")
    place.chmod(0o755)
    try:
        if (
            os.geteuid()
            or mount is None
            or subprocess.run([mount, "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", str(place)], check=False).returncode
        ):
            pytest.skip("needs the right to mount a disk")
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], stderr=subprocess.DEVNULL, check=False)
        place.rmdir()


@contextmanager
def gateway(store: str, state: Path, database: str = "") -> Iterator[Stored]:
    required.vectors()
    with housed(state, f"rag: {{store: {store}}}\n", {"DATABASE_URL": database} if database else {}) as house:
        yield Stored(store, house)


async def test_a_full_disk_under_the_embedded_store(disk: Disk) -> None:
    with gateway("embedded", disk.place / "state") as stored:
        await stored.disturbed(lambda: disk.fill(shard.LEAST_FREE - (4 << 20)), disk.clear, "has no room")


async def test_a_full_disk_under_postgres(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk.place))
    with Postgres(synchronous_commit="on") as postgres:
        monkeypatch.undo()
        with gateway("postgres", tmp_path, postgres.url()) as stored:
            await stored.disturbed(disk.fill, disk.clear, "has no room")


async def test_postgres_hangs_and_is_killed(tmp_path: Path) -> None:
    with Postgres() as postgres, gateway("postgres", tmp_path, postgres.url()) as stored:
        await stored.disturbed(postgres.hang, postgres.resume, "does not answer")
        await stored.disturbed(postgres.kill, postgres.start, "")
