"""The circuit breaker: closed while things go well, open after repeated failures, half-open for one trial at a time."""

from __future__ import annotations


class Breaker:
    """Counts consecutive failures; opens at the threshold, lets one trial through after the timeout.

    Times are monotonic seconds handed in by the caller, so that it runs on any clock.

    Args:
        threshold: Consecutive failures that open it.
        timeout_s: Seconds it stays open before a trial.
    """

    __slots__ = ("closed_s", "failures", "opened_s", "state", "threshold", "timeout_s", "trial", "trials")

    def __init__(self, threshold: int = 5, timeout_s: float = 60.0) -> None:
        self.threshold = threshold
        self.timeout_s = timeout_s
        self.failures = 0
        self.opened_s = 0.0
        self.closed_s = -1e9  # when it last closed after having been open
        self.trials = 0  # how many there were
        self.trial = 0  # the number of the one under way; 0 for none
        self.state = "closed"

    def allows(self, now_s: float) -> bool:
        """Whether a request may pass now; does not claim the trial."""
        if self.state == "closed":
            return True
        return not self.trial and now_s - self.opened_s >= self.timeout_s

    def start(self) -> int:
        """A request is being sent; in any state but closed it is the one trial. Returns the trial's number, 0 if it is none."""
        if self.state == "closed" or self.trial:
            return 0
        self.state = "half-open"
        self.trials += 1
        self.trial = self.trials
        return self.trial

    def succeeded(self, now_s: float = -1e9) -> None:
        """A request, or a probe, went well; ``now_s`` starts the time in which it is eased back in."""
        if self.state != "closed":
            self.closed_s = now_s
        self.failures = 0
        self.trial = 0
        self.state = "closed"

    def failed(self, now_s: float, trial: int = 0) -> None:
        """A request failed in a way that counts; ``trial`` is what `start` gave it."""
        self.failures += 1
        if self.state == "closed":
            if self.failures >= self.threshold:
                self.state = "open"
                self.opened_s = now_s
        elif trial and trial == self.trial:
            self.trial = 0
            self.state = "open"
            self.opened_s = now_s
        # else: a request from before it opened, or a trial from before it last closed; the trial under way decides

    def abandoned(self, trial: int = 0) -> None:
        """A request ended without saying anything about the server (the client left); ``trial`` is what `start` gave it."""
        if trial and trial == self.trial:
            self.trial = 0
            self.state = "open"

    def retry_after_s(self, now_s: float) -> float:
        """Seconds until it may let a request through; 0.0 when it does now."""
        if self.state == "closed":
            return 0.0
        return max(0.0, self.opened_s + self.timeout_s - now_s)

    def __repr__(self) -> str:
        return f"<Breaker {self.state} failures={self.failures}/{self.threshold}>"
