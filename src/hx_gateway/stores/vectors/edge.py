"""The embedded vectors as a worker sees them: calls to the one process that owns them, which is started when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.rag.filters import Filter
from hx_gateway.rag.points import Collection, Hit, Point, StoreUnavailable, Terms, Unfit
from hx_gateway.stores.vectors.watched import LONGEST_S, Watched
from hx_gateway.stores.vectors.wire import BUSY, DONE, LARGEST, PROTOCOL, UNFIT, Codec, read_frame, socket_path

NAME = "embedded"
_BUSY_S = 20.0  # for which an owner that said so is let be
_START_S = 20.0  # for the owner to start; a call waits as long as `Watched` lets it
_log = logging.getLogger(__name__)


class _Connection:
    """One connection to the owner: calls in, answers out, in any order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codec: Codec) -> None:
        self._writer = writer
        self._codec = codec
        self._waiting: dict[int, asyncio.Future[tuple[int, msgspec.Raw]]] = {}
        self._last = 0
        self.lost = False
        self.busy_until_s = 0.0  # of the monotonic clock
        self._reading = asyncio.create_task(self._read(reader))

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What the owner answers.

        Raises:
            Unfit, StoreUnavailable: It said so, or is gone.
        """
        frame = self._codec.frame(self._last + 1, name, arguments)
        if len(frame) > LARGEST:
            raise Unfit("too much for one call", "documents")
        if self.lost:
            raise StoreUnavailable(NAME, "has ended")
        self._last += 1
        number = self._last
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(frame)
            outcome, body = await answer
        finally:
            self._waiting.pop(number, None)
        if outcome == DONE:
            return self._codec.result[name](body)
        words, field = self._codec.words(body)
        raise Unfit(words, field) if outcome == UNFIT else StoreUnavailable(NAME, words)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                reply = self._codec.reply(await read_frame(reader))
                self.busy_until_s = time.monotonic() + _BUSY_S if reply.number == BUSY else 0.0
                answer = self._waiting.get(reply.number)
                if answer is not None and not answer.done():
                    answer.set_result((reply.outcome, reply.body))
        except (asyncio.IncompleteReadError, OSError, ValueError):
            pass
        finally:
            self.lost = True
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(StoreUnavailable(NAME, "has ended in the middle of a call"))

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


class EmbeddedStore:
    """Vectors in a folder.

    Args:
        folder: For this alone, below the state directory; made when it is first needed.
    """

    name = NAME

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codec = Codec()
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._owner: subprocess.Popen[bytes] | None = None
        self._watched = Watched(NAME, self._alive)
        self._closed = False

    async def _connected(self) -> _Connection:
        if self._connection is not None and not self._connection.lost:
            return self._connection
        if self._closed:
            raise StoreUnavailable(NAME, "is closed")
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect())
        return await asyncio.shield(self._connecting)  # who gives up waiting leaves it to those who come next

    async def _connect(self) -> _Connection:
        path = socket_path(self.folder)
        give_up_s = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(OSError):
                connection = _Connection(*await asyncio.open_unix_connection(str(path), limit=1 << 20), self._codec)
                if await connection.call("hello", (PROTOCOL,)) != PROTOCOL:
                    await connection.close()
                    raise StoreUnavailable(NAME, "is in use by another version of the gateway, until that has ended")
                self._connection = connection
                return connection
            if self._owner is None or self._owner.poll() is not None:
                if importlib.util.find_spec("qdrant_edge") is None:
                    raise StoreUnavailable(NAME, "needs qdrant-edge-py: pip install 'hx-gateway[rag]'")
                if self._owner is not None and self._owner.returncode:
                    _log.error("the process that owns the vectors in %s ended with status %d", self.folder, self._owner.returncode)
                self._owner = await asyncio.to_thread(_started, self.folder)
            if time.monotonic() >= give_up_s:
                raise StoreUnavailable(NAME, "does not start")
            await asyncio.sleep(0.02)

    async def _alive(self) -> None:
        if self._connecting is not None and not self._connecting.done() and self._owner is not None and self._owner.poll() is None:
            return  # it is about to start
        connection = await self._connected()
        if time.monotonic() >= connection.busy_until_s:
            await connection.call("ping", ())

    async def _call(self, method: str, *arguments: Any, longest_s: float = LONGEST_S) -> Any:
        async def work() -> Any:
            return await (await self._connected()).call(method, arguments)

        return await self._watched.call(work, longest_s)

    async def collections(self) -> list[Collection]:
        found: list[Collection] = await self._call("collections") if self._used() else []
        return found

    async def create(self, collection: Collection) -> Collection:
        made: Collection = await self._call("create", collection)
        return made

    async def drop(self, name: str) -> bool:
        dropped: bool = await self._call("drop", name)
        return dropped

    async def upsert(self, name: str, points: Sequence[Point]) -> None:
        await self._call("upsert", name, points)

    async def delete(self, name: str, namespace: str, what: Sequence[str] | Filter) -> int:
        deleted: int = await self._call("delete", name, namespace, what)
        return deleted

    async def dense(
        self, name: str, namespace: str, vector: bytes, limit: int, filter: Filter, threshold: float | None = None
    ) -> list[Hit]:
        hits: list[Hit] = await self._call("dense", name, namespace, vector, limit, filter, threshold)
        return hits

    async def sparse(self, name: str, namespace: str, terms: Terms, limit: int, filter: Filter) -> list[Hit]:
        hits: list[Hit] = await self._call("sparse", name, namespace, terms, limit, filter)
        return hits

    async def fetch(self, name: str, namespace: str, ids: Sequence[str], vectors: bool = False) -> list[Point]:
        points: list[Point] = await self._call("fetch", name, namespace, ids, vectors)
        return points

    async def count(self, name: str, namespace: str, filter: Filter) -> int:
        counted: int = await self._call("count", name, namespace, filter)
        return counted

    async def documents(self, name: str, namespace: str, ids: Sequence[str]) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = await self._call("documents", name, namespace, ids)
        return found

    async def namespaces(self, name: str) -> dict[str, int]:
        found: dict[str, int] = await self._call("namespaces", name)
        return found

    async def scroll(self, name: str, after: str, limit: int) -> list[Point]:
        points: list[Point] = await self._call("scroll", name, after, limit)
        return points

    async def ping(self) -> None:
        """Also true, without starting anything, where nothing was ever kept."""
        if self._used():
            await self._call("ping")
        elif importlib.util.find_spec("qdrant_edge") is None:
            raise StoreUnavailable(NAME, "needs qdrant-edge-py: pip install 'hx-gateway[rag]'")

    def _used(self) -> bool:
        return self.folder.exists()

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()


def _started(folder: Path) -> subprocess.Popen[bytes]:
    """The owner's process; of several that start at once, all but one end again. It outlives this one while others use it."""
    words = [sys.executable, "-m", "hx_gateway.stores.vectors.owner", str(folder)]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
