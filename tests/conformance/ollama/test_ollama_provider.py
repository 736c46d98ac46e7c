"""The provider speaks to an Ollama as it should: the same requests to real inference and to the scripted server."""

import asyncio
import base64
import json
import struct

import httpx
import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS
from hx_gateway.core.errors import Failure
from hx_gateway.providers.ollama import OllamaProvider
from hx_gateway.testing.backend import Backend
from hx_gateway.testing.factories import make_deployment, make_exchange
from hx_gateway.testing.ollama_face import OllamaFace
from hx_gateway.testing.script import Model

PROVIDER = OllamaProvider()
ASK = {"messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}], "temperature": 0}
COUNT = {"messages": [{"role": "user", "content": "Count to 5"}], "temperature": 0}
RAW = "<|user|>Return exactly the text: HX-OK<|end|><|assistant|>"


@pytest.fixture(params=["llama.cpp", "scripted"])
async def url(request):
    """An Ollama: the face over real inference, or the scripted server."""
    if request.param == "scripted":
        async with Backend("ollama", [Model("hx-tiny:latest", dimensions=128, capabilities=("completion", "embedding"))]) as backend:
            yield backend.url
    else:
        async with OllamaFace(*request.getfixturevalue("llamacpp_urls"), model="hx-tiny:latest") as face:
            yield face.url


async def ask(url, body, route=CHAT, legacy=None, **options):
    """What the client of a gateway would get: a body, or the events of a stream."""
    deployment = make_deployment(url, upstream_model="hx-tiny", legacy_embeddings=legacy, **options)
    exchange = make_exchange({"model": "shown-name", **body}, route)
    calls = PROVIDER.prepare(exchange, deployment)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        if isinstance(calls, list):
            responses = await asyncio.gather(*(client.post(call.path.decode(), content=call.body) for call in calls))
            assert all(response.status_code == 200 for response in responses)
            return json.loads(PROVIDER.join(exchange, deployment, [response.content for response in responses])), exchange
        async with client.stream("POST", calls.path.decode(), content=calls.body) as response:
            headers = [(name.lower(), value) for name, value in response.headers.raw]
            if response.status_code != 200:
                raise PROVIDER.failure(exchange, deployment, response.status_code, headers, await response.aread())
            if not calls.stream:
                return json.loads(PROVIDER.whole(exchange, deployment, await response.aread())), exchange
            reader = PROVIDER.reader(exchange, deployment)
            out = b"".join([reader.feed(piece) async for piece in response.aiter_raw(7)]) + reader.finish()
            if reader.failure is not None:
                raise reader.failure
            events = out.decode().split("\n\n")
            assert events[-2:] == ["data: [DONE]", ""]
            return [json.loads(event.removeprefix("data: ")) for event in events[:-2]], exchange


async def test_chat(url):
    answer, exchange = await ask(url, ASK)
    assert answer["choices"][0]["message"]["content"] == "HX-OK"
    assert answer["model"] == "shown-name"
    assert answer["usage"]["completion_tokens"] == exchange.completion_tokens > 0
    assert exchange.prompt_tokens > 0 and not exchange.estimated


async def test_streamed_chat(url):
    events, exchange = await ask(url, {**COUNT, "stream": True, "stream_options": {"include_usage": True}})
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "1 2 3 4 5"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["total_tokens"] == exchange.prompt_tokens + exchange.completion_tokens


async def test_choices_and_limits(url):
    answer, _ = await ask(url, {**COUNT, "n": 2, "max_tokens": 2})
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length", "length"]
    assert answer["usage"]["completion_tokens"] == 4


async def test_completions(url):
    answer, _ = await ask(url, {"prompt": RAW, "temperature": 0, "max_tokens": 5, "stop": ["<|end|>"]}, COMPLETIONS)
    assert answer["choices"][0]["text"].startswith("HX-OK")
    events, _ = await ask(url, {"prompt": RAW, "temperature": 0, "max_tokens": 5, "stop": ["<|end|>"], "stream": True}, COMPLETIONS)
    assert "".join(event["choices"][0]["text"] for event in events) == answer["choices"][0]["text"]


async def test_embeddings_new_and_old_are_the_same(url):
    new, _ = await ask(url, {"input": ["one", "two"]}, EMBEDDINGS, dimensions=128)
    old, exchange = await ask(url, {"input": ["one", "two"], "encoding_format": "base64"}, EMBEDDINGS, legacy=True)
    assert exchange.estimated
    for first, second in zip(new["data"], old["data"], strict=True):
        unpacked = struct.unpack("<128f", base64.b64decode(second["embedding"]))
        assert unpacked == pytest.approx(first["embedding"], abs=1e-3)


async def test_a_wrong_length_is_noticed(url):
    with pytest.raises(Failure) as caught:
        await ask(url, {"input": "one"}, EMBEDDINGS, dimensions=64)
    assert caught.value.kind is errors.BAD_RESPONSE


async def test_refusals(url):
    with pytest.raises(Failure) as caught:
        await ask(url, {**ASK, "reasoning_effort": "high"})
    assert (caught.value.kind, caught.value.param) == (errors.UPSTREAM_REFUSED, "reasoning_effort")
    unthinking, _ = await ask(url, {**ASK, "reasoning_effort": "high"}, extra={"capabilities": ["completion"]})
    assert unthinking["choices"][0]["message"]["content"] == "HX-OK"


async def test_too_long(face):
    with pytest.raises(Failure) as caught:
        await ask(face.url, {"messages": [{"role": "user", "content": "word " * 3000}], "stream": True})
    assert caught.value.kind is errors.CONTEXT_LENGTH


@pytest.mark.parametrize(
    ("fault", "stream", "kind"),
    [
        ("busy", False, errors.UPSTREAM_BUSY), ("not_found", True, errors.UPSTREAM_ERROR), ("status", False, errors.UPSTREAM_ERROR),
        ("error_200", False, errors.UPSTREAM_ERROR), ("error_200", True, errors.UPSTREAM_ERROR), ("empty", False, errors.BAD_RESPONSE),
        ("empty", True, errors.BAD_RESPONSE), ("garbage_json", False, errors.BAD_RESPONSE), ("garbage_json", True, errors.BAD_RESPONSE),
        ("garbage_events", True, errors.STREAM_BROKEN), ("error_event", True, errors.STREAM_BROKEN), ("truncated", True, errors.STREAM_BROKEN),
        ("error_event after=0", True, errors.UPSTREAM_ERROR), ("truncated after=0", True, errors.BAD_RESPONSE),
    ],
)  # fmt: skip
async def test_faults_are_named(fault, stream, kind):
    async with Backend("ollama", ["hx-tiny"]) as backend:
        backend.fault = fault
        with pytest.raises(Failure) as caught:
            await ask(backend.url, {**COUNT, "stream": stream})
        assert caught.value.kind is kind


@pytest.mark.parametrize("fault", ["crlf", "no_final_blank", "no_usage", "split", "interim", "close_delimited"])
async def test_odd_streams_are_understood(fault):
    async with Backend("ollama", ["hx-tiny"]) as backend:
        backend.fault = fault
        events, exchange = await ask(backend.url, {**COUNT, "stream": True})
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "1 2 3 4 5"
        assert exchange.estimated == (fault == "no_usage")
