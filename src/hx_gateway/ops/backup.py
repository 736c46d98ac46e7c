"""A backup: configuration, keys, ledger and vectors in one file with checksums, taken while the gateway runs, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import sqlite3
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.config.storage import database_url
from hx_gateway.ledger.journal import FOLDER as JOURNAL
from hx_gateway.ops.host import Refused, file_digest
from hx_gateway.rag.points import Collection, Point, VectorStore
from hx_gateway.stores.known_keys import renew
from hx_gateway.stores.sql import migrate
from hx_gateway.stores.sql.engine import touch
from hx_gateway.stores.sql.status import status
from hx_gateway.stores.sql.upgrade import newest
from hx_gateway.stores.sql.upgrade import opened as database
from hx_gateway.stores.vectors import opening
from hx_gateway.stores.vectors.moving import move

if TYPE_CHECKING:
    from hx_gateway.config.schema import GatewayConfig

MANIFEST = "manifest.json"
_DATABASE, _VECTORS, _CONFIG = "database.sqlite", "vectors", "config"
_FORM = 1
_PAGE = 500
_LOCK = "housekeeper.lock"  # held while a gateway keeps house in the state directory


def backup(config: GatewayConfig, state: Path, files: Sequence[Path], target: Path, version: str) -> dict[str, Any]:
    """Write a backup; the gateway may run meanwhile. Each part is consistent in itself: database first, then journal, then vectors.

    Args:
        config: The configuration.
        state: The state directory.
        files: Of the configuration, secrets among them.
        target: The tar to write, readable for its owner alone.
        version: Release that writes it.

    Returns:
        What it holds, as in its manifest.

    Raises:
        Refused, Unavailable, OSError: Something cannot be read or written.
    """
    with TemporaryDirectory(prefix=".backup-", dir=target.parent) as made:
        folder = Path(made)
        (folder / _CONFIG).mkdir()
        (folder / _VECTORS).mkdir()
        for file in files:
            (folder / _CONFIG / file.name).write_bytes(file.read_bytes())
        rows = _database(database_url(config.storage, state), folder / _DATABASE)
        journal = _journal(state / JOURNAL, folder / JOURNAL)
        points = asyncio.run(_vectors(config, state, folder / _VECTORS))
        sums = {str(path.relative_to(folder)): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        manifest = {
            "form": _FORM,
            "version": version,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "schema": newest() if rows else "",
            "rows": rows,
            "journal_segments": journal,
            "points": points,
            "files": sums,
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        parts = [folder / MANIFEST, *sorted(path for path in folder.iterdir() if path.name != MANIFEST)]
        unfinished = folder / ".part"  # in a folder of our own: beside the target others may have put something of that name
        with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w") as archive:
                for path in parts:
                    archive.add(path, path.name)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(target)
    return manifest


@contextlib.contextmanager
def opened(place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The unpacked folder of a backup, and its manifest, with every checksum compared.

    Raises:
        Refused: It is damaged, or of a form that this release does not know.
    """
    with TemporaryDirectory(prefix=".restore-", dir=place.parent) as made:
        folder = Path(made)
        try:
            with tarfile.open(place) as archive:
                for member in archive.getmembers():
                    if member.name.startswith("/") or ".." in member.name.split("/") or not (member.isfile() or member.isdir()):
                        raise Refused(f"{place} is no backup of ours: {member.name!r} leads out of it, or is no file")
                archive.extractall(folder)  # noqa: S202 # looked at above
            manifest = json.loads((folder / MANIFEST).read_bytes())
        except (tarfile.TarError, OSError, ValueError) as error:
            raise Refused(f"{place} cannot be read: {error}") from None
        if manifest.get("form") != _FORM:
            raise Refused(f"{place} has a form that this release does not know: restore it with release {manifest.get('version')}")
        for name, expected in manifest["files"].items():
            if not (folder / name).is_file() or file_digest(folder / name) != expected:
                raise Refused(f"{name} in {place} is damaged")
        yield folder, manifest


def restore(config: GatewayConfig, state: Path, folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Bring back database, journal and vectors; nobody may use the state directory meanwhile. Returns what was done, line by line.

    A SQLite file that is there is moved aside. A database of Postgres, and a collection of vectors, must be empty or hold the same.

    Args:
        config: The configuration.
        state: The state directory; made where it is missing.
        folder, manifest: From `opened`.

    Raises:
        Refused, Unavailable, Differs, OSError: It cannot be brought back.
    """
    said = []
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(state):
        copy = folder / _DATABASE
        if copy.exists():
            if manifest["schema"] > newest():
                raise Refused(
                    f"its database has schema {manifest['schema']}, and this release knows up to {newest()}: restore it with a newer one"
                )
            url = database_url(config.storage, state)
            if url.startswith("sqlite:"):
                said.append(_put_back(copy, Path(url.removeprefix("sqlite:///")).expanduser()))
            else:
                _moved(f"sqlite:///{copy}", url)
                said.append("database moved into Postgres and compared")
            asyncio.run(_known(url, state))
        segments = sorted((folder / JOURNAL).glob("*")) if (folder / JOURNAL).is_dir() else []
        for segment in segments:
            place = state / JOURNAL / segment.name
            place.parent.mkdir(mode=0o700, exist_ok=True)
            if not place.exists():
                place.touch(mode=0o600)
                place.write_bytes(segment.read_bytes())
        said.append(f"{len(segments)} segments of the journal: what the database has of them already is not counted twice")
        files = sorted((folder / _VECTORS).glob("*")) if (folder / _VECTORS).is_dir() else []
        if files:
            said += asyncio.run(_bring_back(config, state, files))
    return said


def revert(url: str, state: Path) -> str:
    """Put back the copy of a SQLite database that its latest upgrade made, for an earlier release; returns what was done.

    Args:
        url: Address of the database.
        state: The state directory; nobody may use it meanwhile.

    Raises:
        Refused: There is no such copy, or a gateway runs.
        StoreError: The database cannot be looked at.
    """
    if not url.startswith("sqlite:"):
        raise Refused("only a SQLite database has a copy from before its upgrade: restore your own backup of this one")
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(state):
        schema = asyncio.run(status(url)).schema
        copy = path.with_name(f"{path.name}.before-{schema}")
        if not copy.exists():
            raise Refused(f"there is no copy from before the upgrade to schema {schema or 'of now'} ({copy.name})")
        return _put_back(copy, path)


def _database(url: str, target: Path) -> dict[str, int]:
    """Copy a database into a SQLite file; returns its rows by table, none where there is no database yet."""
    path = Path(url.removeprefix("sqlite:///")).expanduser() if url.startswith("sqlite:") else None
    if path is not None:
        if not path.exists():
            return {}
        touch(target)
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=4096, sleep=0.01)  # in pieces, so that writers get their turn
            copy.execute("PRAGMA journal_mode=DELETE")
            if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                raise Refused(f"the database is damaged: {found}")
    else:
        _moved(url, f"sqlite:///{target}")
        with contextlib.closing(sqlite3.connect(target)) as copy:
            copy.execute("PRAGMA journal_mode=DELETE")
    for left in ("-wal", "-shm", ".lock"):
        target.with_name(target.name + left).unlink(missing_ok=True)
    rows = asyncio.run(status(f"sqlite:///{target}")).rows
    for left in ("-wal", "-shm"):
        target.with_name(target.name + left).unlink(missing_ok=True)
    return rows


def _moved(source: str, target: str) -> None:
    """Copy one database into another, and compare; what came meanwhile is left out."""

    async def run() -> list[migrate.Moved]:
        async with migrate.between(source, target) as (old, new):
            assert new is not None
            return await migrate.move(old, new)

    if wrong := [one.table for one in asyncio.run(run()) if one.source != one.target and not one.later]:
        raise Refused(f"{', '.join(wrong)}: what is read back is not what was read; run it again")


async def _known(url: str, state: Path) -> None:
    """Have the keys that came back be known before a gateway starts: without any, one that others can reach would not."""
    store = await database(url)
    try:
        await renew(store, state)
    finally:
        await store.close()


async def _bring_back(config: GatewayConfig, state: Path, files: Sequence[Path]) -> list[str]:
    said = []
    store = await opening.opened(config, state)
    try:
        for file in files:
            with _File(file) as source:
                proof = await move(source, store, source.collection.name)  # type: ignore[arg-type] # it has what is needed of a source
            said.append(f"{source.collection.name}: {proof.points} points brought back and compared")
    finally:
        await store.close()
    return said


def _journal(source: Path, target: Path) -> int:
    """Copy the segments that are not in the database yet; of one that is being written, its last record may be left out as torn."""
    count = 0
    for segment in sorted(source.glob("*.seg")) if source.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # shipped and gone meanwhile
            content = segment.read_bytes()
            target.mkdir(exist_ok=True)
            (target / segment.name).write_bytes(content)
            count += 1
    return count


async def _vectors(config: GatewayConfig, state: Path, target: Path) -> dict[str, int]:
    """Write every collection of the embedded store into a file, through its owner; other stores have backups of their own."""
    if opening.chosen(config) != "embedded" or not any((state / opening.FOLDER).glob("*/collection.json")):
        return {}
    store = await opening.opened(config, state)
    found = {}
    try:
        for number, collection in enumerate(await store.collections()):
            found[collection.name] = await _collection(store, collection, target / f"{number:04}.msgpack")
    finally:
        await store.close()
    return found


async def _collection(store: VectorStore, collection: Collection, target: Path) -> int:
    encode, count, after = msgspec.msgpack.encode, 0, ""
    with target.open("wb") as stream:
        data = encode(collection)
        stream.write(len(data).to_bytes(4, "big") + data)
        while page := await store.scroll(collection.name, after, _PAGE):
            data = encode(page)
            stream.write(len(data).to_bytes(4, "big") + data)
            count, after = count + len(page), page[-1].id
    return count


class _File:
    """A collection in a file, as far as `move` reads a store."""

    name = "the backup"

    def __init__(self, path: Path) -> None:
        self._stream = path.open("rb")
        self.collection = msgspec.msgpack.decode(self._frame(), type=Collection)
        self._begin = self._stream.tell()

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def _frame(self) -> bytes:
        return self._stream.read(int.from_bytes(self._stream.read(4), "big"))

    async def collections(self) -> list[Collection]:
        """The one it is."""
        return [self.collection]

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        """The next page, the first when ``after`` is empty; pages are as they were written."""
        if not after:
            self._stream.seek(self._begin)
        data = self._frame()
        return msgspec.msgpack.decode(data, type=list[Point]) if data else []


def _put_back(copy: Path, path: Path) -> str:
    aside = ""
    if path.exists():
        kept = path.with_name(f"{path.name}.before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        with contextlib.closing(sqlite3.connect(path)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        path.replace(kept)
        aside = f"; what was there is {kept}"
    for left in ("-wal", "-shm"):
        path.with_name(path.name + left).unlink(missing_ok=True)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.unlink(missing_ok=True)
    touch(unfinished)
    unfinished.write_bytes(copy.read_bytes())
    unfinished.replace(path)
    return f"database brought back to {path}{aside}"


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    lock = os.open(state / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused(f"a gateway uses {state}: stop it first (hx-gateway service stop)") from None
    finally:
        os.close(lock)
