"""Whatever identical requests, their clients and the model server do: one call at a time, a true answer for each, one record for each."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from functools import partial
from math import inf
from time import monotonic
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hx_gateway.config.load import load_text
from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.dataplane.flight import Flight, Follower
from hx_gateway.gateway import Gateway
from hx_gateway.ledger.pricing import worked

EVENTS = [(b"content-type", b"text/event-stream")]
CONFIG = """
endpoints: {{one: {{url: "http://127.0.0.1:1", provider: openai, discover: false}}}}
models: {{solo: {{endpoint: one}}}}
cache: {{enabled: true, max_entry_bytes: {most}, max_bytes: {all}}}
http: {{heartbeat_seconds: 5, max_response_bytes: 8192}}
performance: {{max_concurrent_requests: 100}}
load_balancer: {{max_attempts: 1, circuit_breaker_threshold: 1000000}}
"""
HEAD = {"id": "x", "created": 1, "model": "solo"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def said(text: str) -> list[str]:
    """The pieces of the only answer there is to a text."""
    return ["one ", "two ", text * (3000 if text == "long" else 1)]


def event(choices: list[Any], usage: Any = None) -> bytes:
    return b"data: " + json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": choices, "usage": usage}).encode() + b"\n\n"


class Client:
    """The client's side, strict about what it is told and when."""

    def __init__(self, form: int) -> None:
        self.form = form
        self.status = 0
        self.lines: dict[str, str] = {}
        self.body = b""
        self.over = self.paused = self.left = False
        self.strict = True  # told nothing more while it is paused

    def _head(self, exchange: Exchange, status: int, lines: bytes) -> None:
        assert not self.status and not self.left
        self.status = status
        pairs = [line.split(": ", 1) for line in lines.decode().removesuffix("\r\n").split("\r\n")]
        self.lines = dict(pairs)  # type: ignore[arg-type]
        assert len(self.lines) == len(pairs), f"a header twice: {lines!r}"
        assert self.lines["x-request-id"] == exchange.id, "its own, not the one of another"

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        self._head(exchange, status, headers)
        self.body, self.over = body, True

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        assert self.form, "it wants it whole"
        self._head(exchange, status, headers)

    def write(self, data: bytes) -> None:
        assert self.status and not self.over and not self.left and not (self.paused and self.strict)
        self.body += data

    def end(self, data: bytes = b"") -> None:
        self.write(data)
        self.over = True

    def abort(self) -> None:
        raise AssertionError("nothing aborts here")

    def truth(self, text: str) -> bool:
        """Whether it got the whole, true answer in its form; False for an error."""
        whole = "".join(said(text))
        if self.status != 200:
            assert "error" in json.loads(self.body) and self.lines["content-type"] == "application/json"
            return False
        if not self.form:
            assert self.lines["content-type"] == "application/json"
            answer = json.loads(self.body)
            assert answer["choices"][0]["message"]["content"] == whole and answer["choices"][0]["finish_reason"] == "stop"
            assert answer["usage"] == USAGE and answer["object"] == "chat.completion"
            return True
        assert self.lines["content-type"].startswith("text/event-stream")
        parts = [part.removeprefix(b"data: ") for part in self.body.split(b"\n\n") if part and part[:1] != b":"]
        if parts[-1] != b"[DONE]":
            assert "error" in json.loads(parts[-1])
            return False
        chunks = [json.loads(part) for part in parts[:-1]]
        assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == whole
        assert [c["usage"] for c in chunks if c.get("usage")] == ([USAGE] if self.form == 2 else [])
        assert not any("usage" in c for c in chunks) or self.form == 2
        return True


class Call:
    """A request at the model server."""

    def __init__(self, outgoing: Outgoing, handler: Any) -> None:
        self.text: str = json.loads(outgoing.body)["messages"][0]["content"]
        self.stream, self.handler = outgoing.stream, handler
        self.told = 0
        self.begun = self.over = self.paused = False
        assert not self.stream or json.loads(outgoing.body)["stream_options"]["include_usage"]

    def cancel(self) -> None:
        self.over = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def piece(self) -> None:
        """Tell a little more of a stream."""
        if not self.begun:
            assert self.handler.began(200, EVENTS)
            self.begun = True
        pieces = said(self.text)
        if self.told < len(pieces):
            self.handler.received(
                event([{"index": 0, "delta": {"role": "assistant", "content": pieces[self.told]}, "finish_reason": None}])
            )
            self.told += 1

    def finish(self) -> None:
        """Tell all the rest."""
        if not self.stream:
            self.over = True
            message = {"role": "assistant", "content": "".join(said(self.text))}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.handler.answered(200, [], json.dumps({**HEAD, "object": "chat.completion", "choices": choices, "usage": USAGE}).encode())
            return
        while self.told < len(said(self.text)) and not self.over:
            self.piece()
        self.over = True
        last = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
        self.handler.received(last + event([], USAGE) + b"data: [DONE]\n\n")

    def fail(self) -> None:
        """Break."""
        self.over = True
        self.handler.failed(errors.BAD_RESPONSE, "it broke")


class Pool:
    """Keeps calls until the test says what becomes of them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def send(self, outgoing: Outgoing, handler: Any, total_at_s: float = inf, first_byte_s: float = 0.0) -> None:
        handler.call = call = Call(outgoing, handler)
        self.calls.append(call)

    def live(self) -> list[Call]:
        return [call for call in self.calls if not call.over]


class Watcher:
    """Counts ends, and what was paid for."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.paid = 0

    def attempted(self, exchange: Exchange, failure: Any) -> None:
        """Not counted."""

    def finished(self, exchange: Exchange) -> None:
        assert exchange.outcome is not None or exchange.status == 200
        self.ended[exchange.id] += 1
        if worked(exchange) and exchange.outcome is None:
            self.paid += 1


class Skies(RuleBasedStateMachine):
    """A gateway without sockets."""

    def __init__(self, most: int = 4096) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        loaded = load_text(CONFIG.format(most=most, all=40_000), "gateway.yaml", {}).config
        assert loaded is not None
        self.config = loaded
        self.gateway = Gateway(loaded)
        self.watcher = Watcher()
        self.proxy = self.gateway.proxy
        self.gateway.observe(self.watcher)
        (self.endpoint,) = self.gateway.registry.endpoints.values()
        self.pool = self.endpoint.pool = Pool()
        self.asked: list[tuple[Exchange, Client, str]] = []

    def do(self, step: Any) -> None:
        """Within a running loop."""

        async def within() -> None:
            step()
            await asyncio.sleep(0)

        self.loop.run_until_complete(within())

    def waiting(self) -> list[tuple[Exchange, Client, str]]:
        return [one for one in self.asked if not one[1].over and not one[1].left]

    @rule(
        text=st.sampled_from(("a", "b", "long")), form=st.integers(0, 2), wish=st.sampled_from((b"", b"", b"", b"refresh", b"on", b"off"))
    )
    def ask(self, text: str, form: int, wish: bytes = b"") -> None:
        body: dict[str, Any] = {"model": "solo", "messages": [{"role": "user", "content": text}], "temperature": 0}
        if form:
            body |= {"stream": True, **({"stream_options": {"include_usage": True}} if form == 2 else {})}
        client = Client(form)
        client.strict = wish != b"off"
        notes = {b"x-hx-cache": wish} if wish else {}
        exchange = Exchange(
            f"id-{len(self.asked)}", CHAT, b"POST", b"/v1/chat/completions", notes, [], json.dumps(body).encode(), client, monotonic()
        )
        self.asked.append((exchange, client, text))
        before = [call for call in self.pool.live() if call.text == text]
        known = len(self.gateway.backing.shelf)
        self.do(partial(self.gateway.dispatch, exchange))
        same = [other for other, _, known_text in self.asked[:-1] if known_text == text and isinstance(other.owner, Follower)]
        if not wish and before and same and text != "long" and not any(b"refresh" in other.notes.values() for other, _, _ in self.asked):
            assert client.over or len([call for call in self.pool.live() if call.text == text]) == len(before), "another call"
        if client.over:
            assert client.lines["x-hx-cache"] == "hit" and known

    @precondition(lambda self: self.waiting())
    @rule(number=st.integers(0, 100))
    def leave(self, number: int) -> None:
        waiting = self.waiting()
        exchange, client, _ = waiting[number % len(waiting)]
        assert exchange.owner is not None
        client.left = True
        self.do(exchange.owner.client_gone)

    @precondition(lambda self: self.waiting())
    @rule(number=st.integers(0, 100))
    def read_slowly_or_go_on(self, number: int) -> None:
        waiting = self.waiting()
        exchange, client, _ = waiting[number % len(waiting)]
        assert exchange.owner is not None
        client.paused = not client.paused and client.status == 200
        self.do(exchange.owner.pause if client.paused else exchange.owner.resume)

    @precondition(lambda self: self.pool.live())
    @rule(number=st.integers(0, 100), what=st.sampled_from(("piece", "piece", "finish", "fail")))
    def server(self, number: int, what: str) -> None:
        live = self.pool.live()
        call = live[number % len(live)]
        if what != "piece" or call.stream:
            self.do(getattr(call, what))

    @rule()
    def heartbeats(self) -> None:
        # A strict client would be told more than it reads: the transport buffers a comment.
        if not any(client.paused for _, client, _ in self.waiting()):
            self.do(lambda: self.proxy.sweep(monotonic() + 6.0))

    @rule()
    def reload(self) -> None:
        self.do(lambda: self.gateway.reload(self.config))
        self.endpoint.pool = self.pool

    @invariant()
    def all_is_accounted_for(self) -> None:
        shelf = self.gateway.backing.shelf
        assert shelf.bytes == sum(recording.size for recording, _ in shelf._held.values()) <= shelf.max_bytes
        ended = {exchange.id for exchange, client, _ in self.asked if client.over or client.left}
        assert self.watcher.ended == Counter(dict.fromkeys(ended, 1)), "one record for each, and no sooner"
        live = self.pool.live()
        assert self.proxy.in_flight == self.endpoint.in_flight == len(live)
        texts = Counter(text for _, _, text in self.waiting())
        assert all(texts[call.text] for call in live), "nobody waits for it, and it goes on"
        for exchange, client, text in self.waiting():
            assert exchange.owner is not None
            assert client.paused or texts[text] and any(call.text == text for call in live), "it waits for nothing"

    def teardown(self) -> None:
        for call in self.pool.live():
            self.do(call.finish)
        for exchange, client, _ in self.waiting():
            if client.paused:
                client.paused = False
                assert exchange.owner is not None
                self.do(exchange.owner.resume)
        assert not self.waiting() and not self.pool.live()
        self.all_is_accounted_for()
        for _, client, text in self.asked:
            if client.over:
                client.truth(text)
        limiter = self.gateway.backing.metering.limiter
        assert limiter is not None
        self.loop.close()


Skies.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
test_flights = Skies.TestCase


@pytest.fixture
def skies() -> Any:
    made = Skies()
    yield made
    made.teardown()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_one_call_for_all_who_ask_the_same(skies: Skies, first: int) -> None:
    for form in (first, 0, 1, 2, 0):
        skies.ask("a", form)
    assert len(skies.pool.calls) == 1
    skies.do(skies.pool.calls[0].finish)
    assert [client.truth("a") for _, client, _ in skies.asked] == [True] * 5
    assert [client.lines["x-hx-cache"] for _, client, _ in skies.asked] == ["miss", "shared", "shared", "shared", "shared"]
    assert [exchange.cached for exchange, _, _ in skies.asked] == ["", "shared", "shared", "shared", "shared"]
    assert skies.watcher.paid == 1
    skies.ask("a", 0)
    exchange, client, _ = skies.asked[-1]
    assert client.lines["x-hx-cache"] == exchange.cached == "hit" and client.lines["age"] == "0" and client.truth("a")
    assert exchange.prompt_tokens == 5 and exchange.completion_tokens == 3 and not worked(exchange)


def test_who_is_left_is_charged(skies: Skies) -> None:
    for _ in range(3):
        skies.ask("a", 1)
    skies.do(skies.pool.calls[0].piece)
    skies.leave(0)
    assert skies.pool.live() and not worked(skies.asked[0][0]), "it left before anyone knew what it came to"
    skies.do(skies.pool.calls[0].finish)
    assert [exchange.cached for exchange, _, _ in skies.asked] == ["", "", "shared"] and skies.watcher.paid == 1
    assert skies.asked[1][0].attempts == 1 and skies.asked[2][0].attempts == 0


def test_the_last_to_leave_ends_the_call_and_is_charged(skies: Skies) -> None:
    for _ in range(2):
        skies.ask("a", 1)
    skies.do(skies.pool.calls[0].piece)
    skies.leave(1)
    assert skies.pool.live()
    skies.leave(0)
    assert not skies.pool.live() and worked(skies.asked[0][0]) and not worked(skies.asked[1][0])
    skies.ask("a", 1)
    assert len(skies.pool.calls) == 2, "what was cut off is no answer"


@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_reaches_all_and_is_not_kept(skies: Skies, begun: bool) -> None:
    for form in (1, 0, 2):
        skies.ask("a", form)
    if begun:
        skies.do(skies.pool.calls[0].piece)
    skies.do(skies.pool.calls[0].fail)
    assert [client.truth("a") for _, client, _ in skies.asked] == [False] * 3
    assert [client.status for _, client, _ in skies.asked] == ([200, 502, 200] if begun else [502] * 3)
    code = "stream_broken" if begun else "bad_upstream_response"
    assert all(code.encode() in client.body for _, client, _ in skies.asked)
    assert not len(skies.gateway.backing.shelf)
    skies.ask("a", 0)
    assert len(skies.pool.calls) == 2


def test_a_slow_client_holds_up_nobody_until_too_much_is_held_for_it(skies: Skies) -> None:
    for _ in range(2):
        skies.ask("long", 1)
    call = skies.pool.calls[0]
    skies.do(call.piece)
    skies.read_slowly_or_go_on(0)
    skies.do(call.piece)
    assert not call.paused and b"two" in skies.asked[1][1].body and b"two" not in skies.asked[0][1].body
    skies.do(call.piece)
    assert call.paused, "more than max_response_bytes wait for the slow one"
    skies.ask("long", 1)
    assert len(skies.pool.calls) == 2, "too long to be kept is too long to be joined"
    skies.read_slowly_or_go_on(0)
    assert not call.paused and skies.asked[0][1].body == skies.asked[1][1].body
    skies.do(call.finish)
    assert skies.asked[0][1].truth("long") and skies.asked[1][1].truth("long")


def test_all_slow_clients_hold_up_the_server(skies: Skies) -> None:
    for _ in range(2):
        skies.ask("a", 1)
    call = skies.pool.calls[0]
    skies.do(call.piece)
    skies.read_slowly_or_go_on(0)
    skies.read_slowly_or_go_on(1)
    assert call.paused
    skies.leave(1)
    assert call.paused
    skies.ask("a", 1)
    assert not call.paused and skies.asked[-1][1].body, "who comes later is told at once what is known"


def test_a_client_with_its_own_deadline_flies_alone(skies: Skies) -> None:
    skies.ask("a", 0)
    exchange = Exchange("own", CHAT, b"POST", b"/", {b"x-hx-timeout-ms": b"50"}, [], skies.asked[0][0].body, Client(0), monotonic())
    skies.asked.append((exchange, exchange.client, "a"))  # type: ignore[arg-type]
    skies.do(partial(skies.gateway.dispatch, exchange))
    assert len(skies.pool.calls) == 2


def test_nothing_of_a_flight_is_left_to_the_collector(skies: Skies) -> None:
    gc.collect()
    gc.disable()
    try:
        for form in (0, 1, 2):
            skies.ask("a", form, b"refresh")
            skies.do(skies.pool.calls[-1].finish)
            skies.ask("b", form)
            skies.leave(0)
        skies.pool.calls.clear()
        assert not [found for found in gc.get_objects() if isinstance(found, Flight | Follower)]
    finally:
        gc.enable()
