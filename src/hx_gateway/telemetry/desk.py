"""Where everything the gateway tells about itself comes together: what looks at exchanges, and what is written down in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hx_gateway.core.clock import Clock
from hx_gateway.telemetry.book import Book
from hx_gateway.telemetry.metrics import Metrics
from hx_gateway.telemetry.reporting import Reporter, Sample

if TYPE_CHECKING:
    from hx_gateway.core.interfaces import Observer
    from hx_gateway.telemetry.exposition import Observed

_EVERY_S = 1.0  # between two reports


class Desk:
    """Metrics, traces and the lines about requests of one worker.

    Args:
        clock: Source of time.
        book: Where counts are kept; None for memory of this process.
    """

    def __init__(self, clock: Clock, book: Book | None = None) -> None:
        self.book = book or Book()
        self.metrics = Metrics(clock, self.book)
        self._reporter = Reporter(self.book)
        self._next_s = 0.0

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What looks at exchanges, in their order."""
        return (self.metrics,)

    def counts(self) -> Iterator[Sample]:
        """What it has counted of its own work."""
        yield from ()

    def tick(self, observed: Observed) -> None:
        """Called a few times a second: what others may read is brought up to date."""
        self.metrics.flush()
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            self._reporter.report(observed)

    def report(self, observed: Observed) -> None:
        """Bring everything up to date at once."""
        self.metrics.flush()
        self._reporter.report(observed)

    def stop(self, observed: Observed) -> None:
        """The last report of this worker: its counts stay, its gauges go."""
        self.report(observed)
        self.book.beat(0.0)
