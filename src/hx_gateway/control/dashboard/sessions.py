"""Who is signed in to the dashboard: random tokens that all workers of the machine know, each as long as its key is an admin key."""

from __future__ import annotations

import hmac
import os
import secrets
import time
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv6Address, ip_network
from pathlib import Path

import msgspec

from hx_gateway.control.proxies import address_in
from hx_gateway.core import files

FOLDER = "dashboard"
LASTS_S = 12 * 3600
"""Seconds after which one has to sign in again."""
_MOST = 256  # sessions; the oldest goes
_FAILURES_S = 60.0
_FAILURES = 10  # wrong keys within that time from one address, after which none of it is looked at
_KEPT = 2000  # wrong keys that are remembered; the oldest go
_FREE, _EACH_S, _LONGEST_S = 100, 0.002, 2.0  # wrong keys from everywhere that are answered at once, and what each further one costs all
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
    """So many wrong keys came from an address that none is looked at for a while, in seconds."""

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
        """Someone at an address is about to show a key; IPv6 addresses of one /64 are one.

        Raises:
            TooManyAttempts: Too many wrong ones were shown from there lately.
        """
        now_s, who = time.time(), _who(address)
        times = [at_s for at_s, other in self._recent(now_s)[1] if other == who]
        if len(times) >= _FAILURES:
            raise TooManyAttempts(max(1.0, times[-_FAILURES] + _FAILURES_S - now_s))

    def failed(self, address: str) -> float:
        """The key was wrong.

        Returns:
            Seconds for which that should not be told: they grow with what was wrong from everywhere, so that many addresses do not guess
            much faster than one, and nobody is kept out by others.
        """
        now_s = time.time()
        lines, recent = self._recent(now_s)
        mine = f"{now_s} {_who(address)}\n"
        if self._folder is None or lines >= _KEPT or len(recent) < lines // 2:
            kept = "".join(f"{at_s} {who}\n" for at_s, who in recent[-_KEPT // 2 :])
            self._write(_ATTEMPTS, (kept + mine).encode())
        else:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW  # a line is appended whole, also beside another worker's
            with os.fdopen(os.open(self._folder / _ATTEMPTS, flags, 0o600), "wb") as stream:
                stream.write(mine.encode())
        return min(_LONGEST_S, max(0, len(recent) - _FREE) * _EACH_S)

    def _recent(self, now_s: float) -> tuple[int, list[tuple[float, str]]]:
        """How many wrong keys are remembered, and when and whence those of the last minute came."""
        found = []
        try:
            lines = self._read(_ATTEMPTS).decode().splitlines()
            for line in lines:
                at, _, who = line.partition(" ")
                if now_s - _FAILURES_S < float(at) <= now_s:
                    found.append((float(at), who))
        except (OSError, KeyError, ValueError):
            return _KEPT, found  # what cannot be read is written anew
        return len(lines), found

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
    found = address_in(address)
    place = ip_network((found, 64), strict=False) if isinstance(found, IPv6Address) else found or address
    return sha256(str(place).encode()).hexdigest()[:16]
