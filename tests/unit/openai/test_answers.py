"""Whole answers: checked, counted and renamed; vectors in every shape, and the short way through long ones."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hx_gateway.core.context import EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.openai import answers
from hx_gateway.testing.factories import make_exchange

CHAT = {"id": "x", "object": "chat.completion", "model": "theirs", "choices": [{"index": 0, "message": {"content": "hi", "role": "assistant"}, "finish_reason": "stop"}]}  # fmt: skip
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def asked() -> Any:
    return make_exchange({"model": "ours", "messages": []})


def asked_vectors(**more: Any) -> Any:
    return make_exchange({"model": "ours", "input": "a", **more}, route=EMBEDDINGS)


def vectors(*rows: Any, **more: Any) -> bytes:
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return json.dumps(
        {"object": "list", "data": data, "model": "theirs", "usage": {"prompt_tokens": 3, "total_tokens": 3}, **more}
    ).encode()


@pytest.mark.parametrize("compact", [False, True])
def test_a_good_answer_is_renamed_and_counted(compact: bool) -> None:
    exchange = asked()
    whole = {**CHAT, "usage": USAGE, "odd": '"model": "x"'}
    body = answers.checked(exchange, json.dumps(whole, separators=(",", ":") if compact else None).encode())
    assert json.loads(body) == {**whole, "model": "ours"}
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (5, 2)


def test_an_answer_with_the_right_name_is_not_touched() -> None:
    body = b' {"model" : "ours", "choices":[ {"a" : 1.0} ] } '
    assert answers.checked(asked(), body) is body


@pytest.mark.parametrize("model", ['a"b', "é", "a\\b", "x" * 500])
def test_names_that_need_escapes(model: str) -> None:
    body = json.dumps({**CHAT, "model": model, "choices": [{"message": {"content": '"model"'}}]}).encode()
    assert json.loads(answers.checked(asked(), body))["model"] == "ours"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_upstream_response"), (b"null", "bad_upstream_response"), (b"[]", "bad_upstream_response"), (b"{}", "bad_upstream_response"),
        (b'{"choices": []}', "bad_upstream_response"), (b'{"choices": null}', "bad_upstream_response"), (b'{"choices": [{}]', "bad_upstream_response"),
        (b"<html>", "bad_upstream_response"), (b'{"choices": 5}', "bad_upstream_response"), (b"[" * 100_000, "bad_upstream_response"),
        (b'{"error": {"message": "no"}}', "upstream_error"), (b'{"error": "no", "choices": [{}]}', "upstream_error"), (b'{"error": {"x": []}}', "upstream_error"),
    ],
)  # fmt: skip
def test_no_success_without_an_answer(body: bytes, code: str) -> None:
    with pytest.raises(Failure) as failure:
        answers.checked(asked(), body)
    assert (failure.value.kind.code, failure.value.status) == (code, 502)


def test_vectors_pass_as_they_are() -> None:
    exchange = asked_vectors()
    body = answers.checked_embeddings(exchange, vectors([0.5, -1], [1e-9, 2]), 0, False)
    assert json.loads(body) == {**json.loads(vectors([0.5, -1], [1e-9, 2])), "model": "ours"}
    assert exchange.prompt_tokens == 3 and exchange.completion_tokens == -1


_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.lists(_floats, min_size=1, max_size=90), min_size=1, max_size=3), st.booleans())
def test_base64_both_ways(rows: list[list[float]], given_base64: bool) -> None:
    """The client gets little-endian 32-bit floats, in order, whatever the server sent."""
    sent = [base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode() if given_base64 else row for row in rows]
    encoded = json.loads(answers.checked_embeddings(asked_vectors(encoding_format="base64"), vectors(*sent), 0, True))
    got = [
        list(struct.unpack(f"<{len(row)}f", base64.b64decode(item["embedding"]))) for row, item in zip(rows, encoded["data"], strict=True)
    ]
    assert got == rows
    floats = json.loads(answers.checked_embeddings(asked_vectors(), vectors(*sent), 0, False))
    assert [item["embedding"] for item in floats["data"]] == rows
    assert floats["model"] == encoded["model"] == "ours"


LONG = [0.123456789] * 100


@pytest.mark.parametrize(
    "rows",
    [
        ([],), ("",), (None,), ([[0.1, 0.2], [0.3, 0.4]],), ([LONG, LONG],), (LONG, []), (LONG, None), (LONG, [LONG]), ({"a": 1},), (5,), ([0.1], []), ([LONG], LONG),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_base64", [False, True])
def test_empty_nested_and_missing_vectors_are_no_answers(rows: tuple[Any, ...], as_base64: bool) -> None:
    with pytest.raises(Failure) as failure:
        answers.checked_embeddings(asked_vectors(), vectors(*rows), 0, as_base64)
    assert failure.value.kind.code == "bad_upstream_response"


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'{"data": []}', b'{"data": null}', b'{"data": [{}]}', b'{"data": [5]}', vectors(LONG)[:-20], vectors(LONG, data=None)],
)
def test_what_is_no_list_of_vectors(body: bytes) -> None:
    with pytest.raises(Failure):
        answers.checked_embeddings(asked_vectors(), body, 0, False)


def test_the_length_is_checked_where_it_is_known() -> None:
    answers.checked_embeddings(asked_vectors(), vectors(LONG, LONG), 100, False)
    with pytest.raises(Failure, match="100"):
        answers.checked_embeddings(asked_vectors(), vectors(LONG, LONG[1:]), 100, False)


@pytest.mark.parametrize("text", ["!!!!", "AAA", "AAAAA", "QUJD", "é"])
def test_text_that_is_no_vector(text: str) -> None:
    with pytest.raises(Failure):
        answers.checked_embeddings(asked_vectors(), vectors(text), 0, True)


def test_a_number_beyond_32_bits_is_told() -> None:
    with pytest.raises(Failure, match="32 bits"):
        answers.checked_embeddings(asked_vectors(), vectors([1e300]), 0, True)


_damage = st.sampled_from(
    [b"]", b"[", b"}", b"{", b'"', b"]]", b"[]", b"],", b"null", b"{}", b'"embedding":', b'"embedding":[', b":", b"NaN", b"Infinity"]
)


@settings(max_examples=500)
@given(st.integers(1, 3), st.integers(0, 200), _damage, st.floats(0, 1), st.booleans())
def test_the_short_way_accepts_nothing_that_the_decoder_refuses(
    count: int, length: int, damage: bytes, where: float, replace: bool
) -> None:
    """Long vectors are not read number by number; brackets, braces, quotes and words in the wrong place are still seen."""
    good = vectors(*[[0.125] * length for _ in range(count)])
    at = round(where * len(good))
    body = good[:at] + damage + good[at + (len(damage) if replace else 0) :]
    try:
        skeleton = answers._skeleton(body)
        msgspec.json.decode(skeleton)
    except msgspec.DecodeError:
        return
    msgspec.json.decode(body)


@given(st.integers(0, 3), st.lists(st.integers(0, 300), max_size=4), st.booleans())
def test_the_short_way_keeps_the_structure(decimals: int, lengths: list[int], compact: bool) -> None:
    rows = [[round(index * 0.37, decimals) for index in range(length)] for length in lengths]
    body = json.dumps(json.loads(vectors(*rows)), separators=(",", ":") if compact else None).encode()
    left, right = msgspec.json.decode(answers._skeleton(body)), msgspec.json.decode(body)
    for item in (*left["data"], *right["data"]):
        item["embedding"] = bool(item["embedding"])
    assert left == right


def test_several_answers_become_one_in_order() -> None:
    exchange = asked_vectors()
    body = json.loads(answers.joined(exchange, [vectors([1.0]), vectors([2.0], [3.0]), vectors([4.0])]))
    assert [item["embedding"] for item in body["data"]] == [[1.0], [2.0], [3.0], [4.0]]
    assert [item["index"] for item in body["data"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 9 and exchange.prompt_tokens == 9


@pytest.mark.parametrize("keep_usage", [False, True])
def test_a_whole_answer_as_the_stream_that_was_asked_for(keep_usage: bool) -> None:
    from tests.integration.protocol.wire import events, texts

    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "hi", "tool_calls": calls, "refusal": None}
    whole = {**CHAT, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": USAGE}
    *chunks, done = events(answers.as_stream(json.dumps(whole).encode(), keep_usage))
    assert done == "[DONE]" and texts(chunks) == "hi"
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"]["tool_calls"][0]["index"] == 0
    assert [chunk.get("usage") for chunk in chunks] == ([None, USAGE] if keep_usage else [None])
