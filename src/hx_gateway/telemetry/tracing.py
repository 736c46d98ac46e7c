"""Traces of requests: which are traced, their place in a caller's trace, and what of them is remembered until they are exported."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from random import getrandbits, random
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from hx_gateway.core.context import Exchange
from hx_gateway.telemetry.families import SECONDS
from hx_gateway.telemetry.lines import Line, line_of

if TYPE_CHECKING:
    from hx_gateway.core.errors import Failure
    from hx_gateway.telemetry.book import Book

_HEADER = b"traceparent: "
_LINE = re.compile(rb"^traceparent: [^\n]*\n", re.MULTILINE)  # not those that merely end with the name, or have it in a value
_PARENT = re.compile(rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\r\n")  # W3C Trace Context, version 00
_NOTHING = (b"0" * 32, b"0" * 16)


class Attempt(NamedTuple):
    """One call to a model server.

    Args:
        span_id: 16 hex digits; the call carried it as its parent.
        model: The model.
        endpoint: The server's name.
        code: What it failed with; empty for an answer.
        began_s: Monotonic time.
        ended_s: Monotonic time.
    """

    span_id: str
    model: str
    endpoint: str
    code: str
    began_s: float
    ended_s: float


class Trace:
    """What is remembered of an exchange that is traced.

    Args:
        trace_id: 32 hex digits.
        parent_id: The caller's span; empty where the trace begins here.
    """

    __slots__ = ("attempt_id", "attempts", "parent_id", "span_id", "trace_id")

    def __init__(self, trace_id: str = "", parent_id: str = "") -> None:
        self.trace_id = trace_id or f"{getrandbits(128) or 1:032x}"
        self.parent_id = parent_id
        self.span_id = _span_id()
        self.attempt_id = _span_id()
        self.attempts: list[Attempt] = []

    def line(self) -> bytes:
        """The header line for the attempt to come."""
        return b"traceparent: 00-%b-%b-01\r\n" % (self.trace_id.encode(), self.attempt_id.encode())


class Finished(NamedTuple):
    """A trace that is complete.

    Args:
        trace: The trace.
        line: What is said of the exchange.
        began_s: Monotonic time.
        ended_s: Monotonic time.
        wall_s: Unix time at its end.
    """

    trace: Trace
    line: Line
    began_s: float
    ended_s: float
    wall_s: float


class Tracing:
    """A stage that decides what is traced, and an observer that remembers it.

    A caller's decision is followed: what it samples is traced, what it does not is passed on untouched. Where there is
    none, chance decides.

    Args:
        share: Of the requests without a caller's decision, how many are traced; from 0 to 1.
        export: Takes finished traces; must not wait.
        book: Where exemplars go.
    """

    __slots__ = ("_book", "_export", "share")

    def __init__(self, share: float, export: Callable[[Finished], None], book: Book) -> None:
        self.share = share
        self._export = export
        self._book = book

    def __call__(self, exchange: Exchange, /) -> None:
        """Begin a trace, or do not."""
        pieces = exchange.forward
        lines = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        theirs = _LINE.findall(lines) if _HEADER in lines else ()
        found = _PARENT.match(theirs[0]) if len(theirs) == 1 else None
        if found is None or found[1] == _NOTHING[0] or found[2] == _NOTHING[1]:
            if random() < self.share:  # what is no context begins none
                self._begin(exchange, Trace(), lines)
        elif int(found[3], 16) & 1:
            self._begin(exchange, Trace(found[1].decode(), found[2].decode()), lines)

    def _begin(self, exchange: Exchange, trace: Trace, lines: bytes) -> None:
        exchange.trace = trace
        _carry(exchange, trace, lines)

    def attempted(self, exchange: Exchange, failure: Failure | None, /) -> None:
        """Remember the attempt; the next one, if there is one, is a span of its own."""
        trace: Trace | None = exchange.trace
        if trace is None:
            return
        deployment, code = exchange.deployment, failure.kind.code if failure is not None else ""
        trace.attempts.append(Attempt(trace.attempt_id, deployment.model, deployment.endpoint.name, code, exchange.call_s, monotonic()))
        if failure is not None:
            trace.attempt_id = _span_id()
            _carry(exchange, trace, b"".join(exchange.forward))

    def finished(self, exchange: Exchange, /) -> None:
        """Hand the trace on, and leave it as an example of its times."""
        trace: Trace | None = exchange.trace
        if trace is None:
            return
        now_s, wall_s = monotonic(), time()
        line = line_of(exchange, now_s, 0)
        self._exemplar("hx_gateway_response_seconds", line, (line.duration_ms or 0.0) / 1000.0, trace, wall_s)
        if line.ttft_ms and line.stream:
            self._exemplar("hx_gateway_first_token_seconds", line, line.ttft_ms / 1000.0, trace, wall_s)
        self._export(Finished(trace, line, exchange.received_s, now_s, wall_s))

    def _exemplar(self, family: str, line: Line, seconds: float, trace: Trace, wall_s: float) -> None:
        cells = self._book.cells("exemplar", (family, line.route, line.model, str(bisect_left(SECONDS, seconds))), 6)
        cells[1] = 0.0  # none, while it is being written
        cells.cast("B")[16:48] = trace.trace_id.encode()
        cells[0], cells[1] = seconds, wall_s


def _span_id() -> str:
    return f"{getrandbits(64) or 1:016x}"


def _carry(exchange: Exchange, trace: Trace, lines: bytes) -> None:
    """Put the trace into what is sent on, in place of what was there. The list may be another request's, too."""
    exchange.forward = [(_LINE.sub(b"", lines) if _HEADER in lines else lines) + trace.line()]
