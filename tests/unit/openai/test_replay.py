"""Answers given again in another form, and what makes two requests ask for the same."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.openai.canon import deterministic, fields_of, key_of, perhaps_deterministic, usual
from hx_gateway.openai.replay import EVENTS, EVENTS_AND_USAGE, WHOLE, Recording, folded, sound, without_comments, without_usage

HEAD = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def stream(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def deltas(*found: dict[str, Any], finish: str = "stop") -> list[dict[str, Any]]:
    chunks = [{**HEAD, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in found]
    return [*chunks, {**HEAD, "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish}]}]


def fold(*chunks: dict[str, Any]) -> Any:
    return json.loads(folded(stream(*chunks)))


def test_pieces_add_up_to_the_whole() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    whole = fold(
        *deltas(
            {"role": "assistant", "content": ""}, {"reasoning_content": "a"}, {"reasoning_content": "b"}, {"content": "c"}, {"content": "d"}
        ),
        {**HEAD, "choices": [], "usage": usage},
    )
    assert whole == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "cd", "reasoning_content": "ab"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }


def test_calls_of_tools_are_put_together_by_their_index() -> None:
    def call(index: int, **what: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **what}]}

    whole = fold(
        *deltas(
            {"role": "assistant", "content": ""},
            call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
            call(0, function={"arguments": '{"x":'}),
            call(1, id="b", type="function", function={"name": "g", "arguments": "{}"}),
            call(0, function={"arguments": "1}"}),
            finish="tool_calls",
        )
    )
    (choice,) = whole["choices"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]


def test_several_choices_texts_and_log_probabilities() -> None:
    def text(index: int, piece: str, finish: str | None = None) -> dict[str, Any]:
        logs = {"tokens": [piece], "token_logprobs": [-0.5]}
        choice = {"index": index, "text": piece, "logprobs": logs, "finish_reason": finish}
        return {"id": "t", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}

    whole = fold(text(1, "x"), text(0, "a"), text(0, "b", "stop"), text(1, "y", "length"))
    assert whole["object"] == "text_completion"
    assert [(choice["text"], choice["finish_reason"]) for choice in whole["choices"]] == [("ab", "stop"), ("xy", "length")]
    assert whole["choices"][0]["logprobs"] == {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.5]}


def test_usage_goes_where_nobody_asked_for_it() -> None:
    chunks = deltas({"content": '"usage": null is what I say'})
    told = stream(*({**chunk, "usage": None} for chunk in chunks), {**HEAD, "choices": [], "usage": {"prompt_tokens": 1}})
    assert without_usage(told) == stream(*chunks)
    assert without_usage(stream(*chunks)) == stream(*chunks)
    with_choices = {**chunks[0], "usage": {"prompt_tokens": 1}}
    (first, *_) = without_usage(stream(with_choices)).split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: ")) == chunks[0]


def test_only_a_sound_stream_is_kept() -> None:
    good = stream(*deltas({"content": "a"}))
    assert sound(good)
    assert not sound(stream(*deltas({"content": "a"})[:1])), "no end"
    assert not sound(b"data: [DONE]\n\n")
    assert not sound(good.replace(b"data: [DONE]", b'data: {"choices": [{\n\ndata: [DONE]'))
    halves = b'data: {"choices":[{"index":0,"finish_reason":"stop"}\n\ndata: {"index":0}]}\n\ndata: [DONE]\n\n'
    assert not sound(halves), "two broken events are not one"
    other = {**HEAD, "choices": [{"index": 1, "delta": {"content": "b"}, "finish_reason": None}]}
    assert not sound(stream(other, *deltas({"content": "a"}))), "one of two has no end"


def test_comments_are_not_kept() -> None:
    assert without_comments(b": hello\n\ndata: {}\n\n: still\n\n: here\ndata: [DONE]\n\n") == b"data: {}\n\ndata: [DONE]\n\n"
    assert without_comments(b'data: {"a":": no\\n: comment"}\n\n') == b'data: {"a":": no\\n: comment"}\n\n'


@pytest.mark.parametrize("streamed", [False, True])
def test_a_recording_survives_a_store(streamed: bool) -> None:
    body = (
        stream(*deltas({"content": "ü"})) if streamed else b'{"object":"chat.completion","choices":[{"index":0,"message":{"content":"x"}}]}'
    )
    made = Recording(streamed, body, 1_700_000_000_123, b"x-hx-model: m\r\n", (1, -1, 3), True)
    found = Recording.unpacked(made.packed())
    assert found is not None
    for name in ("streamed", "body", "made_ms", "head", "tokens", "estimated", "size"):
        assert getattr(found, name) == getattr(made, name)
    assert [found.form(form) for form in (WHOLE, EVENTS, EVENTS_AND_USAGE)] == [
        made.form(form) for form in (WHOLE, EVENTS, EVENTS_AND_USAGE)
    ]
    for wrong in (b"", b"\x01", made.packed()[:-1], made.packed()[:1] + b"\x00" + made.packed()[2:]):
        assert Recording.unpacked(wrong) is None


# What makes two requests ask for the same

NAMES = st.one_of(st.sampled_from(("model", "stream", "user", "temperature", "messages", "n")), st.text(max_size=4))
VALUES = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.none(), st.text(max_size=5)), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
BODIES = st.dictionaries(NAMES, VALUES, min_size=1, max_size=6)
ASIDE = ("model", "stream", "stream_options", "user", "metadata", "safety_identifier", "prompt_cache_key")


def key(body: bytes) -> bytes:
    fields = fields_of(body)
    assert fields is not None
    return key_of(b"p", fields, body)


@given(BODIES, BODIES, st.randoms(use_true_random=False))
def test_a_key_is_shared_by_the_same_question_only(one: dict[str, Any], other: dict[str, Any], dice: Any) -> None:
    for blanks in ((",", ":"), (", ", ": ")):
        asked = json.dumps(one, separators=blanks, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if fields_of(asked) is None:
            continue
        kept = {name: value for name, value in one.items() if name not in ASIDE}
        if json.dumps({name: value for name, value in other.items() if name not in ASIDE}, sort_keys=True) != json.dumps(
            kept, sort_keys=True
        ):
            different = json.dumps(other, separators=blanks, ensure_ascii=False).encode("utf-8", "surrogatepass")
            assert fields_of(different) is None or key(different) != key(asked)
        if all(name.isascii() and name.isprintable() and not set(name) & set('"\\') for name in one):
            names = list(one)
            dice.shuffle(names)
            moved = {name: one[name] for name in names} | {"user": "someone", "stream": True}
            assert key(json.dumps(moved, separators=blanks, ensure_ascii=False).encode()) == key(asked)


@pytest.mark.parametrize(
    "doubled", ['{"a":1,"a":2}', '{"a":2,"b":3,"a":2}', '{"a": 1,"a": 2}', '{"a":1,"\\u0061":2}', '{"ab":1, "c":2,"ab":1}']
)
def test_a_field_given_twice_makes_a_body_like_no_other(doubled: str) -> None:
    body = doubled.encode()
    fields = fields_of(body)
    assert fields is not None and not usual(fields, body)
    single = json.dumps(json.loads(body), separators=(",", ":")).encode()
    assert key(body) != key(single)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ('{"temperature":0}', True),
        ('{"temperature":0.0,"n":1}', True),
        ('{"temperature":0e3,"n":null}', True),
        ('{"temperature":-0.00}', True),
        ('{"temperature":0.01}', False),
        ('{"temperature":"0"}', False),
        ('{"temperature":null}', False),
        ('{"temperature":0,"n":2}', False),
        ('{"seed":1}', False),
    ],
)
def test_what_is_deterministic(body: str, answer: bool) -> None:
    fields = fields_of(body.encode())
    assert fields is not None and deterministic(fields) is answer
    assert perhaps_deterministic(body.encode()) or not answer
    nested = body.replace('{"', '{"tools":[{"temperature" : 1}],"', 1)
    assert perhaps_deterministic(nested.encode()) or not answer
