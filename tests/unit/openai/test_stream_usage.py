"""Wherever a model server puts the usage of a stream, the client gets it as it asked: in a last chunk without choices, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hx_gateway.openai.sse import Relay
from hx_gateway.testing.factories import make_exchange

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
TEXT_FINISH = {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}
OWN = {"choices": []}
EMPTY_CHOICE = {"choices": [{"index": 0, "delta": {}}]}
EMPTY_TEXT = {"choices": [{"index": 0, "text": "", "finish_reason": None}]}


def sent(*chunks: dict[str, Any], compact: bool) -> bytes:
    separators = (",", ":") if compact else (", ", ": ")
    heads = [{"id": "x", "model": "theirs", **chunk} for chunk in chunks]
    return b"".join(b"data: " + json.dumps(head, separators=separators).encode() + b"\n\n" for head in heads) + b"data: [DONE]\n\n"


def relayed(data: bytes, keep_usage: bool, step: int) -> tuple[list[dict[str, Any]], Any]:
    exchange = make_exchange({"model": "ours", "messages": [], "stream": True}, asked="ours")
    relay = Relay(exchange, keep_usage)
    out = b"".join(relay.feed(data[at : at + step]) for at in range(0, len(data), step)) + relay.finish()
    assert relay.failure is None
    events = out.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]], exchange


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param((PIECE, FINISH, {**OWN, "usage": USAGE}), id="alone"),
        pytest.param((PIECE, {**FINISH, "usage": USAGE}), id="with the finish reason"),
        pytest.param((PIECE, {**TEXT_FINISH, "usage": USAGE}), id="with the finish reason of a text"),
        pytest.param((PIECE, FINISH, {**EMPTY_CHOICE, "usage": USAGE}), id="with an empty choice"),
        pytest.param((PIECE, FINISH, {**EMPTY_TEXT, "usage": USAGE}), id="with an empty text"),
        pytest.param(({**PIECE, "usage": None}, {**FINISH, "usage": USAGE}, {**OWN, "usage": USAGE}), id="twice"),
    ],
)
def test_usage_has_a_last_chunk_of_its_own_or_none(chunks: tuple[dict[str, Any], ...], compact: bool, step: int) -> None:
    data = sent(*chunks, compact=compact)
    asked, exchange = relayed(data, True, step)
    assert asked[-1]["usage"] == USAGE
    assert asked[-1]["choices"] == []
    assert [chunk.get("usage") for chunk in asked[:-1]] == [None, None]
    assert [chunk["choices"][0]["finish_reason"] for chunk in asked[:-1]] == [None, "stop"]
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (7, 2)

    unasked, exchange = relayed(data, False, step)
    assert all("usage" not in chunk for chunk in unasked)
    assert [chunk["choices"][0]["finish_reason"] for chunk in unasked] == [None, "stop"]
    assert (exchange.prompt_tokens, exchange.completion_tokens) == (7, 2)
    assert {chunk["model"] for chunk in asked + unasked} == {"ours"}
