"""The limiter: never more than a rate and its burst, reservations that become the true figures, budgets of a day and a month."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from tests.unit.access.together import together

from hx_gateway.access import limiter as limiters
from hx_gateway.access.account import MINUTE_S, NANO, Account, Hold, Refusal, span
from hx_gateway.access.limiter import Limiter
from hx_gateway.core.context import KeyLimits

NOW = 1000.0


@pytest.fixture
def limiter() -> Iterator[Limiter]:
    made = Limiter()
    yield made
    made.close()


def passed(answer: Hold | Refusal) -> Hold:
    assert isinstance(answer, Hold), answer
    return answer


def stopped(answer: Hold | Refusal, limit: str) -> Refusal:
    assert isinstance(answer, Refusal) and answer.limit == limit, answer
    return answer


def account(limiter: Limiter, **limits: float) -> Account:
    return limiter.account("key:app", "app", KeyLimits(**limits))  # type: ignore[arg-type]


# The rate of requests


@hypothesis_settings(max_examples=60)
@given(
    rate=st.floats(0.5, 500),
    burst=st.integers(0, 40),
    gaps=st.lists(st.floats(0, 0.5) | st.just(0.0), min_size=1, max_size=150),
    window_s=st.floats(0.01, 5),
)
def test_no_window_has_more_than_the_burst_and_its_share_of_the_rate(rate: float, burst: int, gaps: list[float], window_s: float) -> None:
    limiter = Limiter()
    key = account(limiter, requests_per_second=rate, burst=burst)
    now_s, times = NOW, []
    for gap in gaps:
        now_s += gap
        answer = limiter.take(key, now_s)
        if isinstance(answer, Hold):
            times.append(now_s)
        else:
            # What is told is true: just before it is too early, then it is not.
            assert answer.wait_s > 0
            assert isinstance(limiter.take(key, now_s + answer.wait_s * 0.999 - 1e-6), Refusal)
    limiter.close()
    most = (burst or max(1, -(-rate // 1))) + rate * window_s
    for first, start_s in enumerate(times):
        assert sum(1 for at_s in times[first:] if at_s - start_s < window_s) <= most + 1e-6


def test_at_a_steady_flood_exactly_the_rate_passes(limiter: Limiter) -> None:
    key = account(limiter, requests_per_second=50, burst=10)
    count = sum(isinstance(limiter.take(key, NOW + number * 0.002 + 0.0003), Hold) for number in range(5000))
    assert count == 10 + 499


def test_a_refusal_tells_when_to_come_back(limiter: Limiter) -> None:
    key = account(limiter, requests_per_second=2, burst=1)
    passed(limiter.take(key, NOW))
    refusal = stopped(limiter.take(key, NOW + 0.1), "requests_per_second")
    assert refusal.wait_s == pytest.approx(0.4)
    passed(limiter.take(key, NOW + 0.1 + refusal.wait_s))
    assert limiter.refused == {("key", "requests_per_second"): 1}


def test_other_limits_do_not_forget_what_was_used(limiter: Limiter) -> None:
    key = account(limiter, requests_per_second=10, burst=2)
    passed(limiter.take(key, NOW))
    passed(limiter.take(key, NOW))
    key = account(limiter, requests_per_second=10, burst=3)
    passed(limiter.take(key, NOW))
    stopped(limiter.take(key, NOW), "requests_per_second")


# Tokens


class Tokens(RuleBasedStateMachine):
    """Reservations against a model that knows every true figure: never over a minute's worth, and never over by a token."""

    holds: Bundle[Hold] = Bundle("holds")
    LIMIT = 6000

    @initialize()
    def begin(self) -> None:
        self.limiter = Limiter()
        self.key = account(self.limiter, tokens_per_minute=self.LIMIT, day_tokens=10**9, month_tokens=10**9)
        self.now_s = NOW
        self.level = 0.0  # tokens used, less what has passed
        self.held = self.total = 0
        self.real, limiters.time.monotonic = limiters.time.monotonic, lambda: self.now_s  # type: ignore[assignment]

    def teardown(self) -> None:
        limiters.time.monotonic = self.real  # type: ignore[assignment]
        self.limiter.close()

    @rule(seconds=st.floats(0, 70))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.level = max(0.0, self.level - seconds * self.LIMIT / MINUTE_S)

    @rule(target=holds, tokens=st.integers(1, 5000))
    def take(self, tokens: int) -> Hold | None:
        answer = self.limiter.take(self.key, self.now_s, tokens)
        room = self.LIMIT - self.level - self.held - tokens
        if isinstance(answer, Refusal):
            assert room < 1e-3 and answer.limit == "tokens_per_minute"
            return None
        assert room > -1e-3
        self.held += tokens
        return answer

    @rule(hold=consumes(holds), share=st.floats(0, 1.5))
    def settle(self, hold: Hold | None, share: float) -> None:
        if hold is not None:
            used = int(hold.tokens * share)
            self.limiter.settle(hold, used, 0)
            self.held -= hold.tokens
            self.level += used
            self.total += used

    @invariant()
    def sums_are_exact(self) -> None:
        if hasattr(self, "key") and self.key.table is not None:
            self.key.table.read(self.key.index, self.key.state)
            assert (self.key.state.day_tokens, self.key.table.reserved(self.key.index)[0]) == (self.total, self.held)


TestTokens = Tokens.TestCase
TestTokens.settings = hypothesis_settings(max_examples=25, stateful_step_count=30)


def test_a_request_larger_than_a_minute_can_never_pass(limiter: Limiter) -> None:
    key = account(limiter, tokens_per_minute=100)
    refusal = stopped(limiter.take(key, NOW, 101), "tokens_per_minute")
    assert (refusal.wait_s, refusal.asked) == (0.0, 101)
    passed(limiter.take(key, NOW, 100))


def test_more_than_was_reserved_is_owed(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiters.time, "monotonic", lambda: NOW)
    key = account(limiter, tokens_per_minute=60)
    limiter.settle(passed(limiter.take(key, NOW, 10)), 90, 0)
    refusal = stopped(limiter.take(key, NOW, 10), "tokens_per_minute")
    assert refusal.wait_s == pytest.approx(40)
    passed(limiter.take(key, NOW + 40, 10))


# Budgets


def test_budgets_are_reserved_settled_and_renewed(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [1_900_000_000.0 // 86400 * 86400 + 86000]  # 400 s before midnight, 17 March 2030
    monkeypatch.setattr(limiters.time, "time", lambda: wall[0])
    key = account(limiter, day_tokens=100, month_tokens=150, day_cost=1.0)
    hold = passed(limiter.take(key, NOW, 80, NANO // 2))
    assert stopped(limiter.take(key, NOW, 30), "day_tokens").wait_s == pytest.approx(400)
    limiter.settle(hold, 60, NANO // 4)
    hold = passed(limiter.take(key, NOW, 30, 3 * NANO // 4))
    stopped(limiter.take(key, NOW, 1, 1), "day_cost")
    limiter.settle(hold, 40, 3 * NANO // 4)
    stopped(limiter.take(key, NOW, 0, 0), "day_cost")  # all is used: what has no price must wait, too
    wall[0] += 500
    limiter._look_s = 0.0
    refusal = stopped(limiter.take(key, NOW, 51), "month_tokens")
    assert refusal.wait_s == pytest.approx(14 * 86400 - 100)
    hold = passed(limiter.take(key, NOW, 50))
    limiter.settle(hold, 50, 0)
    assert key.table is not None and key.table.read(key.index, key.state)
    assert (key.state.day_tokens, key.state.month_tokens, key.state.month_cost) == (50, 150, NANO)


def test_a_clock_that_steps_back_over_midnight_opens_no_budget_again(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = [1_900_000_000.0 // 86400 * 86400]
    monkeypatch.setattr(limiters.time, "time", lambda: wall[0])
    key = account(limiter, day_tokens=10)
    limiter.settle(passed(limiter.take(key, NOW, 10)), 10, 0)
    wall[0] -= 1
    limiter._look_s = 0.0
    stopped(limiter.take(key, NOW, 1), "day_tokens")


# Requests at the same time


def test_places_are_given_back(limiter: Limiter) -> None:
    key = account(limiter, max_concurrent=2)
    first, _ = passed(limiter.take(key, NOW)), passed(limiter.take(key, NOW))
    assert stopped(limiter.take(key, NOW), "max_concurrent").wait_s > 0
    limiter.settle(first, 0, 0)
    passed(limiter.take(key, NOW))


# Several processes


def test_what_this_process_cannot_lock_it_decides_with_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter, other = Limiter(), Limiter()
    limiter.open(tmp_path)
    other.open(tmp_path)
    key, same = account(limiter, requests_per_second=10, burst=10), account(other, requests_per_second=10, burst=10)
    passed(other.take(same, NOW))
    passed(limiter.take(key, NOW))
    assert other.table.acquire(same.index)  # and holds it, as one that was stopped would
    count = sum(isinstance(limiter.take(key, NOW + 0.001 * number), Hold) for number in range(30))
    assert count == 4, "half of the eight that were left"
    other.table.release(same.index)
    monkeypatch.setattr(limiters.time, "monotonic", lambda: NOW + 0.03)
    limiter.settle_due()
    stopped(other.take(same, NOW + 0.03), "requests_per_second")  # what was taken meanwhile was written, for both
    passed(other.take(same, NOW + 0.1))
    limiter.close()
    other.close()


CHILD = """
import sys, time
from pathlib import Path
from hx_gateway.access.account import Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.core.context import KeyLimits
limiter = Limiter()
limiter.open(Path(sys.argv[1]))
key = limiter.account("key:app", "app", KeyLimits(requests_per_second=200, burst=100, tokens_per_minute=10**6, max_concurrent=8))
print("ready", flush=True)
sys.stdin.readline()
start, count, held = time.monotonic(), 0, []
while time.monotonic() < start + 1.5:
    answer = limiter.take(key, time.monotonic(), 5)
    if isinstance(answer, Hold):
        count += 1
        held.append(answer)
    if len(held) > 2:
        limiter.settle(held.pop(0), 3, 0)
for hold in held:
    limiter.settle(hold, 3, 0)
limiter.close()
print(count, start, time.monotonic(), flush=True)
"""


def test_three_processes_together_keep_one_limit(tmp_path: Path) -> None:
    said = together([sys.executable, "-c", CHILD, str(tmp_path)])
    total = sum(int(words[0]) for words in said)
    took_s = max(float(words[2]) for words in said) - min(float(words[1]) for words in said)
    assert total <= 100 + 200 * took_s + 1
    assert total >= (100 + 200 * 1.5) * 0.9, said
    limiter = Limiter()
    limiter.open(tmp_path)
    key = limiter.account("key:app", "app", KeyLimits(day_tokens=1, tokens_per_minute=10**6))
    stopped(limiter.take(key, time.monotonic(), 0 + 1), "day_tokens")
    assert key.state.day_tokens == 3 * total, "to the token"
    assert limiter.table.reserved(key.index) == (0, 0) and limiter.table.requests(key.index) == 0
    limiter.close()


def test_what_a_killed_process_had_reserved_is_there_again(tmp_path: Path) -> None:
    limiter = Limiter()
    limiter.open(tmp_path)
    limits = KeyLimits(tokens_per_minute=1000, max_concurrent=1)
    code = CHILD.replace(
        "requests_per_second=200, burst=100, tokens_per_minute=10**6, max_concurrent=8", "tokens_per_minute=1000, max_concurrent=1"
    )
    code = code.split("start, count")[0] + "print(limiter.take(key, time.monotonic(), 900), flush=True)\nsys.stdin.readline()\n"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    child.stdout.readline()
    child.stdin.write("\n")
    child.stdin.flush()
    assert "Hold" in child.stdout.readline()
    key = limiter.account("key:app", "app", limits)
    stopped(limiter.take(key, time.monotonic(), 900), "tokens_per_minute")
    child.kill()
    child.communicate()
    passed(limiter.take(key, time.monotonic() + 1, 900))
    limiter.close()


# What clients are told


def test_header_lines(limiter: Limiter) -> None:
    key = account(limiter, requests_per_second=2, burst=3, tokens_per_minute=6000)
    passed(limiter.take(key, NOW, 1500))
    assert key.header_lines().decode().split("\r\n") == [
        "x-ratelimit-limit-requests: 3",
        "x-ratelimit-remaining-requests: 2",
        "x-ratelimit-reset-requests: 500ms",
        "x-ratelimit-limit-tokens: 6000",
        "x-ratelimit-remaining-tokens: 4500",
        "x-ratelimit-reset-tokens: 15.00s",
        "",
    ]
    assert account(limiter, max_concurrent=1).header_lines() == b""


@pytest.mark.parametrize(("seconds", "text"), [(0.0, b"0ms"), (0.0201, b"21ms"), (7.66, b"7.66s"), (61.0, b"1m1s"), (3600.2, b"60m1s")])
def test_spans(seconds: float, text: bytes) -> None:
    assert span(seconds) == text
