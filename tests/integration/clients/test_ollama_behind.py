"""OpenAI's SDK through the gateway to servers in Ollama's native dialect: one with real inference behind its face, and scripted ones."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import openai
import pytest
from tests.faults.conftest import wait_until
from tests.support import required
from tests.support.background import Background, Scripted, llamacpp
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.testing.ollama_face import OllamaFace
from hx_gateway.testing.script import Model

ASK = [{"role": "user", "content": "Return exactly the text: HX-OK"}]
COUNT = [{"role": "user", "content": "Count to 20"}]
COUNTED = " ".join(str(number) for number in range(1, 21))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = [{"role": "user", "content": 'Call get_weather with {"city": "Bern"}'}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@dataclass(frozen=True)
class Ollamas:
    """What runs."""

    gateway: GatewayProcess
    scripted: Scripted
    old: Scripted

    @property
    def sent(self) -> dict[str, object]:
        """The last request that the scripted server got, as JSON."""
        assert self.scripted.backend is not None
        return dict(self.scripted.backend.requests[-1].json())


@pytest.fixture(scope="module")
def ollamas() -> Iterator[Ollamas]:
    """A gateway that finds out by itself what three Ollamas have."""
    required.llamacpp()
    scripted = Scripted("ollama", models=[Model("scripted:1b", dimensions=24), Model("plain:1b", ("completion",))])
    old = Scripted("ollama", models=[Model("old:1b", dimensions=8)], legacy_embeddings=True, version="0.1.30")
    with (
        llamacpp(tiny.path(), "--slots", "4", "--context", "1024") as chat_url,
        llamacpp(tiny.path(), "--embedding", "--pooling", "mean") as embedding_url,
        Background(lambda: OllamaFace(chat_url, embedding_url, "hx-tiny:latest")) as face,
        scripted as one,
        old as other,
        GatewayProcess(
            f'endpoints: {{face: {{url: "{face.url}"}}, scripted: {{url: "{one.url}"}}, old: {{url: "{other.url}"}}}}\n'
            'models: {shown: {endpoint: scripted, upstream_model: "scripted:1b"}}\n'
        ) as gateway,
    ):
        found = {"hx-tiny:latest", "scripted:1b", "plain:1b", "old:1b", "shown"}
        headers = {"authorization": f"Bearer {gateway.key}"}
        # A server that a busy machine makes late is found by the next round.
        wait_until(
            lambda: found <= {one["id"] for one in httpx.get(f"{gateway.url}/v1/models", headers=headers, timeout=30).json()["data"]}, 60
        )
        yield Ollamas(gateway, scripted, old)


@pytest.fixture
def client(ollamas: Ollamas) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK."""
    with openai.OpenAI(base_url=f"{ollamas.gateway.url}/v1", api_key=ollamas.gateway.key, max_retries=0) as made:
        yield made


# Real inference


def test_what_the_servers_have_is_found(client):
    assert {"hx-tiny:latest", "scripted:1b", "plain:1b", "old:1b", "shown"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("hx-tiny:latest").id == "hx-tiny:latest"


@pytest.mark.parametrize("model", ["hx-tiny", "hx-tiny:latest"])
def test_chat(client, model):
    answer = client.chat.completions.create(model=model, messages=ASK, max_tokens=10, temperature=0)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason, answer.model) == ("HX-OK", "stop", model)
    assert answer.usage.prompt_tokens > 10 and answer.usage.completion_tokens >= 5


def test_streamed_chat(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="hx-tiny", messages=COUNT, temperature=0, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == COUNTED
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 20
    unasked = list(client.chat.completions.create(model="hx-tiny", messages=COUNT, temperature=0, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in unasked)


def test_completions(client):
    raw = "<|user|>Return exactly the text: HX-OK<|end|><|assistant|>"
    answer = client.completions.create(model="hx-tiny", prompt=raw, max_tokens=6, temperature=0, stop=["<|end|>"])
    assert answer.choices[0].text.startswith("HX-OK")


def test_schema(client):
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "seven", "schema": schema}}
    answer = client.chat.completions.create(model="hx-tiny", messages=ASK, temperature=0, response_format=form)
    assert json.loads(answer.choices[0].message.content) == {"n": 7}


def test_embeddings_in_base64_and_as_floats(client):
    texts = ["one", "two"]
    packed = client.embeddings.create(model="hx-tiny", input=texts, encoding_format="base64")
    floats = client.embeddings.create(model="hx-tiny", input=texts, encoding_format="float")
    for one, other in zip(packed.data, floats.data, strict=True):
        assert struct.unpack("<128f", base64.b64decode(one.embedding)) == pytest.approx(other.embedding, abs=1e-3)
    assert len(client.embeddings.create(model="hx-tiny", input=texts).data[1].embedding) == 128
    assert floats.usage.prompt_tokens > 0


def test_a_prompt_longer_than_the_context_is_refused_not_cut(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="hx-tiny", messages=[{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded"


# Ollama's dialect


def test_a_tool_call_whole(client):
    (choice,) = client.chat.completions.create(model="shown", messages=CALL, tools=[WEATHER]).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "get_weather", {"city": "Bern"})
    assert call.id


def test_a_tool_call_streamed(client):
    chunks = list(client.chat.completions.create(model="shown", messages=CALL, tools=[WEATHER], stream=True))
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    assert [piece.function.name for piece in pieces if piece.function.name] == ["get_weather"]
    assert len([piece.id for piece in pieces if piece.id]) == 1
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == {"city": "Bern"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_sdk_puts_a_streamed_tool_call_together(client):
    with client.chat.completions.stream(model="shown", messages=CALL, tools=[WEATHER]) as stream:
        whole = stream.get_final_completion()
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Bern"}


def test_the_answer_of_a_tool_goes_back_under_its_name(client, ollamas: Ollamas):
    call = client.chat.completions.create(model="shown", messages=CALL, tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Say sunny"}
    answer = client.chat.completions.create(model="shown", messages=[*CALL, call, result], tools=[WEATHER])
    assert answer.choices[0].message.content == "sunny"
    asked, answered = ollamas.sent["messages"][1:]
    assert asked["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Bern"}, "index": 0}
    assert (answered["role"], answered["tool_name"], answered["content"]) == ("tool", "get_weather", "Say sunny")


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_has_both_of_its_names(client, ollamas: Ollamas, stream):
    given = {"model": "shown", "messages": ASK, "reasoning_effort": "low"}
    if stream:
        deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **given)]
        names = [(getattr(delta, "reasoning_content", None) or "", getattr(delta, "reasoning", None) or "") for delta in deltas]
        reasoning_content, reasoning = ("".join(pieces) for pieces in zip(*names, strict=True))
        content = "".join(delta.content or "" for delta in deltas)
    else:
        message = client.chat.completions.create(**given).choices[0].message
        reasoning_content, reasoning, content = message.reasoning_content, message.reasoning, message.content
    assert ollamas.sent["think"] == "low"
    assert reasoning_content == reasoning
    assert reasoning.startswith("The user says")
    assert content == "HX-OK"


def test_a_picture_is_sent_as_ollama_wants_it(client, ollamas: Ollamas):
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Say seen"}, picture]}]
    assert client.chat.completions.create(model="shown", messages=messages).choices[0].message.content == "seen"
    (sent,) = ollamas.sent["messages"]
    assert (sent["content"], sent["images"]) == ("Say seen", [PIXEL])


def test_a_picture_elsewhere_is_not_fetched(client):
    picture = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/picture.png"}}
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="shown", messages=[{"role": "user", "content": [picture]}])


def test_options_are_sent_only_where_the_client_gave_them(client, ollamas: Ollamas):
    client.chat.completions.create(model="shown", messages=ASK)
    assert "options" not in ollamas.sent
    assert ollamas.sent["stream"] is False
    client.chat.completions.create(
        model="shown", messages=ASK, max_tokens=50, temperature=0.5, top_p=0.9, seed=3, stop="never", extra_body={"top_k": 5, "min_p": 0.1}
    )
    assert ollamas.sent["options"] == {
        "num_predict": 50, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["never"], "top_k": 5, "min_p": 0.1,
    }  # fmt: skip
    client.chat.completions.create(model="shown", messages=ASK, response_format={"type": "json_object"})
    assert ollamas.sent["format"] == "json"


def test_what_ollama_cannot_do_is_reported(client):
    raw = client.chat.completions.with_raw_response.create(model="shown", messages=ASK, logit_bias={"5": 1}, user="someone")
    assert raw.parse().choices[0].message.content == "HX-OK"
    assert "logit_bias" in raw.headers["x-hx-params-dropped"]


def test_an_error_line_in_the_stream_breaks_it_off(client):
    messages = [{"role": "user", "content": "Count to 20 [[fault:error_event after=4]]"}]
    stream = client.chat.completions.create(model="shown", messages=messages, stream=True)
    pieces: list[str] = []
    with pytest.raises(openai.APIError, match="scripted failure"):
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
    assert "".join(pieces) and COUNTED.startswith("".join(pieces))


@pytest.mark.parametrize("stream", [False, True])
def test_missing_counts_are_estimated(client, stream):
    messages = [{"role": "user", "content": "Count to 20 [[fault:no_usage]]"}]
    if stream:
        options = {"include_usage": True}
        *_, last = client.chat.completions.create(model="shown", messages=messages, stream=True, stream_options=options)
        usage = last.usage
    else:
        usage = client.chat.completions.create(model="shown", messages=messages).usage
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_embeddings_of_an_old_server(client, ollamas: Ollamas):
    assert ollamas.old.backend is not None
    ollamas.old.backend.forget()
    packed = client.embeddings.create(model="old:1b", input=["a", "b", "c"], encoding_format="base64")
    assert [len(base64.b64decode(item.embedding)) for item in packed.data] == [32] * 3
    floats = client.embeddings.create(model="old:1b", input=["a", "b", "c"], encoding_format="float")
    for one, other in zip(packed.data, floats.data, strict=True):
        assert struct.unpack("<8f", base64.b64decode(one.embedding)) == pytest.approx(other.embedding, abs=1e-6)
    assert len({tuple(item.embedding) for item in floats.data}) == 3
    assert {request.path for request in ollamas.old.backend.requests if request.method == "POST"} == {"/api/embeddings"}


@pytest.mark.parametrize(
    ("fault", "kind", "code"),
    [
        ("busy", openai.RateLimitError, "upstream_busy"),
        ("status status=500", openai.InternalServerError, "upstream_error"),
        ("error_200", openai.InternalServerError, "upstream_error"),
        ("garbage_json", openai.InternalServerError, "bad_upstream_response"),
        ("too_long", openai.BadRequestError, "context_length_exceeded"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_failures_before_the_first_word_have_a_proper_status(client, fault, kind, code, stream):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model="shown", messages=[{"role": "user", "content": f"ping [[fault:{fault}]]"}], stream=stream)
    assert caught.value.code == code
    assert (
        client.chat.completions.create(model="shown", messages=[{"role": "user", "content": "ping"}]).choices[0].message.content == "pong"
    )


def test_an_empty_vector_is_an_error(client):
    with pytest.raises(openai.InternalServerError) as caught:
        client.embeddings.create(model="shown", input=["one", "two [[fault:empty_embedding]]"])
    assert caught.value.code == "bad_upstream_response"
