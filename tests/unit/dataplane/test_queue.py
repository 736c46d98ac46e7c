"""The fair queue: nobody is lost, nobody is called twice, keys take turns, priorities come first."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hx_gateway.dataplane.queue import FairQueue, Hotel


def test_keys_take_turns_however_many_requests_each_has() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(100):
        queue.enter(f"greedy-{number}", "greedy")
    position = queue.enter("modest-0", "modest")
    assert position == 1, "one of the greedy key's goes first, not all hundred"
    assert [queue.pop() for _ in range(4)] == ["greedy-0", "modest-0", "greedy-1", "greedy-2"]


def test_a_higher_priority_goes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.enter("low", "a", 2)
    queue.enter("normal", "a", 1)
    assert queue.enter("high", "b", 0) == 0
    assert queue.enter("another low", "c", 2) == 3
    assert [queue.pop() for _ in range(4)] == ["high", "normal", "low", "another low"]


def test_who_found_no_place_after_all_is_the_next_one_again() -> None:
    queue: FairQueue[str] = FairQueue()
    for waiting, key in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        queue.enter(waiting, key)
    first = queue.pop()
    assert first == "a1"
    queue.put_back(first, "a", 1)
    assert queue.size == 3
    assert [queue.pop() for _ in range(4)] == ["a1", "b1", "a2", None]
    queue.put_back("a3", "a", 1)
    assert queue.everybody() == ["a3"], "also where nobody else of its key waits"


class QueueMachine(RuleBasedStateMachine):
    """Against a plain model: a list of (priority, key, number) in the order of arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[tuple[int, str, int]] = FairQueue()
        self.waiting: list[tuple[int, str, int]] = []
        self.passed: Counter[tuple[int, str, str]] = Counter()  # whom a key of a class saw served since it began to wait, or was served
        self.number = 0

    @rule(key=st.sampled_from("abcd"), priority=st.integers(0, 2))
    def enter(self, key: str, priority: int) -> None:
        self.number += 1
        item = (priority, key, self.number)
        before = sum(1 for other in self.waiting if other[0] < priority)
        mine = sum(1 for other in self.waiting if other[:2] == (priority, key)) + 1
        others = Counter(other[1] for other in self.waiting if other[0] == priority and other[1] != key)
        expected = before + sum(min(count, mine) for count in others.values()) + mine - 1
        assert self.queue.enter(item, key, priority) == expected
        self.waiting.append(item)

    @rule()
    def pop(self) -> None:
        first = self.queue.first()
        got = self.queue.pop()
        assert got == first
        if not self.waiting:
            assert got is None
            return
        assert got is not None
        assert got[0] == min(item[0] for item in self.waiting), "the highest class with anybody waiting"
        own = [item for item in self.waiting if item[:2] == got[:2]]
        assert got == own[0], "within a key the first comes first"
        self.waiting.remove(got)
        priority, key = got[:2]
        for other in {item[1] for item in self.waiting if item[0] == priority} - {key}:
            self.passed[priority, other, key] += 1
            assert self.passed[priority, other, key] == 1, "nobody of the class is served twice while another key waits for its turn"
        for seen in [seen for seen in self.passed if seen[:2] == (priority, key)]:
            del self.passed[seen]

    @rule(position=st.integers(0, 30))
    def leave(self, position: int) -> None:
        if self.waiting:
            item = self.waiting.pop(position % len(self.waiting))
            assert self.queue.remove(item)
            if not any(other[:2] == item[:2] for other in self.waiting):  # its key waits no longer, and will begin anew
                for seen in [seen for seen in self.passed if seen[:2] == item[:2]]:
                    del self.passed[seen]
            assert not self.queue.remove(item)

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.queue.size == len(self.waiting)
        assert sorted(self.queue.everybody()) == sorted(self.waiting)


TestQueueMachine = QueueMachine.TestCase


@st.composite
def _arrivals(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))


class _Guest:
    def __init__(self, hotel: Hotel, free: list[int]) -> None:
        self.give_up_s = float("inf")
        self.free = free
        self.admitted = 0
        self.gave_up = 0

    def ready(self) -> bool:
        return self.free[0] > 0

    def admit(self) -> None:
        self.free[0] -= 1
        self.admitted += 1

    def give_up(self) -> None:
        self.gave_up += 1


async def test_places_go_to_those_who_wait_and_no_place_is_given_twice() -> None:
    hotel = Hotel(most=5, longest_s=10.0)
    free = [0]
    guests = [_Guest(hotel, free) for _ in range(6)]
    positions = [hotel.enter("m", guest, f"key-{number % 2}", 1) for number, guest in enumerate(guests)]
    assert positions[-1] == -1 and hotel.size == 5, "the sixth finds the queue full"
    free[0] = 2
    hotel.vacancy()
    hotel.vacancy()
    await asyncio.sleep(0)
    assert sum(guest.admitted for guest in guests) == 2 and free[0] == 0
    hotel.leave("m", next(guest for guest in guests[:5] if not guest.admitted))
    assert hotel.size == 2
    for guest in guests:
        guest.give_up_s = 1.0
    hotel.sweep(2.0)
    assert sum(guest.gave_up for guest in guests) == 2
    assert hotel.size == 0 and not hotel.queues
