"""Requests that wait for a place: bounded, fair between keys, by priority, each knowing its position and likely wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Generic, Protocol, TypeVar

PRIORITIES = {b"high": 0, b"normal": 1, b"low": 2}
"""Values of ``X-HX-Priority``; a lower class waits while a higher one has anybody waiting."""

Waiting = TypeVar("Waiting")


class FairQueue(Generic[Waiting]):
    """Those who wait for one name.

    Within a priority each key has its turn, however many requests it has waiting; within a key the first comes first.
    """

    __slots__ = ("_lanes", "size")

    def __init__(self) -> None:
        self._lanes: tuple[OrderedDict[str, deque[Waiting]], ...] = tuple(OrderedDict() for _ in PRIORITIES)
        self.size = 0

    def enter(self, waiting: Waiting, key: str, priority: int = 1) -> int:
        """Join the queue; returns how many will have their turn before, if nobody else comes."""
        lane = self._lanes[priority]
        mine = lane.get(key)
        if mine is None:
            mine = lane[key] = deque()
        mine.append(waiting)
        self.size += 1
        turn = len(mine)
        ahead = sum(len(own) for higher in self._lanes[:priority] for own in higher.values())
        return ahead + sum(min(len(own), turn) for own in lane.values()) - 1

    def first(self) -> Waiting | None:
        """Whose turn it is; None when nobody waits."""
        for lane in self._lanes:
            for own in lane.values():
                return own[0]
        return None

    def put_back(self, waiting: Waiting, key: str, priority: int) -> None:
        """Give one whose turn it was, and who found no place after all, the first place of its class again."""
        lane = self._lanes[priority]
        lane.setdefault(key, deque()).appendleft(waiting)
        lane.move_to_end(key, last=False)
        self.size += 1

    def pop(self) -> Waiting | None:
        """Take out whose turn it is; the key goes to the end of its lane."""
        for lane in self._lanes:
            if lane:
                key, own = next(iter(lane.items()))
                waiting = own.popleft()
                del lane[key]
                if own:
                    lane[key] = own
                self.size -= 1
                return waiting
        return None

    def remove(self, waiting: Waiting) -> bool:
        """Take out one who will not wait any longer; False if it does not wait here."""
        for lane in self._lanes:
            for key, own in lane.items():
                if waiting in own:
                    own.remove(waiting)
                    if not own:
                        del lane[key]
                    self.size -= 1
                    return True
        return False

    def everybody(self) -> list[Waiting]:
        """All who wait, in no particular order."""
        return [waiting for lane in self._lanes for own in lane.values() for waiting in own]


class Guest(Protocol):
    """A request that can wait."""

    give_up_s: float

    def ready(self) -> bool:
        """Whether there is a place for it now."""
        ...

    def admit(self) -> None:
        """Its turn has come."""
        ...

    def give_up(self) -> None:
        """It waited as long as it may."""
        ...


class Hotel:
    """The queues of all names in one worker.

    Args:
        most: Most requests that wait for one name.
        longest_s: Seconds a request may wait.
    """

    __slots__ = ("_calling", "longest_s", "most", "queues", "size")

    def __init__(self, most: int, longest_s: float) -> None:
        self.most = most
        self.longest_s = longest_s
        self.queues: dict[str, FairQueue[Guest]] = {}
        self.size = 0
        self._calling = False

    def waiting(self, name: str) -> int:
        """How many wait for a name."""
        queue = self.queues.get(name)
        return queue.size if queue is not None else 0

    def enter(self, name: str, guest: Guest, key: str, priority: int, again: bool = False) -> int:
        """Let a request wait for a name; returns its position, 0 for the next one, or -1 when the queue is full.

        ``again`` says that its turn had come, and the place was not there after all: it is the next one then.
        """
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = FairQueue()
        if queue.size >= self.most:
            return -1
        self.size += 1
        if again:
            queue.put_back(guest, key, priority)
            return 0
        return queue.enter(guest, key, priority)

    def leave(self, name: str, guest: Guest) -> None:
        """A request waits no longer."""
        queue = self.queues.get(name)
        if queue is not None and queue.remove(guest):
            self.size -= 1
            if not queue.size:
                del self.queues[name]

    def vacancy(self) -> None:
        """A place may have become free: call whose turn it is, once the current step is over."""
        if not self._calling:
            self._calling = True
            asyncio.get_running_loop().call_soon(self.call)

    def call(self) -> None:
        """Give places to those whose turn it is, as long as there are any."""
        self._calling = False
        for name, queue in list(self.queues.items()):
            for _ in range(queue.size):  # who finds no place after all and waits again is not called twice
                guest = queue.first()
                if guest is None or not guest.ready():
                    break
                queue.pop()
                self.size -= 1
                guest.admit()
            if not queue.size:
                self.queues.pop(name, None)

    def sweep(self, now_s: float) -> None:
        """Send away those who waited too long, and look whether there is a place without anybody having left."""
        for name, queue in list(self.queues.items()):
            for guest in [guest for guest in queue.everybody() if guest.give_up_s <= now_s]:
                self.leave(name, guest)
                guest.give_up()
        if self.size:
            self.call()
