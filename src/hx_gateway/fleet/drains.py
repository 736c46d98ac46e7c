"""Endpoints that an operator has taken out of service: nothing new goes there until they are put back, whatever restarts meanwhile."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

import msgspec

from hx_gateway.core import files
from hx_gateway.fleet.endpoint import Endpoint

FILE, _LOCK = "drained.json", "drained.lock"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drain:
    """An endpoint out of service.

    Args:
        by: Name of the key that asked for it.
        at_ms: When, in Unix milliseconds.
    """

    by: str
    at_ms: int


class Drains:
    """Which endpoints are drained, by name, in a file that all workers follow.

    Where no file can be kept it holds for this process alone, and until it ends.
    """

    def __init__(self) -> None:
        self.drained: dict[str, Drain] = {}
        self._folder: Path | None = None
        self._stamp: tuple[int, int, int] | None = None

    def open(self, folder: Path | None) -> None:
        """Follow the file in the state directory; None for none."""
        self._folder, self._stamp = folder, None

    @property
    def shared(self) -> bool:
        """Whether other workers hear of it."""
        return self._folder is not None

    def look(self, endpoints: Iterable[Endpoint]) -> None:
        """Take over what has changed, and have these endpoints know; cheap enough for every sweep."""
        if self._folder is not None:
            try:
                found = (self._folder / FILE).stat()
                stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
                if stamp != self._stamp:
                    self._stamp = stamp  # what cannot be read is said once
                    self.drained = _read(self._folder / FILE)
            except FileNotFoundError:
                if self._stamp is not None:
                    self.drained, self._stamp = {}, None
            except (OSError, ValueError) as error:
                _log.error("which endpoints are drained cannot be read and is as it was: %s", error)
        for endpoint in endpoints:
            if endpoint.drained != (endpoint.name in self.drained):
                endpoint.cool_until_s = inf if endpoint.name in self.drained else 0.0

    def change(self, name: str, drain: Drain | None) -> bool:
        """Drain an endpoint, or with None put it back; returns whether that changed anything.

        Others hear of it with their next `look`.

        Raises:
            OSError, ValueError: It cannot be written, or what is there not read; nothing has changed.
        """
        if self._folder is None:
            return self._enter(self.drained, name, drain)
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            path = self._folder / FILE
            drained = _read(path) if path.exists() else {}
            if not self._enter(drained, name, drain):
                return False
            files.replace(path, msgspec.json.encode(drained), durable=True)
        self.drained = drained
        return True

    @staticmethod
    def _enter(drained: dict[str, Drain], name: str, drain: Drain | None) -> bool:
        if (drain is not None) == (name in drained):
            return False
        if drain is None:
            del drained[name]
        else:
            drained[name] = drain
        return True


def _read(path: Path) -> dict[str, Drain]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Drain])
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}") from None
