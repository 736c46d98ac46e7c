"""Leases: several processes that take ahead of need are never over a limit together, and what they do not use is there for the others."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tests.unit.access.together import together

from hx_gateway.access import limiter as limiters
from hx_gateway.access.account import MINUTE_S, NANO, Account, Hold, Refusal
from hx_gateway.access.limiter import Limiter
from hx_gateway.access.table import State
from hx_gateway.core.context import KeyLimits

NOW = 1000.0
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)  # of hundreds of steps it takes minutes


class Members:
    """Several limiters with one table, as processes have, on a clock of the test's."""

    def __init__(self, folder: Path, count: int, limits: KeyLimits) -> None:
        self.now_s = NOW
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.real, limiters.time.monotonic = limiters.time.monotonic, lambda: self.now_s  # type: ignore[assignment]
        self.limiters = [Limiter(lambda delay_s, work: self.due.append((self.now_s + delay_s, work))) for _ in range(count)]
        self.keys: list[Account] = []
        for limiter in self.limiters:
            limiter.open(folder)
            self.keys.append(limiter.account("key:app", "app", limits))

    def close(self) -> None:
        limiters.time.monotonic = self.real  # type: ignore[assignment]
        for limiter in self.limiters:
            limiter.close()

    def wait(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.due and min(at_s for at_s, _ in self.due) <= end_s:
            self.due.sort(key=lambda one: one[0])
            at_s, work = self.due.pop(0)
            self.now_s = max(self.now_s, at_s)
            work()
        self.now_s = end_s

    def take(self, who: int, tokens: int = 0, cost: int = 0) -> Hold | Refusal:
        return self.limiters[who].take(self.keys[who], self.now_s, tokens, cost)

    def number(self) -> int:
        """How often the slot was written."""
        state, key = State(), self.keys[0]
        assert key.table is not None and key.table.read(key.index, state)
        return state.number


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["take", "take", "take", "settle", "wait"]), st.floats(0, 1)), min_size=20, max_size=250
)


@hypothesis_settings(max_examples=60, phases=WITHOUT_SHRINKING)
@given(steps=STEPS, rate=st.sampled_from([50.0, 1000.0, 20000.0]), pace_s=st.sampled_from([0.0002, 0.004, 0.1]), few=st.booleans())
def test_three_that_lease_are_never_over_any_limit(steps: list[tuple[int, str, float]], rate: float, pace_s: float, few: bool) -> None:
    most, minute, day = (4, 6000, 9000) if few else (400, 300_000, 1_000_000)
    limits = KeyLimits(rate, int(rate / 2), tokens_per_minute=minute, max_concurrent=most, day_tokens=day, day_cost=1.0)
    with tempfile.TemporaryDirectory() as name:
        members = Members(Path(name), 3, limits)
        times: list[float] = []
        held: list[tuple[int, Hold]] = []
        level, level_s, used, spent = 0.0, NOW, 0, 0  # of the tokens, as it truly is
        try:
            for who, what, part in steps:
                level, level_s = max(0.0, level - (members.now_s - level_s) * minute / MINUTE_S), members.now_s
                if what == "wait":
                    members.wait(part * pace_s)
                elif what == "settle" and held:
                    owner, hold = held.pop(int(part * (len(held) - 1)))
                    true = int(hold.tokens * part)
                    members.limiters[owner].settle(hold, true, hold.cost // 2)
                    level, used, spent = level + true, used + true, spent + hold.cost // 2
                elif what == "take":
                    answer = members.take(who, 20 + int(part * 200), NANO // 2000)
                    if isinstance(answer, Hold):
                        held.append((who, answer))
                        times.append(members.now_s)
                        reserved = sum(hold.tokens for _, hold in held)
                        assert len(held) <= most
                        assert level + reserved <= minute + 1e-3
                        assert used + reserved <= day
                        assert spent + sum(hold.cost for _, hold in held) <= NANO
            # When all have told what they used, nothing stands in the table but what is under way.
            members.wait(0.2)
            key = members.keys[0]
            if key.table is not None:
                state = State()
                assert key.table.read(key.index, state)
                assert (state.day_tokens, state.day_cost) == (used, spent)
                assert key.table.reserved(key.index) == (sum(hold.tokens for _, hold in held), sum(hold.cost for _, hold in held))
                assert key.table.requests(key.index) == len(held)
        finally:
            members.close()
    for window_s in (0.01, 0.1, 1.0):
        for first, start_s in enumerate(times):
            assert sum(1 for at_s in times[first:] if at_s - start_s < window_s) <= int(rate / 2) + rate * window_s + 1e-6


@hypothesis_settings(max_examples=40, phases=WITHOUT_SHRINKING)
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3)), min_size=50, max_size=400), burst=st.integers(1, 400))
def test_a_burst_is_never_exceeded_by_what_was_taken_ahead(steps: list[tuple[int, float]], burst: int) -> None:
    rate = 2000.0
    with tempfile.TemporaryDirectory() as name:
        members = Members(Path(name), 3, KeyLimits(rate, burst))
        times = []
        for who, pause in steps:
            members.wait(pause / rate if pause < 2 else 0.0)
            if isinstance(members.take(who), Hold):
                times.append(members.now_s)
        members.close()
    for first, start_s in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + rate * (times[last] - start_s) + 1e-6


def test_what_was_leased_and_not_used_passes_with_time(folder: Path) -> None:
    members = Members(folder, 3, KeyLimits(2000, 2000))
    try:
        for _ in range(3):
            assert isinstance(members.take(0), Hold)
        lease = members.keys[0].lease
        assert lease.until_s and lease.left(members.now_s) >= 10 / 2000
        members.wait(0.015)  # all is there again
        assert lease.until_s > members.now_s and not lease.left(members.now_s)
        passed = 0
        for number in range(2100):
            passed += isinstance(members.take(1 + number % 2), Hold)
        passed += sum(isinstance(members.take(who % 3), Hold) for who in range(60))
        assert 0.98 * 2000 <= passed <= 2000
    finally:
        members.close()


def test_a_busy_key_asks_the_table_for_few_of_its_requests(folder: Path) -> None:
    members = Members(folder, 4, KeyLimits(50_000, tokens_per_minute=10**9, max_concurrent=8000, day_tokens=10**9))
    try:
        for number in range(2000):
            members.wait(0.0002)
            hold = members.take(number % 4, 300)
            assert isinstance(hold, Hold)
            members.limiters[number % 4].settle(hold, 200, 0)
        assert members.number() < 2000 / 8
        members.wait(0.1)
        key = members.keys[0]
        assert key.table is not None and key.table.read(key.index, key.state) and key.state.day_tokens == 2000 * 200
        assert key.table.reserved(key.index) == (0, 0) and key.table.requests(key.index) == 0
    finally:
        members.close()


def test_a_key_that_is_asked_for_now_and_then_takes_nothing_ahead(folder: Path) -> None:
    members = Members(folder, 2, KeyLimits(50_000, tokens_per_minute=10**9))
    try:
        for _ in range(20):
            members.wait(0.03)
            assert isinstance(members.take(0, 300), Hold)
        key = members.keys[0]
        assert key.table is not None and key.table.reserved(key.index)[0] == 20 * 300
    finally:
        members.close()


@pytest.mark.parametrize("rate", [200, 3000])
def test_at_a_steady_flood_of_three_the_rate_passes_and_not_two_percent_less(folder: Path, rate: int) -> None:
    members = Members(folder, 3, KeyLimits(rate))
    count = after = 0
    try:
        for number in range(60_000):
            members.wait(1 / (5 * 3000))
            passed = isinstance(members.take(number * 7 % 11 % 3), Hold)  # one gets more than the others
            count += passed
            after += passed and members.now_s >= NOW + 2
        took_s = members.now_s - NOW
        assert count <= rate + rate * took_s + 1
        assert after >= 0.99 * rate * (took_s - 2), (after, rate * (took_s - 2))
    finally:
        members.close()


def test_headers_tell_of_what_was_leased_as_of_what_is_left(folder: Path) -> None:
    members = Members(folder, 1, KeyLimits(1000, 1000, tokens_per_minute=6_000_000))
    try:
        lines = []
        for _ in range(50):
            assert isinstance(members.take(0, 100), Hold)
            lines.append(members.keys[0].header_lines().split(b"\r\n"))
        assert [int(line[1].rpartition(b" ")[2]) for line in lines] == list(range(999, 949, -1))
        assert [int(line[4].rpartition(b" ")[2]) for line in lines] == list(range(5_999_900, 5_994_900, -100))
        assert lines[-1][2] == b"x-ratelimit-reset-requests: 50ms"
    finally:
        members.close()


def test_other_limits_for_a_key_end_its_lease(folder: Path) -> None:
    members = Members(folder, 1, KeyLimits(5000, tokens_per_minute=6_000_000))
    try:
        for _ in range(10):
            assert isinstance(members.take(0, 100), Hold)
        assert members.keys[0].lease.until_s > members.now_s
        members.limiters[0].account("key:app", "app", KeyLimits(5000, tokens_per_minute=1000))
        refusal = members.take(0, 100)
        assert isinstance(refusal, Refusal) and refusal.limit == "tokens_per_minute"
    finally:
        members.close()


CHILD = """
import sys, time
from pathlib import Path
from hx_gateway.access.account import Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.core.context import KeyLimits
due = []
limiter = Limiter(lambda delay_s, work: due.append((time.monotonic() + delay_s, work)))
limiter.open(Path(sys.argv[1]))
key = limiter.account("key:app", "app", KeyLimits(4000, 2000, tokens_per_minute=10**8, max_concurrent=1000, day_tokens=10**9))
print("ready", flush=True)
sys.stdin.readline()
start, count, held, ahead = time.monotonic(), 0, [], 0
while time.monotonic() < start + 1.5:
    answer = limiter.take(key, time.monotonic(), 5)
    ahead += bool(key.lease)
    if isinstance(answer, Hold):
        count += 1
        held.append(answer)
    if len(held) > 2:
        limiter.settle(held.pop(0), 3, 0)
    while due and due[0][0] <= time.monotonic():
        due.pop(0)[1]()
    time.sleep(0.0001)
END
print(count, start, time.monotonic(), ahead, flush=True)
"""
ORDERLY = "for hold in held:\n    limiter.settle(hold, 3, 0)\nlimiter.close()"
KILLED = "print(count, start, time.monotonic(), ahead, flush=True)\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize("end", [ORDERLY, KILLED], ids=["orderly", "killed"])
def test_three_processes_that_lease_keep_one_limit(folder: Path, end: str) -> None:
    said = together([sys.executable, "-c", CHILD.replace("END", end), str(folder)])
    total = sum(int(words[0]) for words in said)
    took_s = max(float(words[2]) for words in said) - min(float(words[1]) for words in said)
    assert sum(int(words[3]) for words in said), "nothing was taken ahead"
    assert total <= 2000 + 4000 * took_s + 1
    limiter = Limiter()
    limiter.open(folder)
    key = limiter.account("key:app", "app", KeyLimits(day_tokens=10**9, max_concurrent=1000))
    answer = limiter.take(key, time.monotonic(), 1)
    assert isinstance(answer, Hold)
    assert limiter.table.take_back(time.monotonic() + 1)
    assert limiter.table.reserved(key.index) == (1, 0) and limiter.table.requests(key.index) == 1
    assert key.state.day_tokens == 3 * total if end is ORDERLY else key.state.day_tokens <= 3 * total
    limiter.close()
