"""What a gateway knows of the store's keys, in a file: written by whoever read the store, followed by every worker."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.access.keys import KeyRing
from hx_gateway.access.moments import written
from hx_gateway.core.context import Identity, KeyLimits

FILE, COPY, _LOCK = "keys.json", "keys.json.bak", "keys.lock"
_LONGEST_S = 2.0  # for the lock, which is held as long as a small file is written
_log = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key of the store; the key itself is nowhere. Times are Unix milliseconds, as in `stores.sql.schema`."""

    id: str
    name: str
    hash: bytes
    hint: str
    owner: str = ""
    team: str = ""
    tags: tuple[str, ...] = ()
    admin: bool = False
    models: tuple[str, ...] | None = None
    namespaces: tuple[str, ...] | None = None
    show_endpoints: bool = True
    limits: KeyLimits = KeyLimits()
    created_ms: int = 0
    expires_ms: int | None = None
    revoked_ms: int | None = None
    rotated_ms: int | None = None
    old_hash: bytes | None = None
    old_until_ms: int | None = None
    used_ms: int | None = None

    def identity(self) -> Identity:
        """Who calls with it."""
        return Identity(
            self.name,
            self.admin,
            None if self.models is None else frozenset(self.models),
            self.show_endpoints,
            None if self.limits == KeyLimits(burst=self.limits.burst) else self.limits,
            self.id,
            self.team,
            self.tags,
            self.owner,
            None if self.namespaces is None else frozenset(self.namespaces),
        )

    def digests(self) -> Iterator[tuple[bytes, int | None, str]]:
        """Each digest that stands for it, with when that ends (None for never) and by what."""
        if self.revoked_ms is not None:
            ends: list[tuple[int, str]] = [(self.revoked_ms, "was revoked")]
        else:
            ends = [] if self.expires_ms is None else [(self.expires_ms, "expired")]
        yield (self.hash, *min(ends)) if ends else (self.hash, None, "")
        if self.old_hash is not None and self.old_until_ms is not None:
            yield (self.old_hash, *min([*ends, (self.old_until_ms, "was replaced by a new one, and ended")]))

    def told(self, now_ms: int) -> dict[str, Any]:
        """What administrators may see of it, as plain data."""
        ended = self.expires_ms is not None and self.expires_ms <= now_ms
        times = {
            "created_at": self.created_ms,
            "expires_at": self.expires_ms,
            "rotated_at": self.rotated_ms,
            "old_key_until": self.old_until_ms,
            "revoked_at": self.revoked_ms,
            "used_at": self.used_ms,
        }
        return {
            "id": self.id,
            "name": self.name,
            "hint": self.hint,
            "state": "revoked" if self.revoked_ms is not None else "expired" if ended else "active",
            **{name: getattr(self, name) for name in ("owner", "team", "admin", "show_endpoints")},
            "tags": list(self.tags),
            "models": None if self.models is None else list(self.models),
            "namespaces": None if self.namespaces is None else list(self.namespaces),
            "limits": msgspec.to_builtins(self.limits),
            **{name: None if at_ms is None else written(at_ms) for name, at_ms in times.items()},
        }

    def __repr__(self) -> str:
        return f"<StoredKey {self.name} {self.hint}…>"


class Snapshot(msgspec.Struct, frozen=True):
    """All keys of a store at one moment.

    Args:
        store: Which store, see `stores.known_keys.place_of`.
        version: How often its keys had been changed; of two snapshots of one store that with the higher is newer.
        keys: All of them, also those that are let in no more.
    """

    store: str
    version: int
    keys: tuple[StoredKey, ...] = ()


class _Sealed(msgspec.Struct):
    sha256: str
    snapshot: msgspec.Raw


class Unreadable(Exception):
    """The file is not a whole snapshot; the message says what is wrong with it."""


def read(path: Path) -> Snapshot:
    """The snapshot in a file.

    Raises:
        FileNotFoundError: There is none.
        Unreadable: It cannot be read, or is not what was written.
    """
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        if sha256(sealed.snapshot).hexdigest() != sealed.sha256:
            raise Unreadable("its checksum is wrong")
        return msgspec.json.decode(sealed.snapshot, type=Snapshot)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unreadable("it is cut off, or not what a gateway writes") from None


def latest(folder: Path) -> Snapshot | None:
    """The best that a state directory holds: the file, else its copy; None where neither can be read."""
    found = []
    for name in (FILE, COPY):
        with contextlib.suppress(FileNotFoundError, Unreadable):
            found.append(read(folder / name))
    return max(found, key=lambda snapshot: snapshot.version) if len({one.store for one in found}) == 1 else found[0] if found else None


def write(folder: Path, snapshot: Snapshot) -> Snapshot:
    """Write a snapshot and its copy, each whole or not at all, unless there is a newer one of the same store; may wait for seconds.

    Returns:
        What the file holds now.

    Raises:
        OSError: It cannot be written.
    """
    body = msgspec.json.encode(snapshot)
    data = msgspec.json.encode(_Sealed(sha256(body).hexdigest(), msgspec.Raw(body)))
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        _give(lock, folder)
        _grasp(lock)
        there = latest(folder)
        if there is not None and there.store == snapshot.store and there.version > snapshot.version:
            return there
        for name in (COPY, FILE):
            unfinished = folder / f"{name}.tmp"
            unfinished.unlink(missing_ok=True)
            descriptor = os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                _give(descriptor, folder)
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            unfinished.replace(folder / name)
    finally:
        os.close(lock)
    return snapshot


def _grasp(lock: int) -> None:
    give_up_s = time.monotonic() + _LONGEST_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                raise
            time.sleep(0.01)


def _give(descriptor: int, folder: Path) -> None:
    """Let who owns the folder own a file that root makes there for it: the gateway has to read it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def stamp_of(path: Path) -> Stamp:
    """What changes when the file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Follower:
    """Keeps a key ring in step with the snapshot of a state directory.

    Attributes:
        snapshot: What was last taken over; None before.
    """

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self._ring = KeyRing((), required=False)
        self._folder: Path | None = None
        self._stamp: Stamp = None
        self._expected = False
        self._said: list[str] = []
        self._taking = threading.Lock()  # `look` may run beside the event loop

    @property
    def changed(self) -> bool:
        """Whether `look` has something to do; it may take a tenth of a second for ten thousand keys."""
        return self._folder is not None and stamp_of(self._folder / FILE) != self._stamp

    def adopt(self, ring: KeyRing, expected: bool) -> None:
        """Go on with another ring.

        Args:
            ring: Gets what is known of the store's keys.
            expected: Whether there is a store that may hold keys although no snapshot tells.
        """
        with self._taking:
            self._expected, self._ring = expected, ring
            self._hand_over()

    def open(self, folder: Path | None) -> None:
        """Begin with what is in a state directory; None where there is none."""
        self._folder, self._stamp = folder, None
        self.look()
        if folder is not None and self.snapshot is None and (kept := latest(folder)) is not None:
            _log.warning("the keys of the store are taken from %s", folder / COPY)
            self.take(kept)

    def look(self) -> None:
        """Take over the file if it has changed; a file that cannot be used leaves everything as it is."""
        if self._folder is None:
            return
        path = self._folder / FILE
        stamp = stamp_of(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.take(read(path))
        except FileNotFoundError:
            return
        except Unreadable as error:
            _log.error(
                "%s is refused: %s; %s", path, error, "the keys known before stay" if self.snapshot else "no key of the store is known"
            )

    def take(self, snapshot: Snapshot) -> None:
        """Take a snapshot over, unless a newer one of the same store was."""
        with self._taking:
            known = self.snapshot
            if known is None or known.store != snapshot.store or known.version <= snapshot.version:
                self.snapshot = snapshot
                self._hand_over()

    def _hand_over(self) -> None:
        keys = self.snapshot.keys if self.snapshot is not None else ()
        open_before = not self._ring.required
        twice = self._ring.take(keys, unread=self.snapshot is None and self._expected)
        if open_before and keys:
            _log.info("%d keys are in the store: from now on a key is required", len(keys))
        if twice and twice != self._said:
            _log.warning(
                "keys of the store that are not used, because the configuration has others of the same names: %s", ", ".join(twice)
            )
        self._said = twice
