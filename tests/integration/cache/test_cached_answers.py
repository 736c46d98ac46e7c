"""With the cache on every client gets what it would get with it off; what is told of it, counted and charged is true."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults.asking import chat, opened
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import Answer, Client, ask, events, one, request
from tests.support.background import Scripted, llamacpp
from tests.support.engines import Valkey
from tests.support.gateway import KEY, GatewayProcess
from tests.unit.ledger.records import found

from hx_gateway.ledger.record import UsageRecord
from hx_gateway.testing.backend import Backend

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: {provider}}}}}
models: {{solo: {{endpoint: one, upstream_model: "tiny:1b", cost_per_request: 1}}}}
load_balancer: {{health_check_interval: 3600}}
keys: {{api_keys: [{{name: ann, key: the-key-of-ann}}, {{name: bob, key: the-key-of-bob}}]}}
"""
ON = "cache: {{enabled: true{more}}}\n"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}


@dataclass
class House:
    """A gateway with its cache on, one with it off, and the model server behind both."""

    on: GatewayProcess
    off: GatewayProcess
    server: Scripted
    backend: Backend
    journal: Path
    kept: dict[str, bool] = field(default_factory=dict)  # requests, and whether each was first asked for as a stream

    def calls(self) -> int:
        """Completions and embeddings that the model server was asked for."""
        return sum(received.method == "POST" and "show" not in received.path for received in self.backend.requests)

    def record(self, answer: Answer) -> UsageRecord:
        """What the ledger says of an answer."""
        (record,) = [record for record in found(self.journal) if record.id == answer.header("x-request-id")]
        return record


@pytest.fixture(scope="module", params=["openai", "ollama"])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    state = tmp_path_factory.mktemp("state")
    server = Scripted(request.param)
    with server as backend:
        config = CONFIG.format(url=backend.url, provider=request.param)
        with (
            GatewayProcess(config + ON.format(more=""), {"XDG_STATE_HOME": str(state)}) as on,
            GatewayProcess(config, {"XDG_STATE_HOME": str(tmp_path_factory.mktemp("other"))}) as off,
        ):
            yield House(on, off, server, backend, state / "hx-gateway" / "journal")
            assert "Traceback" not in on.log, on.log[-4000:]


CONTENTS = st.sampled_from(("ping", "Count to 4", "Say: ü → 字", 'Call f with {"x": 1}', "Return exactly the text: a\n\nb", ""))
QUESTIONS = st.fixed_dictionaries(
    {"content": CONTENTS, "form": st.integers(0, 2), "text": st.booleans()},
    optional={"max_tokens": st.integers(1, 5), "tools": st.just([TOOL]), "temperature": st.sampled_from((0, 0.0)), "stop": st.just("3")},
)


def body_of(question: dict[str, Any]) -> bytes:
    more = {name: value for name, value in question.items() if name not in ("content", "form", "text")}
    body: dict[str, Any] = {"model": "solo", "temperature": 0, **more}
    if question["text"]:
        body["prompt"] = question["content"] or "x"
        body.pop("tools", None)
    else:
        body["messages"] = [{"role": "user", "content": question["content"]}]
    if question["form"]:
        body |= {"stream": True, **({"stream_options": {"include_usage": True}} if question["form"] == 2 else {})}
    return json.dumps(body).encode()


def without_ids(body: bytes) -> bytes:
    return re.sub(rb'"(id|created)": ?("[^"]*"|\d+)', b'"\\1":0', body)


def told(body: bytes, streamed: bool, text: bool) -> tuple[Any, ...]:
    """What an answer comes to: words, thoughts, calls, why it ended, usage."""
    if streamed:
        chunks = events(body)
        assert chunks.pop() == "[DONE]"
    else:
        chunks = [json.loads(body)]
    words, thoughts, finish, usage = "", "", None, None
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            finish = choice.get("finish_reason") or finish
            said = {"content": choice.get("text")} if text else choice.get("delta") or choice.get("message") or {}
            words += said.get("content") or ""
            thoughts += said.get("reasoning_content") or ""
            for at, call in enumerate(said.get("tool_calls") or ()):
                kept = calls.setdefault(call.get("index", at), ["", ""])
                kept[0] += call["function"].get("name") or ""
                kept[1] += call["function"].get("arguments") or ""
    return words, thoughts, finish, usage, sorted((at, *kept) for at, kept in calls.items())


@settings(max_examples=40, deadline=None)
@given(st.lists(QUESTIONS, min_size=1, max_size=6))
def test_any_sequence_of_requests_is_answered_as_without_a_cache(house: House, questions: list[dict[str, Any]]) -> None:
    for question in questions:
        body, path = body_of(question), "/v1/completions" if question["text"] else "/v1/chat/completions"
        got, expected = (one(gateway.port, request(body, path=path)) for gateway in (house.on, house.off))
        assert got.status == expected.status == 200 and got.whole
        assert got.header("content-type") == expected.header("content-type")
        streamed, text = question["form"] > 0, question["text"]
        assert told(got.body, streamed, text) == told(expected.body, streamed, text)
        same = json.dumps(json.loads(body_of({**question, "form": 0})), sort_keys=True)  # the order of fields does not matter
        if house.kept.setdefault(same, streamed) is streamed:
            assert without_ids(got.body) == without_ids(expected.body), "not byte for byte"


def test_headers_age_and_record(house: House) -> None:
    house.server.run(lambda: asyncio.sleep(0, house.backend.forget()))
    body = ask("Count to 7", model="solo", temperature=0)
    first, second = (one(house.on.port, request(body, f"x-request-id: mine-{number}")) for number in (1, 2))
    assert (first.header("x-hx-cache"), first.header("age"), first.header("x-hx-endpoint")) == ("miss", None, "one")
    assert (second.header("x-hx-cache"), second.header("x-hx-model"), second.header("x-hx-endpoint")) == ("hit", "solo", None)
    assert int(second.header("age") or "-1") >= 0 and second.header("x-request-id") == "mine-2"
    assert first.body == second.body and house.calls() == 1


def test_a_hit_costs_nothing_and_says_so(house: House) -> None:
    first, second = (chat(house.on.port, "Count to 8", temperature=0) for _ in range(2))
    paid, free = house.record(first), house.record(second)
    assert (paid.cached, free.cached) == ("", "hit") and paid.cost >= 1 and free.cost == free.engine_ms == 0
    assert (free.prompt_tokens, free.completion_tokens) == (paid.prompt_tokens, paid.completion_tokens)
    assert (free.outcome, free.status, free.attempts, free.endpoint) == ("ok", 200, 0, "")
    metrics = one(house.on.port, request(b"", method="GET", path="/metrics")).body.decode()
    assert 'hx_gateway_cache_requests_total{result="hit",route="chat"}' in metrics
    assert re.search(r"^hx_gateway_cache_bytes [1-9]", metrics, re.MULTILINE)


@pytest.mark.parametrize(
    ("lines", "more", "kept"),
    [
        ((), {}, False),
        ((), {"temperature": 0.5}, False),
        ((), {"seed": 3}, False),
        ((), {"temperature": 0, "n": 2}, False),
        (("x-hx-cache: on",), {"temperature": 0.5}, True),
        (("X-HX-Cache: On",), {}, True),
        (("x-hx-cache: off",), {"temperature": 0}, False),
        ((), {"temperature": 0}, True),
    ],
)
def test_what_is_kept(house: House, lines: tuple[str, ...], more: dict[str, Any], kept: bool) -> None:
    body = ask(f"Say what is kept {lines} {more}", model="solo", **more)
    answers = [one(house.on.port, request(body, *lines)) for _ in range(2)]
    assert [answer.header("x-hx-cache") for answer in answers] == (["miss", "hit"] if kept else ["off", "off"])


def test_refresh_asks_again_and_keeps_the_new_answer(house: House) -> None:
    body = ask("Say fresh", model="solo", temperature=0)
    found = [one(house.on.port, request(body, *lines)) for lines in ((), ("x-hx-cache: refresh",), ())]
    assert [answer.header("x-hx-cache") for answer in found] == ["miss", "miss", "hit"]
    assert found[2].body == found[1].body
    wrong = one(house.on.port, request(body, "x-hx-cache: perhaps"))
    assert wrong.status == 400 and b"X-HX-Cache" in wrong.body


def test_each_key_has_answers_of_its_own(house: House) -> None:
    body = ask("Say mine", model="solo", temperature=0)
    seen = [
        one(house.on.port, request(body, key=key)).header("x-hx-cache") for key in ("the-key-of-ann", "the-key-of-bob", "the-key-of-ann")
    ]
    assert seen == ["miss", "miss", "hit"]


@pytest.mark.parametrize(
    "kind", ["status", "truncated", "garbage_events", "error_event", "garbage_json", "empty", "error_200", "reset_body", "short_length"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_but_complete_good_answers_is_kept(house: House, kind: str, stream: bool) -> None:
    def let(fault: str | None) -> None:
        async def change() -> None:
            house.backend.fault = fault  # type: ignore[assignment]

        house.server.run(change)

    content = f"Say {kind} {stream}"
    let(kind)
    try:
        chat(house.on.port, content, stream=stream, temperature=0)
    finally:
        let(None)
    good, expected = (chat(gateway.port, content, stream=stream, temperature=0) for gateway in (house.on, house.off))
    assert good.status == 200 and told(good.body, stream, False) == told(expected.body, stream, False)


# Embeddings


def embed(gateway: GatewayProcess, items: Any, *lines: str, **more: Any) -> Answer:
    return one(gateway.port, request(json.dumps({"model": "solo", "input": items, **more}).encode(), *lines, path="/v1/embeddings"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), st.booleans()), min_size=1, max_size=4))
def test_any_sequence_of_batches_is_answered_as_without_a_cache(house: House, batches: list[tuple[list[str], bool]]) -> None:
    for items, as_base64 in batches:
        more = {"encoding_format": "base64"} if as_base64 else {}
        got, expected = embed(house.on, items, **more), embed(house.off, items, **more)
        assert json.loads(got.body)["data"] == json.loads(expected.body)["data"]
        assert json.loads(got.body)["model"] == "solo"


def test_only_what_is_missing_is_asked_for(house: House) -> None:
    house.server.run(lambda: asyncio.sleep(0, house.backend.forget()))
    first = embed(house.on, ["new one", "new two"])
    assert (first.header("x-hx-cache"), first.header("x-hx-cache-items")) == ("miss", "0/2")
    second = embed(house.on, ["new three", "new two", "new three", "new one"])
    assert (second.header("x-hx-cache"), second.header("x-hx-cache-items")) == ("miss", "2/4")
    sent = json.loads(house.backend.requests[-1].body)
    assert sent["input"] == ["new three"] and house.calls() == 2
    tokens = json.loads(embed(house.off, ["new three"]).body)["usage"]
    assert json.loads(second.body)["usage"] == tokens, "what was read for it"
    data = json.loads(second.body)["data"]
    assert [item["index"] for item in data] == [0, 1, 2, 3] and data[0]["embedding"] == data[2]["embedding"]
    calls = house.calls()
    third = embed(house.on, "new three")
    assert (third.header("x-hx-cache"), third.header("x-hx-cache-items"), house.calls()) == ("hit", "1/1", calls)
    assert json.loads(third.body)["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert house.record(third).cached == "hit" and house.record(third).cost == 0
    assert embed(house.on, "new three", dimensions=4).header("x-hx-cache") == "miss", "other vectors"
    assert embed(house.on, "new three", "x-hx-cache: off").header("x-hx-cache") == "off"
    assert embed(house.on, "new three", "x-hx-cache: refresh").header("x-hx-cache") == "miss"


# Together with others


def test_identical_requests_at_the_same_time_share_one_call(house: House) -> None:
    async def slow(seconds: float) -> None:
        house.backend.forget()
        house.backend.first_token_s = seconds

    house.server.run(lambda: slow(2.5))
    clients = [opened(house.on.port, "Count to 9", temperature=0) for _ in range(4)]
    for client in clients[2:]:
        client.leave()
    whole = Client(house.on.port)
    whole.send(request(ask("Count to 9", model="solo", temperature=0)))
    answers = [clients[0].answer(), clients[1].answer(), whole.answer()]
    house.server.run(lambda: slow(0.0))
    assert {told(answer.body, index < 2, False)[0] for index, answer in enumerate(answers)} == {"1 2 3 4 5 6 7 8 9"}
    assert sorted(answer.header("x-hx-cache") or "" for answer in answers) == ["miss", "shared", "shared"]
    records = [house.record(answer) for answer in answers]
    assert sorted(record.cached for record in records) == ["", "shared", "shared"] and sum(record.cost > 0 for record in records) == 1
    for client in (*clients, whole):
        client.leave()


def test_a_key_that_may_use_nothing_gets_nothing_from_the_cache() -> None:
    with Scripted() as backend:
        config = CONFIG.format(url=backend.url, provider="openai").replace("key: the-key-of-bob", "key: the-key-of-bob, models: [other]")
        config = config.replace("models: {solo:", "models: {other: {endpoint: one}, solo:") + ON.format(more=", scope: shared")
        with GatewayProcess(config) as gateway:
            body = ask("Say ours", model="solo", temperature=0)
            seen = [one(gateway.port, request(body, key=key)) for key in ("the-key-of-ann", KEY, "the-key-of-bob")]
            assert [answer.header("x-hx-cache") for answer in seen[:2]] == ["miss", "hit"]
            assert seen[2].status == 403


def test_gateways_share_through_redis_and_do_without_it() -> None:
    with Scripted() as backend, Valkey() as redis:
        config = CONFIG.format(url=backend.url, provider="openai") + ON.format(more="") + f'storage: {{redis_url: "{redis.url}"}}\n'
        with GatewayProcess(config) as one_gateway, GatewayProcess(config) as other:
            first = chat(one_gateway.port, "Count to 5", temperature=0)
            embedded = embed(one_gateway, ["a", "b"])
            assert embedded.header("x-hx-cache") == "miss"

            def shared() -> bool:
                again = chat(other.port, "Count to 5", stream=True, temperature=0)
                assert told(again.body, True, False)[0] == "1 2 3 4 5"
                return again.header("x-hx-cache") == "hit"

            wait_until(lambda: embed(other, ["b", "a"]).header("x-hx-cache") == "hit")
            wait_until(shared)
            assert chat(other.port, "Count to 5", temperature=0).content == first.content
            redis.hang()
            for number in range(20):
                answer = chat(other.port, f"Count to {number + 10}", temperature=0)
                assert answer.status == 200 and answer.header("x-hx-cache") == "miss"
            assert chat(other.port, "Count to 10", temperature=0).header("x-hx-cache") == "hit"
            redis.resume()
            redis.stop()
            assert chat(other.port, "Say no more", temperature=0).status == 200
            assert "Traceback" not in other.log + one_gateway.log


def test_real_answers_of_llamacpp(tiny_model: Path) -> None:
    with llamacpp(tiny_model) as url:
        config = f'models: {{tiny: {{endpoint: "{url}", provider: openai}}}}\ncache: {{enabled: true}}\n'
        with GatewayProcess(config) as gateway:
            more = {"model": "tiny", "temperature": 0, "max_tokens": 10}
            for content, order in (("Return exactly the text: HX-OK", (True, False)), ("Return exactly the text: PONG", (False, True))):
                made = [chat(gateway.port, content, stream=stream, **more) for stream in order * 2]
                assert [answer.header("x-hx-cache") for answer in made] == ["miss", "hit", "hit", "hit"], made[0].body
                spoken = {told(answer.body, stream, False)[:3] for answer, stream in zip(made, order * 2, strict=True)}
                assert len(spoken) == 1 and spoken.pop()[0]
