"""Lines about requests: what they say and never say, which of them are left out, and a log that is stuck."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.telemetry.test_metrics import exchange, refused

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange, Identity
from hx_gateway.telemetry import lines as rooms
from hx_gateway.telemetry.lines import EVERY, Line, Lines
from hx_gateway.telemetry.logs import configure_logs


@pytest.fixture
def log() -> Iterator[Callable[[str], io.StringIO]]:
    """Sets the log up in a form, on a stream that can be read."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def start(form: str) -> io.StringIO:
        stream = io.StringIO()
        configure_logs("DEBUG", form, stream)
        return stream

    yield start
    root.handlers[:] = before
    root.setLevel(level)


def said(stream: io.StringIO, *exchanges: Exchange) -> list[dict[str, Any]]:
    lines = Lines(100)
    for one in exchanges:
        lines.finished(one)
    lines.stop()
    assert lines.written == len(exchanges)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_tells_what_became_of_a_request(log: Callable[[str], io.StringIO]) -> None:
    made = exchange(
        stream=True,
        prompt_tokens=9,
        completion_tokens=4,
        attempts=2,
        trail=[("llm-00", "upstream_reset", 12.5)],
        identity=Identity("someone", team="a team"),
        asked="hx-chat",
        notes={b"x-request-id": b"mine-1"},
    )
    [line] = said(log("json"), made)
    assert line["duration_ms"] > 0 and line["ttft_ms"] == pytest.approx(201.0)
    assert line["timestamp"].endswith("Z")
    del line["duration_ms"], line["ttft_ms"], line["timestamp"]
    assert line == {
        "level": "info",
        "logger": "hx_gateway.requests",
        "event": "request",
        "id": "01TEST",
        "request_id": "mine-1",
        "route": "chat",
        "key": "someone",
        "team": "a team",
        "asked": "hx-chat",
        "model": "phi3",
        "endpoint": "llm-01",
        "status": 200,
        "outcome": "ok",
        "attempts": 2,
        "failed": ["llm-00 upstream_reset"],
        "stream": True,
        "prompt_tokens": 9,
        "completion_tokens": 4,
    }


def test_the_level_is_that_of_the_blame(log: Callable[[str], io.StringIO]) -> None:
    kinds = (errors.INVALID_API_KEY, errors.CLIENT_CLOSED, errors.NO_DEPLOYMENT, errors.CONNECT_FAILED, errors.INTERNAL)
    levels = [line["level"] for line in said(log("json"), exchange(), *map(refused, kinds))]
    assert levels == ["info", "info", "info", "warning", "warning", "error"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_secret_and_no_body_and_no_second_line(log: Callable[[str], io.StringIO], form: str) -> None:
    stream = log(form)
    lines = Lines(100)
    lines.finished(
        exchange(
            asked="sk" + "-a-key-that-went-astray\n{forged} \x1b[31m" + "x" * 1000,
            body=b'{"messages": "what nobody else may read"}',
            notes={b"authorization": b"Bearer sk" + b"-secret-of-somebody", b"x-request-id": b"sk" + b"-secret-of-another"},
        )
    )
    lines.stop()
    text = stream.getvalue()
    assert text.count("\n") == 1 and len(text) < 1000 and "\x1b" not in text
    for secret in ("astray", "secret", "nobody else"):
        assert secret not in text


def test_people_get_plain_words(log: Callable[[str], io.StringIO]) -> None:
    stream = log("console")
    lines = Lines(100)
    lines.finished(exchange(asked="two words"))
    lines.stop()
    assert "[info     ] request" in stream.getvalue()
    assert "asked='two words' model=phi3 endpoint=llm-01 status=200 outcome=ok attempts=1" in stream.getvalue()


def test_beyond_the_measure_every_hundredth_is_written_and_failures_have_their_own(
    log: Callable[[str], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = log("json")
    monkeypatch.setattr(rooms, "monotonic", lambda: 100.5)
    lines = Lines(10)
    for _ in range(10 + 3 * EVERY):
        lines.finished(exchange())
    for _ in range(10):
        lines.finished(refused(errors.NO_DEPLOYMENT))
    monkeypatch.setattr(rooms, "monotonic", lambda: 101.6)
    lines.finished(exchange())
    lines.stop()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("sampled", 1) for line in found] == [1] * 10 + [EVERY] * 3 + [1] * 10 + [1]
    assert sum(line.get("sampled", 1) for line in found) == 10 + 3 * EVERY + 10 + 1  # nothing is unaccounted for
    assert (lines.written, lines.sampled, lines.lost) == (24, 3 * EVERY - 3, 0)


def test_the_level_and_nothing_at_all() -> None:
    lines = Lines(10)
    lines.threshold = logging.WARNING
    lines.finished(exchange())
    assert not lines._queue
    lines.finished(refused(errors.NO_DEPLOYMENT))
    assert len(lines._queue) == 1
    none = Lines(0)
    none.finished(refused(errors.INTERNAL))
    assert not none._queue


def test_a_log_that_is_stuck_holds_nobody_up(log: Callable[[str], io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    log("json")
    monkeypatch.setattr(rooms, "_MOST", 50)
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        configure_logs("DEBUG", "json", pipe)
        lines = Lines(1_000_000)
        begun = threading.Event()
        for number in range(3000):  # a pipe takes 64 KiB
            lines.finished(exchange())
            if not number % 40:
                lines.tick()
            begun.set()
        lines.stop()
        assert lines.lost > 0 and len(lines._queue) <= 50
        while len(os.read(reading, 1 << 20)) and lines.beside.thread is not None and lines.beside.thread.is_alive():
            pass  # so that the thread can end
    os.close(reading)


def test_every_field_says_what_it_is() -> None:
    import msgspec

    for field in msgspec.inspect.type_info(Line).fields:  # type: ignore[attr-defined]
        assert field.type.extra_json_schema["description"].endswith("."), field.name
