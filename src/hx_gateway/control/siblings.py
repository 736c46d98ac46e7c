"""What the other workers of this machine know: each answers questions on a socket in the state directory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

FOLDER = "workers"
_WAIT_S = 0.5
_log = logging.getLogger(__name__)


class Siblings:
    """The workers that share a state directory.

    Args:
        answers: What this one answers, by the name of the question; each is given one text and returns what JSON can hold.
    """

    def __init__(self, answers: dict[str, Callable[[str], Any]]) -> None:
        self._answers = answers
        self._folder: Path | None = None
        self._server: asyncio.Server | None = None

    def learn(self, question: str, answer: Callable[[str], Any]) -> None:
        """Answer another question from now on."""
        self._answers[question] = answer

    async def start(self, folder: Path | None) -> None:
        """Begin to answer; where there is no state directory, or the system has no such sockets, each worker knows itself alone."""
        if folder is None:
            return
        place = folder / FOLDER
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            (place / str(os.getpid())).unlink(missing_ok=True)
            with _within(place) as short:
                self._server = await asyncio.start_unix_server(self._serve, f"{short}/{os.getpid()}")
            self._folder = place
        except OSError as error:
            _log.warning("workers cannot ask each other: %s", error.strerror or error)

    async def stop(self) -> None:
        """Answer no longer."""
        if self._server is not None and self._folder is not None:
            self._server.close()
            (self._folder / str(os.getpid())).unlink(missing_ok=True)

    async def ask(self, question: str, about: str = "") -> list[Any]:
        """What all workers answer, this one first; one that does not in time is left out."""
        own = self._answers[question](about)
        if self._folder is None:
            return [own]
        try:
            others = [name for name in os.listdir(self._folder) if name != str(os.getpid())]
        except OSError:
            return [own]
        found = await asyncio.gather(*(self._ask(name, question, about) for name in others))
        return [own, *(answer for answer in found if answer is not None)]

    async def _ask(self, name: str, question: str, about: str) -> Any:
        folder = self._folder
        assert folder is not None
        writer = None
        try:
            async with asyncio.timeout(_WAIT_S):
                with _within(folder) as place:
                    reader, writer = await asyncio.open_unix_connection(f"{place}/{name}")
                writer.write(msgspec.json.encode([question, about]) + b"\n")
                return msgspec.json.decode(await reader.read())
        except ConnectionRefusedError:
            # One that lives has bound its socket and is about to listen; of one that was killed the socket is still there.
            with contextlib.suppress(OSError, ValueError):
                if not _lives(int(name)):
                    (folder / name).unlink(missing_ok=True)
        except (OSError, TimeoutError, msgspec.DecodeError):
            pass
        finally:
            if writer is not None:
                writer.close()
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_WAIT_S):
                question, about = msgspec.json.decode(await reader.readline(), type=tuple[str, str])
                writer.write(msgspec.json.encode(self._answers[question](about)))
                await writer.drain()
        except (OSError, TimeoutError, KeyError, ValueError, msgspec.DecodeError):
            pass  # who asked sees that there is no answer
        finally:
            writer.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[str]:
    """A short name for a folder: a socket's path may have no more than about a hundred characters."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
