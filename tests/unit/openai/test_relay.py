"""Streams in OpenAI's dialect: whatever the network made of them, the client gets the same whole events."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.integration.protocol.wire import events, texts

from hx_gateway.openai.sse import MAX_EVENT, Relay, error_event, said_error
from hx_gateway.testing.factories import make_exchange

ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
SAID = {"choices": [{"index": 0, "delta": {"content": 'é "usage" [DONE]\n\ndata: x 😀'}, "finish_reason": None}]}
NULLED = {**SAID, "usage": None}
STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
COUNTS = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}
USAGE = {"choices": [], "usage": COUNTS}
STOP_USAGE = {**STOP, "usage": COUNTS}
EMPTY_USAGE = {"choices": [{"index": 0, "delta": {}, "finish_reason": None}], "usage": COUNTS}
ERROR = {"error": {"message": "out of memory", "type": "server_error"}}
NULL_ERROR = {**SAID, "error": None}


def sent(
    chunks: list[Any], compact: bool = False, end: str = "\n", lines: int = 1, done: bool = True, blank: bool = True, bom: bool = False
) -> bytes:
    """A stream as some server would send it; a text among the chunks stands for a comment."""
    out = "\ufeff" if bom else ""
    for chunk in chunks:
        if isinstance(chunk, str):
            out += f": {chunk}{end}{end}"
            continue
        text = json.dumps({"id": "x", "model": "theirs", **chunk}, ensure_ascii=False, separators=(",", ":") if compact else (", ", ": "))
        if lines == 2:
            text = text.replace('{"id"', f'{{{end}data: "id"', 1)
        elif lines == 3:
            text = f"{text}{end}event: message{end}id: 7"
        out += f"data: {text}{end}{end}"
    if done:
        out += f"data: [DONE]{end}{end}"
    data = out.encode()
    return data if blank else data[: -len(end)]


def relayed(data: bytes, cuts: list[int] | None = None, keep_usage: bool = False) -> tuple[bytes, str, tuple[int, int, int]]:
    """What is passed on, the code of the failure, and what was counted."""
    exchange = make_exchange({"model": "ours", "messages": [], "stream": True})
    relay = Relay(exchange, keep_usage)
    out = b""
    at = [0, *(cuts or []), len(data)]
    for start, end in itertools.pairwise(at):
        if start < end:
            out += relay.feed(data[start:end])
            if relay.failure is not None:
                break
    if relay.failure is None:
        out += relay.finish()
    counted = exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens
    return out, relay.failure.kind.code if relay.failure else "", counted


_middles = st.lists(st.sampled_from([SAID, NULLED, NULL_ERROR, "still here", "", ROLE]), max_size=5)
_ends = st.sampled_from(
    [[STOP], [STOP, USAGE], [STOP_USAGE], [STOP, EMPTY_USAGE], [STOP, STOP], [], [STOP, "bye"], [ERROR], ["bye", STOP_USAGE]]
)  # fmt: skip


@settings(max_examples=300)
@given(
    _middles, _ends, st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from([1, 1, 2, 3]), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.data(),
)  # fmt: skip
def test_cuts_mean_nothing(
    middle: list[Any],
    ends: list[Any],
    compact: bool,
    end: str,
    lines: int,
    done: bool,
    blank: bool,
    bom: bool,
    keep_usage: bool,
    data: st.DataObject,
) -> None:
    stream = sent([*middle, *ends], compact, end, lines, done, blank, bom)
    whole = relayed(stream, None, keep_usage)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    assert relayed(stream, cuts, keep_usage) == whole
    assert relayed(stream, list(range(1, len(stream))), keep_usage) == whole
    if whole[1] == "" and lines == 1:
        *chunks, last = events(whole[0])
        assert last == "[DONE]"
        assert all(chunk["model"] == "ours" for chunk in chunks)
        assert any(chunk.get("usage") for chunk in chunks) == (
            keep_usage and any("usage" in chunk and chunk["usage"] for chunk in ends if isinstance(chunk, dict))
        )
        said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle if isinstance(chunk, dict))
        assert texts(chunks) == said


GOOD = [ROLE, SAID, SAID, STOP]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ends", [[USAGE], [EMPTY_USAGE], []])
def test_usage_is_read_and_taken_out_where_nobody_asked(ends: list[Any], end: str) -> None:
    chunks = [*GOOD, *ends] if ends else [*GOOD[:-1], STOP_USAGE]
    out, failure, counted = relayed(sent(chunks, end=end))
    assert failure == "" and counted == (7, 2, 3)
    assert b'"usage":' not in out and b"total_tokens" not in out


def test_null_usage_is_taken_out_where_nobody_asked() -> None:
    for compact in (False, True):
        out, _, _ = relayed(sent([NULLED, NULLED, STOP], compact))
        assert all("usage" not in event for event in events(out)[:-1])
        kept, _, _ = relayed(sent([NULLED, STOP], compact), keep_usage=True)
        assert events(kept)[0]["usage"] is None


def test_an_error_first_is_a_failure_with_nothing_passed_on() -> None:
    for stream in (sent([ERROR]), sent(["waiting", ERROR]), sent([ERROR], end="\r\n", bom=True), b'data: {"error": "no memory"}\n\n'):
        assert relayed(stream)[:2] == (b"", "upstream_error")


def test_an_error_later_keeps_what_came_before() -> None:
    out, failure, _ = relayed(sent([ROLE, SAID, ERROR, SAID, STOP]))
    assert failure == "stream_broken"
    assert [chunk["choices"][0]["delta"].get("role") for chunk in events(out)] == ["assistant", None]


def test_a_null_error_is_none() -> None:
    assert relayed(sent([NULL_ERROR, STOP]))[1] == ""


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize("chunks", [[*GOOD], [*GOOD, USAGE], [*GOOD[:-1], STOP_USAGE], [*GOOD, STOP]])
def test_without_done_a_finish_reason_is_end_enough(chunks: list[Any], blank: bool) -> None:
    out, failure, _ = relayed(sent(chunks, done=False, blank=blank))
    assert failure == "" and events(out)[-1] == "[DONE]"


@pytest.mark.parametrize("chunks", [[ROLE], [ROLE, SAID], [ROLE, SAID, USAGE]])
def test_without_either_it_broke_off(chunks: list[Any]) -> None:
    out, failure, _ = relayed(sent(chunks, done=False))
    assert failure == "stream_broken" and b"[DONE]\n\n" not in out


@pytest.mark.parametrize("stream", [b"", b"\n\n", b": hello\n\n", b"\xef\xbb\xbf", b"event: ping\n\n", b"\r", b"data: {"])
def test_nothing_at_all(stream: bytes) -> None:
    assert relayed(stream)[1] == "bad_upstream_response"


@pytest.mark.parametrize(
    "stream", [b"data: <html>\n\n", b"data: [1]\n\n", b"data: \n\n", b"data: " + b"[" * 5000 + b"\n\n", b'data: {"choices": 7}\n\n']
)
def test_a_first_event_that_is_none_of_ours(stream: bytes) -> None:
    assert relayed(stream)[:2] == (b"", "bad_upstream_response")


def test_done_is_passed_on_at_once_and_nothing_after_it() -> None:
    exchange = make_exchange({"model": "ours", "messages": [], "stream": True})
    relay = Relay(exchange, False)
    out = relay.feed(sent([*GOOD]) + sent([SAID]))
    assert out.endswith(b"data: [DONE]\n\n") and out.count(b"[DONE]\n\n") == 1
    assert relay.complete
    assert relay.feed(sent([SAID])) == b"" and relay.finish() == b""


def test_done_alone_is_an_empty_stream() -> None:
    assert relayed(b"data: [DONE]\n\n")[:2] == (b"data: [DONE]\n\n", "")


def test_the_word_done_inside_a_text_is_a_word() -> None:
    out, failure, _ = relayed(sent([SAID, SAID, STOP]))
    assert failure == "" and len(events(out)) == 4


def test_the_name_is_changed_in_every_chunk_and_in_nothing_else() -> None:
    odd = {"choices": [{"index": 0, "delta": {"content": '"model": "theirs"'}, "finish_reason": None}]}
    for compact in (False, True):
        out, _, _ = relayed(sent([ROLE, odd, STOP_USAGE], compact))
        *chunks, _ = events(out)
        assert [chunk["model"] for chunk in chunks] == ["ours"] * 3
        assert texts(chunks) == '"model": "theirs"'


def test_an_event_without_end_is_not_kept_for_ever() -> None:
    exchange = make_exchange({"model": "ours", "messages": [], "stream": True})
    relay = Relay(exchange, False)
    piece = b"data: " + b"x" * (1 << 20)
    for _ in range(MAX_EVENT // len(piece) + 2):
        assert relay.feed(piece) == b""
    assert relay.failure is not None


def test_comments_before_the_first_event_are_not_kept_for_ever() -> None:
    exchange = make_exchange({"model": "ours", "messages": [], "stream": True})
    relay = Relay(exchange, False)
    piece = (b": " + b"x" * 1000 + b"\n\n") * 2000
    for _ in range(MAX_EVENT // len(piece) + 2):
        if relay.failure is None:
            relay.feed(piece)
    assert relay.failure is not None


@given(
    st.recursive(
        st.none() | st.text() | st.integers(-5, 5),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["message", "error", "x"]), inner),
    )
)
@example({"message": None})
def test_an_errors_message_is_found_whatever_its_shape(value: Any) -> None:
    said = said_error(json.dumps(value).encode(), "an error")
    assert isinstance(said, str)
    if isinstance(value, str):
        assert said == value
    if isinstance(value, dict) and isinstance(value.get("message"), str) and value["message"]:
        assert said == value["message"]


def test_an_error_event_is_one_line() -> None:
    from hx_gateway.core import errors
    from hx_gateway.core.errors import Failure

    (event,) = events(error_event(Failure(errors.STREAM_BROKEN, 'line\n\ndata: two "quoted"')))
    assert event["error"]["message"] == 'line\n\ndata: two "quoted"'
