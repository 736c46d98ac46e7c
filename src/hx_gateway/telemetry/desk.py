"""Where everything the gateway tells about itself comes together: what looks at exchanges, and what is written down in time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hx_gateway.config.schema import MonitoringSettings
from hx_gateway.core.clock import Clock
from hx_gateway.telemetry.book import Book
from hx_gateway.telemetry.history import Recorder, keep
from hx_gateway.telemetry.lines import Lines
from hx_gateway.telemetry.logs import set_level
from hx_gateway.telemetry.metrics import Metrics
from hx_gateway.telemetry.reporting import Reporter, Sample
from hx_gateway.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from hx_gateway.core.interfaces import Observer, Stage
    from hx_gateway.telemetry.exposition import Observed
    from hx_gateway.telemetry.otlp import Exporter

_EVERY_S = 1.0  # between two reports
_log = logging.getLogger(__name__)


class Desk:
    """Metrics, traces and the lines about requests of one worker.

    Args:
        settings: What is shown to operators.
        clock: Source of time.
        service: The gateway's name, in traces.
        book: Where counts are kept; None for memory of this process.
    """

    def __init__(self, settings: MonitoringSettings, clock: Clock, book: Book | None = None, service: str = "hx-gateway") -> None:
        self.book = book or Book()
        self.metrics = Metrics(clock, self.book)
        self.lines = Lines(settings.access_log_per_second)
        self.level = logging.getLevelNamesMapping()[settings.log_level]
        self.lines.threshold = self.level
        self.tracing: Tracing | None = None
        self._exporter: Exporter | None = None
        if settings.otlp_endpoint is not None:
            self._trace(settings.otlp_endpoint, settings.trace_ratio, service)
        self._word = 0.0
        self._reporter = Reporter(self.book)
        self._history = Recorder(self.book)
        self._next_s = 0.0

    def adopt(self, before: MonitoringSettings, after: MonitoringSettings) -> None:
        """Take over what a newer configuration may change while running; a level that was set at run time stays until the file's changes."""
        self.lines.most = after.access_log_per_second
        if before.log_level != after.log_level:
            self._word = self.book.word = 0.0
            self._set(logging.getLevelNamesMapping()[after.log_level])

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What looks at exchanges, in their order."""
        return (self.metrics, self.lines) if self.tracing is None else (self.metrics, self.lines, self.tracing)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What comes before every other stage."""
        return () if self.tracing is None else (self.tracing,)

    def _trace(self, endpoint: str, share: float, service: str) -> None:
        try:
            from hx_gateway.telemetry.otlp import Exporter  # only where it is used
        except ModuleNotFoundError as error:
            _log.error("nothing is traced: monitoring.otlp_endpoint needs %s; pip install 'hx-gateway[otel]'", error.name)
            return
        self._exporter = Exporter(endpoint, service)
        self.tracing = Tracing(share, self._exporter.put, self.book)

    def set_level(self, level: int) -> None:
        """Change the least severe level that is logged: here at once, in the other workers within a second or two."""
        self._word = self.book.word = float(level)
        self._set(level)

    def _set(self, level: int) -> None:
        self.level = self.lines.threshold = level
        set_level(level)
        _log.warning("the log shows %s and what is worse from here on", logging.getLevelName(level))

    def counts(self) -> Iterator[Sample]:
        """What it has counted of its own work."""
        lines = self.lines
        for result, count in (("written", lines.written), ("sampled", lines.sampled), ("lost", lines.lost)):
            yield "hx_gateway_log_lines", (result,), count
        if self._exporter is not None:
            yield "hx_gateway_trace_spans", ("made",), self._exporter.made
            yield "hx_gateway_trace_spans", ("lost",), self._exporter.lost

    def tick(self, observed: Observed) -> None:
        """Called a few times a second: what others may read is brought up to date."""
        self.metrics.flush()
        self.lines.tick()
        if self._exporter is not None:
            self._exporter.tick()
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            self._reporter.report(observed)
            self._history.tick(time.time(), observed)
            word = self.book.word
            if word and word != self._word:
                self._word = word
                self._set(int(word))

    def report(self, observed: Observed) -> None:
        """Bring everything up to date at once."""
        self.metrics.flush()
        self._reporter.report(observed)

    def stop(self, observed: Observed) -> None:
        """The last report of this worker: its counts stay, its gauges go."""
        self.lines.stop()
        if self._exporter is not None:
            self._exporter.stop()
        self.report(observed)
        self.book.beat(0.0)
        if observed.backing.folder is not None:
            keep(self.book, observed.backing.folder, time.time())
