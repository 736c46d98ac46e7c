"""Finished traces on their way to a collector: bounded, in threads, and never in the way of a request (extra ``otel``)."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from hx_gateway.telemetry.beside import Beside
from hx_gateway.telemetry.tracing import Finished

_MOST = 2048  # spans that wait to be sent
_BATCH = 256
_SEND_S = 5  # for one call to the collector
_PAUSE_MS = 1000  # between two
_STOP_S = 2.0
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_log = logging.getLogger(__name__)


class _Counted(SpanExporter):  # type: ignore[misc]
    """The exporter, with what came of it counted and said once."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner = inner
        self._endpoint = endpoint
        self._away = False
        self.sent = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch."""
        try:
            result = self._inner.export(spans)
        except Exception:  # blame: the collector's, or its client library's
            result = SpanExportResult.FAILURE
        well = result is SpanExportResult.SUCCESS
        if well:
            self.sent += len(spans)
        else:
            self.lost += len(spans)
        if well is self._away:
            self._away = not well
            if well:
                _log.info("traces reach %s again", self._endpoint)
            else:
                _log.warning(
                    "traces do not reach %s (monitoring.otlp_endpoint) and are lost; requests are not touched by it", self._endpoint
                )
        return result

    def shutdown(self) -> None:
        """Break off what is being sent."""
        self._inner.shutdown()


class Exporter:
    """Makes spans of finished traces, and has them sent.

    Args:
        endpoint: URL that takes OTLP over HTTP.
        service: Name of the gateway in traces.
    """

    def __init__(self, endpoint: str, service: str) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what is to be said of it is said here
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._queue: deque[Finished] = deque()
        self._counted = _Counted(OTLPSpanExporter(endpoint, timeout=_SEND_S), endpoint)
        self._resource = Resource.create({"service.name": service, "service.version": version("hx-gateway")})
        self._scope = InstrumentationScope("hx_gateway", version("hx-gateway"))
        self._processor = BatchSpanProcessor(
            self._counted, max_queue_size=2 * _MOST, schedule_delay_millis=_PAUSE_MS, max_export_batch_size=_BATCH
        )
        self.made = 0
        self._dropped = 0
        self._beside = Beside("traces", self._queue, self._work)

    @property
    def lost(self) -> int:
        """Spans that no collector got."""
        return self._counted.lost + self._dropped

    def put(self, finished: Finished) -> None:
        """Take a finished trace; what comes while too many wait is lost and counted."""
        spans = 1 + len(finished.trace.attempts)
        if self.made + spans - self._counted.sent - self.lost + self._dropped > _MOST or len(self._queue) >= _MOST:
            self._dropped += spans
        else:
            self._queue.append(finished)

    def tick(self) -> None:
        """Have spans made of what waits."""
        self._beside.tick()

    def stop(self) -> None:
        """Send what is left, within some seconds; a collector that is away holds nobody up."""
        self._beside.stop(_STOP_S)
        last = threading.Thread(target=self._processor.shutdown, name="last traces", daemon=True)
        last.start()
        last.join(_STOP_S)

    def _work(self) -> None:
        while self._queue:
            try:
                self._make(self._queue.popleft())
            except Exception:  # blame: the gateway's own; the next trace is another matter
                _log.exception("a trace could not be made")

    def _make(self, finished: Finished) -> None:
        trace, line = finished.trace, finished.line
        offset_s = finished.wall_s - finished.ended_s  # from monotonic to Unix time
        operation = _OPERATIONS.get(line.route)
        attributes: dict[str, str | int | float] = {
            "http.request.method": "POST",
            "http.response.status_code": line.status,
            "hx_gateway.id": line.id,
            "hx_gateway.route": line.route,
            "hx_gateway.attempts": line.attempts,
            "gen_ai.provider.name": "hx_gateway",
        }
        optional = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": line.asked,
            "gen_ai.response.model": line.model,
            "gen_ai.usage.input_tokens": line.prompt_tokens,
            "gen_ai.usage.output_tokens": line.completion_tokens,
            "gen_ai.response.time_to_first_chunk": (line.ttft_ms or 0.0) / 1000.0 if line.stream else 0.0,
            "error.type": line.outcome if line.outcome != "ok" else "",
            "hx_gateway.endpoint": line.endpoint,
            "hx_gateway.cached": line.cached,
            "hx_gateway.queued_seconds": (line.queued_ms or 0.0) / 1000.0,
            "hx_gateway.load_seconds": (line.load_ms or 0.0) / 1000.0,
        }
        attributes |= {name: value for name, value in optional.items() if value}
        trace_id = int(trace.trace_id, 16)
        own = SpanContext(trace_id, int(trace.span_id, 16), False, _SAMPLED)
        above = SpanContext(trace_id, int(trace.parent_id, 16), True, _SAMPLED) if trace.parent_id else None
        for attempt in trace.attempts:
            told: dict[str, str | int | float] = {
                "gen_ai.provider.name": "hx_gateway",
                "gen_ai.request.model": attempt.model,
                "server.address": attempt.endpoint,
            }
            if operation:
                told["gen_ai.operation.name"] = operation
            if attempt.code:
                told["error.type"] = attempt.code
            began_s = attempt.began_s or attempt.ended_s
            context = SpanContext(trace_id, int(attempt.span_id, 16), False, _SAMPLED)
            self._span(
                f"attempt {attempt.endpoint}",
                context,
                own,
                told,
                SpanKind.CLIENT,
                attempt.code,
                began_s + offset_s,
                attempt.ended_s + offset_s,
            )
        name = f"{operation} {line.model}" if operation and line.model else operation or line.route
        failed = line.outcome if line.status >= 500 or (line.status == 200 and line.outcome != "ok") else ""
        self._span(name, own, above, attributes, SpanKind.SERVER, failed, finished.began_s + offset_s, finished.wall_s)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        attributes: dict[str, str | int | float],
        kind: SpanKind,
        failed: str,
        began_s: float,
        ended_s: float,
    ) -> None:
        # Made at once and whole: the SDK's way to a span that is still being filled costs three times as much.
        self.made += 1
        status = Status(StatusCode.ERROR, failed) if failed else Status()
        self._processor.on_end(
            ReadableSpan(
                name, context, parent, self._resource, attributes, kind=kind, status=status,
                start_time=int(began_s * 1e9), end_time=int(ended_s * 1e9), instrumentation_scope=self._scope,
            )
        )  # fmt: skip
