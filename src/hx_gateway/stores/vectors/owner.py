"""The process that alone opens the embedded vectors of a state directory, and answers the workers' calls."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.rag.filters import Filter
from hx_gateway.rag.points import Collection, StoreUnavailable, Unfit
from hx_gateway.stores.vectors import shard as shards
from hx_gateway.stores.vectors.shard import NAME, Shard
from hx_gateway.stores.vectors.wire import BUSY, DONE, PROTOCOL, UNAVAILABLE, UNFIT, Codec, Reply, listening, read_frame, socket_path

LINGER_S = 2.0  # after the last worker has gone
_AT_ONCE = 64  # calls of one connection under way; then it is not read from
_IDLE_S = 20.0  # without a write, before a collection is tidied
_LOOK_S = 5.0
_READS_NOTHING: dict[str, Any] = {
    "delete": 0,
    "dense": [],
    "sparse": [],
    "fetch": [],
    "count": 0,
    "documents": {},
    "namespaces": {},
    "scroll": [],
}
# Not in a thread: nothing runs beside the engine, and to change threads takes as long as they do.
_QUICK = ("dense", "sparse", "fetch", "count")
_log = logging.getLogger(__name__)


class Owner:
    """Every collection of a folder.

    Args:
        folder: It; its lock is ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._codec = Codec()
        self._shards: dict[str, asyncio.Task[Shard]] = {}
        self._making = asyncio.Lock()
        self._threads = concurrent.futures.ThreadPoolExecutor(min(8, 2 + (os.cpu_count() or 1)), "vectors")
        self._writers: set[asyncio.StreamWriter] = set()  # of every connection
        self._left_s = time.monotonic()
        self._wrote_s = time.monotonic()
        self._over = asyncio.Event()

    async def run(self) -> None:
        """Serve until nobody is connected any more, or SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._over.set)
        for left in [*self.folder.glob(".new-*"), *self.folder.glob(".gone-*")]:
            shutil.rmtree(left, ignore_errors=True)
        for description in sorted(self.folder.glob("*/collection.json")):
            self._open(description.parent.name)
        path = socket_path(self.folder)
        server = await asyncio.start_unix_server(self._serve, sock=listening(path), limit=1 << 20)
        tidying = asyncio.create_task(self._tidy())
        while self._writers or time.monotonic() - self._left_s < LINGER_S:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), 0.5)
                break
        server.close()
        path.unlink(missing_ok=True)
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        for opened in await asyncio.gather(*self._shards.values(), return_exceptions=True):
            if isinstance(opened, Shard):
                await self._in_thread(opened.close)

    def _open(self, name: str) -> None:
        self._shards[name] = asyncio.create_task(self._in_thread(Shard, self.folder / name))

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        places = asyncio.Semaphore(_AT_ONCE)
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                frame = await read_frame(reader)
                await places.acquire()
                task = asyncio.create_task(self._answer(frame, writer))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                task.add_done_callback(lambda _: places.release())
        except (asyncio.IncompleteReadError, OSError, ValueError):
            pass
        finally:
            self._writers.discard(writer)
            self._left_s = time.monotonic()
            writer.close()

    async def _answer(self, frame: bytes, writer: asyncio.StreamWriter) -> None:
        request = self._codec.request(frame)
        try:
            arguments = self._codec.arguments[request.name](request.arguments)
            outcome, body = DONE, await self._call(request.name, arguments)
        except Unfit as error:
            outcome, body = UNFIT, (str(error), error.field)
        except StoreUnavailable as error:
            outcome, body = UNAVAILABLE, (error.why, "")
        except Exception as error:  # blame: the engine's, which knows no kinds of errors; the next call may do
            _log.exception("%s failed", request.name)
            outcome, body = UNAVAILABLE, (f"failed: {error}"[:300], "")
        except BaseException:  # blame: a panic of the engine
            os._exit(3)  # a panic of the engine: nothing in memory can be trusted, everything accepted is in its log
        reply = Reply(request.number, outcome, msgspec.Raw(self._codec.encode(body)))
        writer.write(self._codec.frame(reply.number, reply.outcome, reply.body))
        with contextlib.suppress(OSError):
            await writer.drain()

    async def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "hello":
            return PROTOCOL
        if name == "ping":
            return None
        if name == "collections":
            return [(await opening).collection for _, opening in sorted(self._shards.items())]
        if name in ("create", "drop"):
            async with self._making:
                return await (self._create(*arguments) if name == "create" else self._drop(*arguments))
        collection, *rest = arguments
        opening = self._shards.get(collection)
        if opening is None:
            if name == "upsert":
                raise Unfit(f"there is no collection {collection!r}: it must be made first", "collection")
            return _READS_NOTHING[name]
        if name in ("upsert", "delete"):
            self._wrote_s = time.monotonic()
        shard = await asyncio.shield(opening)
        work = getattr(shard, name)
        if any(shard.unindexed(given) for given in rest if isinstance(given, Filter)):  # while it is made, not even a ping is answered
            for writer in self._writers:
                writer.write(self._codec.frame(BUSY, DONE, None))
        elif name in _QUICK:
            return work(*rest)
        return await self._in_thread(work, *rest)

    async def _create(self, wanted: Collection) -> Collection:
        opening = self._shards.get(wanted.name)
        if opening is None:
            wanted = msgspec.structs.replace(wanted, created_ms=wanted.created_ms or shards.now_ms())
            await self._in_thread(shards.need_room, self.folder)
            await self._in_thread(Shard.make, self.folder / wanted.name, wanted)
            self._open(wanted.name)
            opening = self._shards[wanted.name]
        found = (await asyncio.shield(opening)).collection
        if refused := found.refusal(wanted):
            raise refused
        return found

    async def _drop(self, name: str) -> bool:
        opening = self._shards.pop(name, None)
        if opening is None:
            return False
        gone = self.folder / f".gone-{name}-{time.monotonic_ns()}"
        (self.folder / name).rename(gone)
        with contextlib.suppress(Exception):  # blame: the engine's; it may be what could not be opened
            await opening
        await self._in_thread(shutil.rmtree, gone, True)
        return True

    async def _tidy(self) -> None:
        """Write out what came, and another process put a copy of what is untidy in order once nobody writes."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for name, opening in list(self._shards.items()):
                try:
                    shard = await asyncio.shield(opening)
                    if time.monotonic() - self._wrote_s > _LOOK_S:  # until then it would stop those who search and those who write
                        await self._in_thread(shard.settle)
                    if time.monotonic() - self._wrote_s > _IDLE_S and await self._in_thread(shard.untidy):
                        await self._tidy_one(name, shard)
                except Exception:  # blame: the engine's or the disk's; the collection goes on as it is
                    _log.exception("the collection %s could not be tidied", name)

    async def _tidy_one(self, name: str, shard: Shard) -> None:
        begun_s = time.monotonic()
        copy = await self._in_thread(shard.copy)
        words = [sys.executable, "-m", "hx_gateway.stores.vectors.owner", "--put-in-order", str(copy), str(os.getpid())]
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL)
        try:
            if await process.wait() == 0 and name in self._shards:
                await self._in_thread(shard.take, copy)
                _log.info("the collection %s was tidied in %.1f s", name, time.monotonic() - begun_s)
                return
            _log.warning("tidying of the collection %s ended with status %s", name, process.returncode)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        await self._in_thread(shard.abandon)


def put_in_order(folder: str, parent: int) -> None:
    """Tidy a copy, after everything else, and no longer than the owner lives."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() == parent:
        os.nice(19)
        shards.put_in_order(folder)


def main(folder: Path) -> None:
    """Be the owner of a folder, unless there is one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / "owner.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the gateway, whose end is ours
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("hx-vectors")
    asyncio.run(Owner(folder).run())
    logging.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s (" + NAME + "): %(message)s")
    if sys.argv[1] == "--put-in-order":
        put_in_order(sys.argv[2], int(sys.argv[3]))
    else:
        main(Path(sys.argv[1]))
