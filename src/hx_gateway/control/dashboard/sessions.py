"""Who is signed in to the dashboard: random tokens that all workers of the machine know, each as long as its key is an admin key."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from hx_gateway.core import files

FOLDER = "dashboard"
LASTS_S = 12 * 3600
"""Seconds after which one has to sign in again."""
_MOST = 256  # sessions; the oldest goes
_FAILURES_S = 60.0
_FAILURES, _FAILURES_ALL = 10, 100  # wrong keys within that time, from one address and from all
_ATTEMPTS = "attempts"


class Kept(msgspec.Struct, frozen=True):
    """What is kept of a session.

    Args:
        key: SHA-256 of the key that it was opened with, in hex; empty where no key was needed.
        csrf: What every change has to show.
        until_s: Unix time of its end.
    """

    key: str
    csrf: str
    until_s: float


@dataclass(frozen=True, slots=True)
class TooManyAttempts(Exception):
    """So many wrong keys came that none is looked at for a while, in seconds."""

    wait_s: float


class Sessions:
    """Sessions in files of the state directory, under the hash of their token; in memory where there is none.

    Args:
        folder: The state directory; None where nothing can be kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / FOLDER if folder is not None else None
        self._memory: dict[str, bytes] = {}

    def open(self, key: str) -> tuple[str, Kept]:
        """A new session for the key with that hash: its token, which is told once, and what is kept.

        Raises:
            OSError: It cannot be written.
        """
        self._tidy()
        token = secrets.token_urlsafe(32)
        kept = Kept(key, secrets.token_urlsafe(24), time.time() + LASTS_S)
        self._write(_name(token), msgspec.json.encode(kept))
        return token, kept

    def find(self, token: str) -> Kept | None:
        """What is kept under a token; None for an unknown or ended one."""
        try:
            kept = msgspec.json.decode(self._read(_name(token)), type=Kept)
        except (OSError, KeyError, msgspec.DecodeError):
            return None
        return kept if kept.until_s > time.time() else None

    def close(self, token: str) -> None:
        """End a session, in every worker."""
        self._remove(_name(token))

    def attempt(self, address: str) -> None:
        """Someone is about to show a key.

        Raises:
            TooManyAttempts: Too many wrong ones were shown lately.
        """
        now_s = time.time()
        recent = list(self._recent(now_s))
        for mine in (False, True):
            times = [at_s for at_s, who in recent if not mine or who == _who(address)]
            if len(times) >= (_FAILURES if mine else _FAILURES_ALL):
                raise TooManyAttempts(max(1.0, times[0] + _FAILURES_S - now_s))

    def failed(self, address: str) -> None:
        """The key was wrong."""
        now_s = time.time()
        lines = [f"{at_s} {who}" for at_s, who in self._recent(now_s)][-_FAILURES_ALL:]
        self._write(_ATTEMPTS, "\n".join([*lines, f"{now_s} {_who(address)}"]).encode())

    def _recent(self, now_s: float) -> Iterator[tuple[float, str]]:
        try:
            lines = self._read(_ATTEMPTS).decode().splitlines()
        except (OSError, KeyError, UnicodeDecodeError):
            return
        for line in lines:
            at, _, who = line.partition(" ")
            if now_s - _FAILURES_S < float(at) <= now_s:
                yield float(at), who

    def _tidy(self) -> None:
        """Remove what has ended, and the oldest where there are too many."""
        names = (
            [path.name for path in self._folder.glob("s-*")] if self._folder is not None and self._folder.exists() else list(self._memory)
        )
        ends: list[tuple[float, str]] = []
        for name in names:
            if not name.startswith("s-"):
                continue
            try:
                ends.append((msgspec.json.decode(self._read(name), type=Kept).until_s, name))
            except (OSError, KeyError, msgspec.DecodeError):
                self._remove(name)
        ends.sort()
        now_s = time.time()
        for number, (until_s, name) in enumerate(ends):
            if until_s <= now_s or number <= len(ends) - _MOST:
                self._remove(name)

    def _read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes() if self._folder is not None else self._memory[name]

    def _write(self, name: str, data: bytes) -> None:
        if self._folder is None:
            self._memory[name] = data
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        files.replace(self._folder / name, data)

    def _remove(self, name: str) -> None:
        self._memory.pop(name, None)
        if self._folder is not None:
            (self._folder / name).unlink(missing_ok=True)


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that tells nothing of them."""
    return hmac.compare_digest(one.encode(), other.encode())


def _name(token: str) -> str:
    return f"s-{sha256(token.encode()).hexdigest()}"


def _who(address: str) -> str:
    return sha256(address.encode()).hexdigest()[:16]
