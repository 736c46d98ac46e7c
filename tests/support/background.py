"""Servers that run beside a test: scripted model servers in a thread, llama.cpp in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

from hx_gateway.testing.backend import Backend

Server = TypeVar("Server")


class Background(Generic[Server]):
    """An asynchronous server on a loop in a thread of its own, so that tests may block.

    Args:
        make: Makes the server, an asynchronous context manager; called on the thread's loop.
    """

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Server]]) -> None:
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="background server", daemon=True)
        self._context: AbstractAsyncContextManager[Server] | None = None

    def run(self, work: Callable[[], Awaitable[Any]], within_s: float = 60.0) -> Any:
        """Run a coroutine on the server's loop and wait for its result."""

        async def whole() -> Any:
            return await work()

        return asyncio.run_coroutine_threadsafe(whole(), self._loop).result(within_s)

    def __enter__(self) -> Server:
        self._thread.start()

        async def start() -> Server:
            self._context = self._make()
            return await self._context.__aenter__()

        return self.run(start)

    def __exit__(self, *_: object) -> None:
        context = self._context
        try:
            if context is not None:
                self.run(lambda: context.__aexit__(None, None, None))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Scripted(Background[Backend]):
    """A scripted model server in a thread.

    Args:
        dialect: ``openai`` or ``ollama``.
        settings: The other arguments of `Backend`.
    """

    def __init__(self, dialect: str = "openai", **settings: Any) -> None:
        super().__init__(lambda: Backend(dialect, **settings))
        self.backend: Backend | None = None

    def __enter__(self) -> Backend:
        self.backend = super().__enter__()
        return self.backend

    def until(self, condition: Callable[[Backend], bool], timeout_s: float = 30.0) -> None:
        """Wait until the condition holds.

        Raises:
            TimeoutError: It did not in time.
        """
        backend = self.backend
        assert backend is not None
        self.run(lambda: backend.until(condition, timeout_s), timeout_s + 5)


@contextlib.contextmanager
def scripted(dialect: str = "openai", **settings: Any) -> Iterator[Backend]:
    """A scripted model server for the length of a ``with``."""
    with Scripted(dialect, **settings) as backend:
        yield backend


@contextlib.contextmanager
def llamacpp(path: Path, *arguments: str) -> Iterator[str]:
    """The address of llama.cpp's own server for a model file, without a key."""
    command = [sys.executable, "-m", "hx_gateway.local.server", "--path", str(path), "--threads", "1", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield str(json.loads(line)["address"])
    finally:
        process.terminate()
        process.communicate(timeout=30)


__all__ = ["AsyncIterator", "Background", "Scripted", "llamacpp", "scripted"]
