"""Housekeeping: what talks to the database on the gateway's own initiative, away from the workers, each duty failing alone."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import database_url, state_directory
from hx_gateway.core.files import replace
from hx_gateway.ledger.journal import FOLDER
from hx_gateway.stores.audit import ShippingDeeds
from hx_gateway.stores.bodies import ShippingBodies
from hx_gateway.stores.judging import Judging
from hx_gateway.stores.key_usage import Budgets, LastUse
from hx_gateway.stores.known_keys import KnownKeys
from hx_gateway.stores.learning import Learning
from hx_gateway.stores.retention import Retention
from hx_gateway.stores.served import Served
from hx_gateway.stores.shipping import Shipping
from hx_gateway.upstream.fetch import fetch

if TYPE_CHECKING:
    from hx_gateway.stores.sql.engine import Store

LAST_S = 4.0  # for what is still to be done when the gateway ends
_LOOK_S = 5.0  # between looks at whether the store is reachable
_WRITE_S = 0.5
_SILENT_S = 20.0  # a state that was not renewed for so long says nothing
_LOCK_S = 0.5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_STATE, _LOCK = "housekeeper.json", "housekeeper.lock"
_log = logging.getLogger(__name__)


class Duty(Protocol):
    """One thing to be done again and again.

    Attributes:
        name: In the state file, in logs and metrics.
        interval_s: From the end of one run to the start of the next.
        at_end: Whether it is run once more when the gateway ends.
    """

    name: str
    interval_s: float
    at_end: bool

    def pending(self) -> bool:
        """Whether there is something to do; cheap, and without importing anything: the store is only opened when there is."""
        ...

    async def run(self, store: Store) -> dict[str, Any] | None:
        """Do it.

        Returns:
            What should be known about it (numbers and text, nothing secret), for the state file; None where nothing happened.

        Raises:
            Exception: It failed; it is run again after a pause that grows to some seconds.
        """
        ...


def duties_of(config: GatewayConfig, folder: Path) -> list[Duty]:
    """Every duty of a gateway.

    Args:
        config: The configuration.
        folder: The state directory.
    """
    settings = config.ledger
    url = database_url(config.storage, folder)
    found: list[Duty] = [
        KnownKeys(folder, url),
        Retention(settings, url),
        Served(folder, url),
        ShippingBodies(folder),
        ShippingDeeds(folder),
        Learning(config, folder),
    ]
    if any(group.learned is not None and group.learned.judge is not None for group in config.groups.values()):
        found.append(Judging(config, folder, fetch))
    if settings.enabled:
        found += [Budgets(config, folder, url), LastUse(folder, url)]
        found.append(Shipping(folder / FOLDER, settings.dead_letter_max_bytes))
    return found


class Housekeeping:
    """Runs the duties; one per state directory works, others wait until it is gone.

    Args:
        config: The configuration.
        folder: The state directory.
        duties: What to do; None for everything a gateway needs.
    """

    def __init__(self, config: GatewayConfig, folder: Path, duties: Sequence[Duty] | None = None) -> None:
        self.folder = folder
        self.duties = duties_of(config, folder) if duties is None else list(duties)
        self._url = database_url(config.storage, folder)
        self._wanted = config.storage.database_url is not None  # a store that was asked for is made ready before there is work
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        self._again_s = 0.0  # not before this is the store tried again
        self._pause_s = 0.0
        self._facts: dict[str, dict[str, Any]] = {duty.name: {"ok_ms": 0, "error": ""} for duty in self.duties}
        self._reachable: dict[str, Any] = {"ok": None, "error": "", "since_ms": _now_ms(), "schema": ""}
        self._changed = True
        self._unwritable = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then do what must be done at the end, within some seconds."""
        with contextlib.ExitStack() as held:
            while not (lock := self._locked()):
                if await _waited(stop, _LOCK_S):
                    return
            held.callback(os.close, lock)
            keeping = [asyncio.create_task(self._keep(duty, stop), name=duty.name) for duty in self.duties]
            keeping += [asyncio.create_task(self._look(stop), name="store"), asyncio.create_task(self._tell(stop), name="state")]
            try:
                await stop.wait()
                async with asyncio.timeout(LAST_S):
                    await asyncio.gather(*keeping)
                    if self._reachable["ok"] is not False:
                        await asyncio.gather(*(self._once(duty) for duty in self.duties if duty.at_end))
            except TimeoutError:
                _log.warning("what was under way when the gateway ended is left for its next start")
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*keeping, return_exceptions=True)
                if self._store is not None:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._store.close(), 1.0)
                with contextlib.suppress(OSError):
                    (self.folder / _STATE).unlink()

    def _locked(self) -> int:
        """The open lock file once the lock is ours; 0 while it is not."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError:
            return 0  # the workers have said so; it may become writable
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return 0
        return lock

    async def _keep(self, duty: Duty, stop: asyncio.Event) -> None:
        pause_s = 0.0
        longest_s = max(_LONGEST_PAUSE_S, min(duty.interval_s, 60.0))
        while not stop.is_set():
            pause_s = 0.0 if await self._once(duty) else min(max(pause_s * 2, _FIRST_PAUSE_S), longest_s)
            await _waited(stop, pause_s or duty.interval_s)

    async def _once(self, duty: Duty) -> bool:
        """Run a duty, if there is something to do; whether it went well."""
        facts = self._facts[duty.name]
        try:
            if not duty.pending():
                return True
            found = await duty.run(await self._open())
            self._changed = self._changed or found is not None or facts["error"] != ""
            facts |= found or {}
        except Exception as error:  # blame: the database's, or the duty's own; the others must go on
            told = await self._failed(error)
            if told != facts["error"] and told != self._reachable["error"]:
                _log.warning("%s failed and is tried again: %s", duty.name, told)
            self._changed = self._changed or told != facts["error"]
            facts["error"] = told
            return False
        facts["error"] = ""
        facts["ok_ms"] = _now_ms()
        return True

    async def _failed(self, error: Exception) -> str:
        """What went wrong in words; the store is opened anew before it is used again: it may have been replaced."""
        from hx_gateway.stores.sql.engine import StoreError, plain

        store, self._store = self._store, None
        if store is not None:
            await store.close()
        return str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {plain(error, self._url)}"

    async def _open(self) -> Store:
        """The store with the newest schema."""
        async with self._opening:
            if self._store is not None:
                return self._store
            from hx_gateway.stores.sql.engine import Store, StoreError
            from hx_gateway.stores.sql.upgrade import newest, ready, upgrade

            if time.monotonic() < self._again_s:
                raise StoreError(self._reachable["error"])
            store = None
            try:
                store = Store(self._url)
                if not await ready(store):
                    done = await upgrade(self._url)
                    if done.before != done.after:
                        _log.info("the database's schema is now %s%s", done.after, f" (it was {done.before})" if done.before else "")
            except Exception as error:  # blame: the database's; it is tried again
                if store is not None:
                    await store.close()
                told = await self._failed(error)
                self._pause_s = min(max(self._pause_s * 2, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                self._again_s = time.monotonic() + self._pause_s
                self._note(False, told)
                raise StoreError(told) from error
            self._pause_s = 0.0
            self._store = store
            self._note(True, schema=newest())
            return store

    def _note(self, ok: bool, error: str = "", schema: str = "") -> None:
        before = self._reachable
        if ok != before["ok"]:
            self._changed = True
            if not ok:
                _log.warning("the database cannot be used: %s; requests are served, usage is kept until it is back", error)
            elif before["ok"] is False:
                _log.info("the database is back")
        since_ms = before["since_ms"] if ok == before["ok"] else _now_ms()
        self._reachable = {"ok": ok, "error": error, "since_ms": since_ms, "schema": schema or before["schema"]}

    async def _look(self, stop: asyncio.Event) -> None:
        """Know whether the store is reachable, also while there is nothing to do."""
        while not stop.is_set():
            if self._wanted or self._store is not None:
                try:
                    await (await self._open()).ping()
                    self._note(True)
                except Exception as error:  # blame: the database's; it is looked at again
                    self._note(False, await self._failed(error))
            await _waited(stop, self._pause_s or _LOOK_S)

    async def _tell(self, stop: asyncio.Event) -> None:
        told_s = 0.0
        while not stop.is_set():
            now_s = time.monotonic()
            if self._changed or now_s - told_s >= _LOOK_S:
                self._changed, told_s = False, now_s
                self._write()
            await _waited(stop, _WRITE_S)

    def _write(self) -> None:
        state = {"pid": os.getpid(), "at_ms": _now_ms(), "store": self._reachable, "duties": self._facts}
        try:
            replace(self.folder / _STATE, json.dumps(state, default=str).encode())
        except OSError as error:
            if not self._unwritable:
                _log.warning("the state directory cannot be written: %s", error.strerror or error)
            self._unwritable = True
        else:
            self._unwritable = False


class Within:
    """Housekeeping in a thread of a program that uses the gateway as a library; beside a gateway that serves a port it has its own process.

    Args:
        config: The configuration.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = Thread(target=asyncio.run, args=(self._work(config),), name="housekeeping", daemon=True)
        self._thread.start()

    async def _work(self, config: GatewayConfig) -> None:
        stop = asyncio.Event()
        self._begun.set_result((asyncio.get_running_loop(), stop))
        await Housekeeping(config, state_directory(config.storage, os.environ)).run(stop)

    def close(self) -> None:
        """Have it finish what it does, within some seconds. Blocks."""
        loop, stop = self._begun.result()
        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(stop.set)
        self._thread.join(LAST_S + 1.5)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no housekeeping works in a state directory; during the block the next one waits.

    Raises:
        OSError: The directory cannot be written.
    """
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def read_state(folder: Path | None) -> dict[str, Any] | None:
    """What the housekeeping of a state directory last told; None when it is silent.

    Returns:
        ``pid``, ``at_ms``, ``store`` (``ok``: true, false, or null while it was not needed; ``error``, ``since_ms``, ``schema``) and
        ``duties`` by name (``ok_ms`` of the last success, ``error`` of the last failure unless it went well since, and its own facts).
    """
    try:
        state = json.loads((folder / _STATE).read_bytes()) if folder is not None else None
    except (OSError, ValueError):
        return None
    if not isinstance(state, dict) or _now_ms() - state.get("at_ms", 0) > _SILENT_S * 1000:
        return None
    return state


def _now_ms() -> int:
    return int(time.time() * 1000)


async def _waited(stop: asyncio.Event, seconds: float) -> bool:
    """Whether ``stop`` was set within ``seconds``."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()
