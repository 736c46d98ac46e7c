"""Calls to a vector store that end soon when it is gone or hangs, and not before when it is only busy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hx_gateway.rag.points import StoreUnavailable

T = TypeVar("T")
QUIET_S = 0.9  # without an answer for so long, the store is asked whether it lives
PROBE_S = 0.9
LONGEST_S = 60.0
_AFTER_S = 0.5  # one that did not answer is left alone for so long
_MOST = 256  # calls under way


class Watched:
    """Bounds the calls to one store in number and time.

    Args:
        name: The store's name.
        alive: Returns when the store answers; raises, or is cancelled after `PROBE_S`, when it does not.
    """

    def __init__(self, name: str, alive: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._alive = alive
        self._probe: asyncio.Task[None] | None = None
        self._under_way = 0
        self._again_s = 0.0

    async def call(self, work: Callable[[], Awaitable[T]], longest_s: float = LONGEST_S) -> T:
        """The outcome of ``work``.

        Args:
            work: What talks to the store.
            longest_s: After which a store that lives is given up as well.

        Raises:
            StoreUnavailable: The store does not answer, or has too much to do; and whatever ``work`` raises.
        """
        if time.monotonic() < self._again_s:
            raise StoreUnavailable(self.name, "does not answer")
        if self._under_way >= _MOST:
            raise StoreUnavailable(self.name, f"has {_MOST} calls to answer already")
        give_up_s = time.monotonic() + longest_s
        task = asyncio.ensure_future(work())
        self._under_way += 1
        try:
            while not (await asyncio.wait((task,), timeout=QUIET_S))[0]:
                if time.monotonic() >= give_up_s:
                    raise StoreUnavailable(self.name, f"did not finish within {longest_s:g} s")
                await self._ask(task)
            return task.result()
        finally:
            self._under_way -= 1
            if not task.done():
                task.cancel()
                await asyncio.wait((task,), timeout=0.1)

    async def _ask(self, task: asyncio.Future[T]) -> None:
        """Find out whether the store lives, together with the other calls that wait."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._within())
        probe = self._probe
        await asyncio.wait((task, probe), return_when=asyncio.FIRST_COMPLETED)
        if probe.done() and not task.done() and (probe.cancelled() or probe.exception() is not None):
            self._again_s = time.monotonic() + _AFTER_S
            raise StoreUnavailable(self.name, "does not answer")

    async def _within(self) -> None:
        async with asyncio.timeout(PROBE_S):
            await self._alive()
