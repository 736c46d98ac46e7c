"""A thread that does beside the requests what they left in a queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized


class Beside:
    """Begins its thread with the first thing to do, and wakes it only when it is told to look.

    Args:
        name: Of the thread.
        queue: What waits; filled by others.
        work: Empties the queue; runs in the thread, and what it raises ends that.
    """

    __slots__ = ("_name", "_news", "_queue", "_stopping", "_work", "thread")

    def __init__(self, name: str, queue: Sized, work: Callable[[], None]) -> None:
        self._name = name
        self._queue = queue
        self._work = work
        self._news = threading.Event()
        self._stopping = False
        self.thread: threading.Thread | None = None

    def tick(self) -> None:
        """Have done what waits."""
        if self._queue and not self._stopping:
            if self.thread is None:
                self.thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self.thread.start()
            self._news.set()

    def stop(self, within_s: float) -> None:
        """Have done what is left, and wait for that no longer than so many seconds."""
        self.tick()
        self._stopping = True
        self._news.set()
        if self.thread is not None:
            self.thread.join(within_s)

    def _run(self) -> None:
        while not self._stopping or self._queue:
            self._news.wait()
            self._news.clear()
            self._work()
