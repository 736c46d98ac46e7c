"""OpenAI's own Python SDK through the gateway to real llama.cpp servers."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections import Counter

import openai
import pytest
from tests.integration.clients.conftest import LIMITED_KEY, Fleet

ASK = [{"role": "user", "content": "Return exactly the text: HX-OK"}]
COUNT = [{"role": "user", "content": "Count to 20"}]
COUNTED = " ".join(str(number) for number in range(1, 21))
RAW = "<|user|>Return exactly the text: HX-OK<|end|><|assistant|>"
"""The tiny model's own prompt format, for the route without a chat template."""


# Chat


def test_chat(client):
    answer = client.chat.completions.create(model="hx-chat", messages=ASK, max_tokens=10, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == "hx-chat"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "HX-OK", "stop")
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.completion_tokens >= 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("model", ["tiny", "tiny-fast", "vendor/tiny:1m", "hx-chat", "hx-chat-fast"])
def test_every_name_answers_and_is_the_name_of_the_answer(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, temperature=0)
    assert (answer.model, answer.choices[0].message.content) == (model, "HX-OK")


@pytest.mark.parametrize("word", ["HX-OK", "gruen", "a b c", "42", "Zebra!"])
def test_what_is_copied_arrives_as_it_is(client, word):
    messages = [{"role": "user", "content": f"Return exactly the text: {word}"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, temperature=0).choices[0].message.content
    streamed = client.chat.completions.create(model="tiny", messages=messages, temperature=0, stream=True)
    assert whole == "".join(chunk.choices[0].delta.content or "" for chunk in streamed)


def test_length_and_stop(client):
    cut = client.chat.completions.create(model="hx-chat", messages=COUNT, temperature=0, max_tokens=3)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 3
    stopped = client.chat.completions.create(model="hx-chat", messages=COUNT, temperature=0, stop=[" 4"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("1 2 3", "stop")


def test_logprobs(client):
    answer = client.chat.completions.create(model="hx-chat", messages=ASK, temperature=0, logprobs=True, top_logprobs=2)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith("HX-OK")
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in tokens)


def test_a_grammar_holds_a_real_model_to_a_schema(client):
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "seven", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model="hx-chat", messages=ASK, temperature=0, response_format=form)
    assert answer.choices[0].message.content.replace(" ", "") == '{"n":7}'


async def test_chat_with_asyncio(async_client):
    answers = await asyncio.gather(
        *(async_client.chat.completions.create(model="hx-chat", messages=ASK, max_tokens=10, temperature=0) for _ in range(12))
    )
    assert [answer.choices[0].message.content for answer in answers] == ["HX-OK"] * 12


# Streams


def test_stream_without_usage(client):
    chunks = list(client.chat.completions.create(model="hx-chat", messages=COUNT, temperature=0, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk.model for chunk in chunks} == {"hx-chat"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == COUNTED
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len(chunks) > 20
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="hx-chat", messages=COUNT, temperature=0, stream=True, stream_options=options))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    whole = client.chat.completions.create(model="hx-chat", messages=COUNT, temperature=0)
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_many_streams_at_once(async_client):
    async def one(number: int) -> str:
        messages = [{"role": "user", "content": f"Count to {number}"}]
        stream = await async_client.chat.completions.create(model="hx-chat", messages=messages, temperature=0, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    numbers = [5 + index % 15 for index in range(24)]
    assert await asyncio.gather(*map(one, numbers)) == [" ".join(map(str, range(1, number + 1))) for number in numbers]


def test_the_sdks_stream_helper_puts_the_answer_together(client):
    with client.chat.completions.stream(model="hx-chat", messages=COUNT, temperature=0, stream_options={"include_usage": True}) as stream:
        kinds = Counter(event.type for event in stream)
        whole = stream.get_final_completion()
    assert kinds["content.delta"] > 20
    assert kinds["content.done"] == 1
    assert whole.choices[0].message.content == COUNTED
    assert whole.usage.completion_tokens > 20


def test_a_stream_closed_early_is_cancelled_at_the_model_server(client, fleet: Fleet):
    slow = fleet.slow.backend
    cancelled = slow.cancelled
    stream = client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "Count to 5000"}], stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    fleet.slow.until(lambda backend: backend.cancelled > cancelled and backend.in_flight == 0)
    assert slow.cancelled == cancelled + 1
    assert slow.cancellations[-1].pieces < 1000


async def test_a_request_given_up_before_its_answer_is_cancelled_at_the_model_server(fleet: Fleet, async_client):
    slow = fleet.slow.backend
    cancelled, known = slow.cancelled, len(slow.requests)
    request = asyncio.create_task(
        async_client.chat.completions.create(model="slow", messages=[{"role": "user", "content": "Count to 5000"}])
    )
    await asyncio.to_thread(fleet.slow.until, lambda backend: len(backend.requests) > known and backend.in_flight == 1)
    request.cancel()
    await asyncio.to_thread(fleet.slow.until, lambda backend: backend.cancelled > cancelled and backend.in_flight == 0)
    assert slow.cancelled == cancelled + 1


def test_a_stream_that_breaks_raises_in_the_client(client):
    messages = [{"role": "user", "content": "Count to 20 [[fault:error_event after=4]]"}]
    stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)
    pieces = []
    with pytest.raises(openai.APIError, match="scripted failure"):
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
    assert COUNTED.startswith("".join(pieces)) and "".join(pieces)


# Completions


def test_completions(client):
    answer = client.completions.create(model="hx-chat", prompt=RAW, max_tokens=12, temperature=0, stop=["<|end|>"])
    assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", "hx-chat", "HX-OK")
    assert answer.usage.total_tokens > 5


def test_completions_of_several_prompts(client):
    answer = client.completions.create(model="hx-chat", prompt=[RAW, RAW.replace("HX-OK", "ping")], max_tokens=12, temperature=0)
    assert [choice.index for choice in sorted(answer.choices, key=lambda choice: choice.index)] == [0, 1]
    assert [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)] == ["HX-OK", "ping"]


def test_completions_streamed(client):
    options = {"include_usage": True}
    chunks = list(client.completions.create(model="hx-chat", prompt=RAW, max_tokens=12, temperature=0, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "HX-OK"
    assert {chunk.model for chunk in chunks} == {"hx-chat"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


# Embeddings


def test_embeddings_as_the_sdk_asks_for_them_and_as_floats(client):
    texts = ["one", "two", "three"]
    asked = client.embeddings.create(model="tiny-embed", input=texts)  # the SDK asks for base64 and decodes it
    floats = client.embeddings.create(model="tiny-embed", input=texts, encoding_format="float")
    assert asked.model == "tiny-embed"
    assert [item.index for item in asked.data] == [0, 1, 2]
    assert [len(item.embedding) for item in asked.data] == [128] * 3
    for one, other in zip(asked.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert len({tuple(item.embedding) for item in asked.data}) == 3
    assert asked.usage.prompt_tokens == asked.usage.total_tokens > 3


def test_embeddings_in_base64_are_little_endian_floats(client):
    packed = client.embeddings.create(model="tiny-embed", input="one", encoding_format="base64").data[0].embedding
    floats = client.embeddings.create(model="tiny-embed", input="one", encoding_format="float").data[0].embedding
    assert struct.unpack("<128f", base64.b64decode(packed)) == pytest.approx(floats, abs=1e-6)


def test_embeddings_of_token_ids(client):
    one = client.embeddings.create(model="tiny-embed", input=[5, 6, 7])
    several = client.embeddings.create(model="tiny-embed", input=[[5, 6, 7], [8, 9]])
    assert len(several.data) == 2
    assert several.data[0].embedding == pytest.approx(one.data[0].embedding, abs=1e-4)
    assert several.data[0].embedding != several.data[1].embedding


async def test_embeddings_with_asyncio(async_client):
    answers = await asyncio.gather(*(async_client.embeddings.create(model="tiny-embed", input=f"text {n}") for n in range(8)))
    assert len({tuple(answer.data[0].embedding) for answer in answers}) == 8


def test_dimensions_are_cut_where_the_model_allows_it(client):
    short = client.embeddings.create(model="scripted-embed", input="one", dimensions=8).data[0].embedding
    assert len(short) == 8
    assert sum(value * value for value in short) == pytest.approx(1, abs=1e-5)


def test_dimensions_a_real_server_does_not_honour_are_the_clients_matter(client):
    for _ in range(8):  # more often than a breaker bears, were it the server's fault
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="tiny-embed", input="one", dimensions=16)
        assert caught.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError, match="at most 128"):
        client.embeddings.create(model="tiny-embed", input="one", dimensions=129)
    assert len(client.embeddings.create(model="tiny-embed", input="one", dimensions=128).data[0].embedding) == 128


# Models


def test_models(client):
    listed = {model.id: model for model in client.models.list()}
    assert {"tiny", "tiny-fast", "vendor/tiny:1m", "tiny-embed", "hx-chat", "hx-chat-fast"} <= set(listed)
    assert {model.object for model in listed.values()} == {"model"}
    for name in ("hx-chat", "vendor/tiny:1m"):
        found = client.models.retrieve(name)
        assert (found.id, found.created, found.owned_by) == (name, listed[name].created, listed[name].owned_by)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("vendor/nobody")
    assert caught.value.code == "model_not_found"


def test_a_key_sees_and_uses_its_own_models_only(fleet: Fleet):
    with openai.OpenAI(base_url=fleet.base_url, api_key=LIMITED_KEY, max_retries=0) as limited:
        assert [model.id for model in limited.models.list()] == ["tiny-fast"]
        answer = limited.chat.completions.with_raw_response.create(model="tiny-fast", messages=ASK, temperature=0)
        assert answer.parse().choices[0].message.content == "HX-OK"
        assert "x-hx-endpoint" not in answer.headers
        with pytest.raises(openai.PermissionDeniedError) as caught:
            limited.chat.completions.create(model="hx-chat", messages=ASK)
    assert caught.value.code == "model_not_allowed"


# Headers


def test_headers_tell_what_happened(client):
    raw = client.chat.completions.with_raw_response.create(
        model="hx-chat", messages=ASK, temperature=0, extra_headers={"X-Request-ID": "asked-by-the-suite-1"}
    )
    assert raw.headers["x-request-id"] == "asked-by-the-suite-1"
    assert raw.headers["x-hx-model-group"] == "hx-chat"
    assert raw.headers["x-hx-model"] in ("tiny", "tiny-fast")
    assert raw.headers["x-hx-endpoint"]
    assert raw.headers["content-type"].startswith("application/json")
    answer = raw.parse()
    assert answer._request_id == "asked-by-the-suite-1"
    streamed = client.chat.completions.with_raw_response.create(model="tiny", messages=ASK, stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.headers["x-hx-model"] == "tiny"
    assert streamed.headers["x-request-id"]
    assert "x-hx-model-group" not in streamed.headers
    assert len(list(streamed.parse())) > 2


def test_replicas_take_turns(client):
    seen = Counter(
        client.chat.completions.with_raw_response.create(model="tiny", messages=ASK, max_tokens=1).headers["x-hx-endpoint"]
        for _ in range(6)
    )
    assert sorted(seen.values()) == [3, 3]


def test_a_group_spreads_over_all_its_servers(client):
    seen = {
        client.chat.completions.with_raw_response.create(model="hx-chat", messages=ASK, max_tokens=1).headers["x-hx-endpoint"]
        for _ in range(9)
    }
    assert len(seen) == 3


# Errors


def test_wrong_and_missing_keys(fleet: Fleet):
    with openai.OpenAI(base_url=fleet.base_url, api_key="nobody-knows-this-key", max_retries=0) as stranger:
        for call in (stranger.models.list, lambda: stranger.chat.completions.create(model="hx-chat", messages=ASK)):
            with pytest.raises(openai.AuthenticationError) as caught:
                call()
            assert (caught.value.code, caught.value.type) == ("invalid_api_key", "authentication_error")
            assert caught.value.request_id


def test_an_unknown_model_is_named_with_its_nearest(client):
    with pytest.raises(openai.NotFoundError, match="hx-chat") as caught:
        client.chat.completions.create(model="hx-chatt", messages=ASK)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("model_not_found", "model", "invalid_request_error")


@pytest.mark.parametrize(
    ("call", "param"),
    [
        (lambda c: c.chat.completions.create(model="hx-chat", messages="not a list"), "messages"),
        (lambda c: c.chat.completions.create(model="tiny-embed", messages=ASK), "model"),
        (lambda c: c.embeddings.create(model="hx-chat", input="one"), "model"),
        (lambda c: c.embeddings.create(model="tiny-embed", input=[]), "input"),
        (lambda c: c.embeddings.create(model="tiny-embed", input=""), "input"),
        (lambda c: c.embeddings.create(model="tiny-embed", input="one", dimensions=0), "dimensions"),
    ],
)
def test_bad_requests_name_the_field(client, call, param):
    with pytest.raises(openai.BadRequestError) as caught:
        call(client)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)


def test_a_prompt_longer_than_the_real_models_context(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "word " * 9000}])
    assert caught.value.code == "context_length_exceeded"


def test_what_the_real_server_refuses_is_passed_on(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "nobody", "content": 1}], extra_body={"grammar": "root ::= ("})
    assert caught.value.message


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("status status=500", openai.InternalServerError, "upstream_error"),
        ("busy retry_after_s=1", openai.RateLimitError, "upstream_busy"),
        ("garbage_json", openai.InternalServerError, "bad_upstream_response"),
        ("error_200", openai.InternalServerError, "upstream_error"),
        ("status status=401", openai.InternalServerError, "upstream_credentials"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_of_a_server_are_the_sdks_own_exceptions(client, fault, kind, code, stream):
    messages = [{"role": "user", "content": f"ping [[fault:{fault}]]"}]
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="scripted", messages=messages, stream=stream)
    assert caught.value.code == code
    # what comes next is served
    assert (
        client.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "ping"}]).choices[0].message.content
        == "pong"
    )
