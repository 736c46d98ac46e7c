"""The circuit breaker against a plain model: opens at the threshold, one trial at a time, closed by a success."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hx_gateway.fleet.breaker import Breaker

THRESHOLD, TIMEOUT_S = 3, 10.0


class BreakerMachine(RuleBasedStateMachine):
    """Requests that were sent end in any order; each knows whether it is the trial."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(THRESHOLD, TIMEOUT_S)
        self.now_s = 100.0
        self.sent: list[int] = []  # what `start` gave each request under way
        self.current = 0  # the one that is the trial
        self.in_a_row = 0
        self.open_since_s: float | None = None

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def ask(self) -> None:
        """As the router does: sent where it allows, and as the last member's trial where none is under way."""
        allowed = self.breaker.allows(self.now_s)
        if self.open_since_s is None:
            assert allowed
        else:
            assert allowed == (not self.current and self.now_s - self.open_since_s >= TIMEOUT_S)
        if allowed or not self.breaker.trial:
            trial = self.breaker.start()
            assert bool(trial) == (self.open_since_s is not None)
            assert not trial or trial not in self.sent
            self.current = trial or self.current
            self.sent.append(trial)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 50), how=st.sampled_from(["answered", "failed", "abandoned"]))
    def end(self, which: int, how: str) -> None:
        trial = self.sent.pop(which % len(self.sent))
        if how == "answered":
            self.breaker.succeeded(self.now_s)
            self.in_a_row = 0
            self.open_since_s = None
            self.current = 0  # it is closed: whoever was the trial is not, even when another one begins
        elif how == "failed":
            self.breaker.failed(self.now_s, trial)
            self.in_a_row += 1
            if self.open_since_s is None and self.in_a_row >= THRESHOLD or trial and trial == self.current:
                self.open_since_s = self.now_s
        else:
            self.breaker.abandoned(trial)
        if trial == self.current:
            self.current = 0

    @invariant()
    def as_in_the_model(self) -> None:
        breaker = self.breaker
        assert breaker.trial == self.current and (not self.current or self.current in self.sent)
        if self.open_since_s is None:
            assert breaker.state == "closed" and breaker.retry_after_s(self.now_s) == 0.0
        else:
            assert breaker.state == ("half-open" if breaker.trial else "open")
            assert breaker.retry_after_s(self.now_s) == max(0.0, self.open_since_s + TIMEOUT_S - self.now_s)
        assert breaker.failures == self.in_a_row
        assert breaker.state in repr(breaker)


TestBreaker = BreakerMachine.TestCase


def test_it_opens_at_the_threshold_and_not_before() -> None:
    breaker = Breaker(3, 10.0)
    for number in range(3):
        assert breaker.state == "closed", number
        breaker.failed(5.0)
    assert breaker.state == "open" and not breaker.allows(14.9) and breaker.allows(15.0)


def test_a_success_between_failures_starts_the_count_again() -> None:
    breaker = Breaker(2, 10.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.succeeded(0.0)
    assert breaker.state == "closed"


def test_a_late_failure_from_before_it_opened_does_not_end_the_trial() -> None:
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0)
    assert breaker.start()
    breaker.failed(11.0)
    assert breaker.trial and breaker.state == "half-open"
    breaker.succeeded(12.0)
    assert breaker.state == "closed" and breaker.closed_s == 12.0


def test_a_trial_from_before_it_last_closed_does_not_end_the_one_under_way() -> None:
    """Else the next request would be a second trial beside it."""
    breaker = Breaker(1, 10.0)
    breaker.failed(0.0)
    slow = breaker.start()
    breaker.succeeded(1.0)  # an older request, or a probe, went well meanwhile
    breaker.failed(2.0)
    second = breaker.start()
    assert slow and second and slow != second
    for end in (lambda: breaker.failed(3.0, slow), lambda: breaker.abandoned(slow)):
        end()
        assert breaker.trial == second and not breaker.start()
    breaker.abandoned(second)
    assert breaker.state == "open" and breaker.start()
