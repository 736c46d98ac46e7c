"""What happens when, on a clock that jumps from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count


class Events:
    """A queue of things to happen; equal times happen in the order they were planned."""

    __slots__ = ("_heap", "_order", "now_s")

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do ``action`` at ``time_s``, or now if that is past."""
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Do ``action`` in ``seconds``."""
        self.at(self.now_s + seconds, action)

    def step(self) -> bool:
        """Go to the next event and do it; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, action = heapq.heappop(self._heap)
        action()
        return True
