"""How long Ollama loaded a model is kept, so that routing learns what a cold model costs."""

from __future__ import annotations

import json

from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
REPLY = {"model": "m", "message": {"role": "assistant", "content": "yes"}, "done": True, "done_reason": "stop", "eval_count": 1}


def test_a_cold_load_is_noted_and_a_warm_one_is_not() -> None:
    for nanoseconds, seconds in ((7_500_000_000, 7.5), (12_000_000, 0.0)):
        exchange = make_exchange(CHAT)
        OllamaProvider().whole(exchange, make_deployment(), json.dumps({**REPLY, "load_duration": nanoseconds}).encode())
        assert exchange.load_s == seconds


def test_in_a_stream_too() -> None:
    exchange = make_exchange({**CHAT, "stream": True})
    reader = OllamaProvider().reader(exchange, make_deployment())
    reader.feed(json.dumps({**REPLY, "load_duration": 3_000_000_000}).encode() + b"\n")
    assert exchange.load_s == 3.0
