"""Which requests are traced, and what is sent on in their heads."""

from __future__ import annotations

import re

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from tests.unit.telemetry.test_metrics import Observed, desk, exchange, shown

from hx_gateway.core import errors
from hx_gateway.core.clock import SystemClock
from hx_gateway.core.errors import Failure
from hx_gateway.telemetry.book import Book
from hx_gateway.telemetry.exposition import Report
from hx_gateway.telemetry.metrics import Metrics
from hx_gateway.telemetry.tracing import Finished, Tracing

TRACE, SPAN = "ab" * 16, "cd" * 8


def sent(lines: list[bytes]) -> list[tuple[str, str, str]]:
    """Trace, span and flags of every traceparent in a head."""
    found = re.findall(rb"traceparent: 00-(\w{32})-(\w{16})-(\w\w)\r\n", b"".join(lines))
    return [(trace.decode(), span.decode(), flags.decode()) for trace, span, flags in found]


def lines(flags: str = "01", before: bytes = b"accept: */*\r\n") -> list[bytes]:
    return [before + b"traceparent: ", f"00-{TRACE}-{SPAN}-{flags}".encode(), b"\r\ntracestate: a=1\r\n"]


def tracing(share: float = 0.0) -> tuple[Tracing, list[Finished]]:
    done: list[Finished] = []
    return Tracing(share, done.append, Book()), done


def test_a_caller_that_samples_is_followed_and_becomes_the_parent() -> None:
    stage, done = tracing()
    theirs = lines()
    made = exchange(forward=theirs)
    stage(made)
    [(trace, span, flags)] = sent(made.forward)
    assert (trace, flags) == (TRACE, "01") and span not in (SPAN, "0" * 16)
    assert b"tracestate: a=1\r\n" in made.forward[0] and b"accept: */*\r\n" in made.forward[0]
    assert theirs == lines(), "the list may be that of the next request on the connection"
    stage.attempted(made, None)
    stage.finished(made)
    assert done[0].trace.parent_id == SPAN and [one.span_id for one in done[0].trace.attempts] == [span]
    assert done[0].line.trace_id == TRACE


def test_a_caller_that_does_not_sample_is_followed_too() -> None:
    stage, done = tracing(1.0)
    made = exchange(forward=lines("00"))
    stage(made)
    stage.finished(made)
    assert made.trace is None and made.forward == lines("00") and not done


@pytest.mark.parametrize("value", [b"00-zz-00-01", f"00-{'0' * 32}-{SPAN}-01".encode(), f"00-{TRACE}-{'0' * 16}-01".encode(), b""])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_is_no_context_begins_none(value: bytes, share: float) -> None:
    stage, _ = tracing(share)
    made = exchange(forward=[b"traceparent: " + value + b"\r\n"])
    stage(made)
    assert (made.trace is not None) == bool(share)
    if share:
        assert [trace for trace, _, _ in sent(made.forward)] == [made.trace.trace_id] != [TRACE] and not made.trace.parent_id
        assert b"".join(made.forward).count(b"traceparent") == 1


@pytest.mark.parametrize("other", [b"x-traceparent: 1\r\n", b"x-note: see traceparent: 1\r\n"])
def test_a_header_that_looks_like_it_is_left_alone(other: bytes) -> None:
    stage, _ = tracing()
    made = exchange(forward=[other + b"accept: */*\r\n"])
    stage(made)
    assert made.trace is None and made.forward == [other + b"accept: */*\r\n"]
    made = exchange(forward=lines(before=other))
    stage(made)
    assert made.trace.trace_id == TRACE and b"".join(made.forward) == other + b"tracestate: a=1\r\n" + made.trace.line()


def test_chance_decides_where_nobody_has() -> None:
    stage, _ = tracing(0.25)
    traced = 0
    for _ in range(2000):
        made = exchange()
        stage(made)
        traced += made.trace is not None
    assert 350 < traced < 650


def test_each_attempt_is_a_span_of_its_own() -> None:
    stage, done = tracing(1.0)
    made = exchange()
    stage(made)
    first = sent(made.forward)[0]
    stage.attempted(made, Failure(errors.CONNECT_FAILED, "x"))
    second = sent(made.forward)
    assert len(second) == 1 and second[0][0] == first[0] and second[0][1] != first[1]
    stage.attempted(made, None)
    stage.finished(made)
    attempts = done[0].trace.attempts
    assert [(one.span_id, one.code) for one in attempts] == [(first[1], "upstream_connect_failed"), (second[0][1], "")]


def test_a_traced_request_is_the_example_of_its_bucket() -> None:
    metrics = Metrics(SystemClock())
    stage = Tracing(1.0, lambda finished: None, metrics.book)
    made = exchange(stream=True, at_s=SystemClock.monotonic() - 0.3)
    stage(made)
    metrics.finished(made)
    stage.finished(made)
    text = shown(Report(Observed(desk(metrics)), "1"), "application/openmetrics-text; version=1.0.0")[0].decode()
    examples = {
        family.name: sample.exemplar
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    for name in ("hx_gateway_response_seconds", "hx_gateway_first_token_seconds", "gen_ai_server_time_to_first_token_seconds"):
        assert examples[name].labels == {"trace_id": made.trace.trace_id}
    assert examples["hx_gateway_first_token_seconds"].value == pytest.approx(0.201)
