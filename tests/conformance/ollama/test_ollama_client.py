"""The face is an Ollama as far as Ollama's official Python client can tell, with llama.cpp doing the inference."""

import json

import httpx
import ollama
import pytest

ASK = [{"role": "user", "content": "Return exactly the text: HX-OK"}]
COUNT = [{"role": "user", "content": "Count to 12"}]
EXACT = {"temperature": 0}


@pytest.fixture
def client(face):
    return ollama.AsyncClient(host=face.url)


async def test_it_is_alive_and_lists_its_model(face, client):
    async with httpx.AsyncClient(base_url=face.url) as plain:
        assert (await plain.get("/")).text == "Ollama is running"
        assert (await plain.head("/")).status_code == 200
        assert (await plain.get("/api/version")).json()["version"]
        assert (await plain.get("/nothing")).status_code == 404
    (listed,) = (await client.list()).models
    assert listed.model == "hx-tiny:latest" and listed.size > 100_000 and len(listed.digest) == 64
    shown = await client.show("hx-tiny")
    assert shown.capabilities == ["completion", "embedding"]
    assert shown.modelinfo["llama.context_length"] == 1024
    assert shown.modelinfo["llama.embedding_length"] == 128


async def test_chat(client):
    answer = await client.chat("hx-tiny", ASK, options=EXACT)
    assert answer.message.content == "HX-OK"
    assert answer.done and answer.done_reason == "stop"
    assert answer.prompt_eval_count > 10 and answer.eval_count >= 5
    assert answer.total_duration > answer.eval_duration > 0


async def test_streamed_chat(client):
    parts = [part async for part in await client.chat("hx-tiny:latest", COUNT, stream=True, options=EXACT)]
    assert "".join(part.message.content for part in parts) == "1 2 3 4 5 6 7 8 9 10 11 12"
    assert len(parts) > 10
    assert [part.done for part in parts[:-1]] == [False] * (len(parts) - 1)
    assert parts[-1].done and parts[-1].done_reason == "stop" and parts[-1].eval_count > 10


async def test_length_and_stop(client):
    cut = await client.chat("hx-tiny", COUNT, options={**EXACT, "num_predict": 3})
    assert cut.done_reason == "length" and cut.eval_count == 3
    stopped = await client.chat("hx-tiny", COUNT, options={**EXACT, "stop": [" 4"]})
    assert stopped.message.content == "1 2 3" and stopped.done_reason == "stop"


async def test_generate(client):
    assert (await client.generate("hx-tiny", "Return exactly the text: HX-OK", options=EXACT)).response == "HX-OK"
    raw = "<|user|>Return exactly the text: HX-OK<|end|><|assistant|>"
    parts = [part async for part in await client.generate("hx-tiny", raw, raw=True, stream=True, options={**EXACT, "num_predict": 5})]
    assert "".join(part.response for part in parts) == "HX-OK"


async def test_format(client):
    schema = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"], "additionalProperties": False}
    answer = await client.chat("hx-tiny", ASK, format=schema, options=EXACT)
    assert json.loads(answer.message.content) == {"n": 7}


async def test_logprobs(client):
    answer = await client.chat("hx-tiny", ASK, logprobs=True, top_logprobs=2, options=EXACT)
    assert "".join(entry.token for entry in answer.logprobs).startswith("HX-OK")
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in answer.logprobs)


async def test_embeddings_new_and_old(client):
    both = await client.embed("hx-tiny", ["one", "two"])
    assert [len(row) for row in both.embeddings] == [128, 128]
    assert sum(value * value for value in both.embeddings[0]) == pytest.approx(1, abs=1e-3)
    assert both.embeddings[0] != both.embeddings[1]
    assert both.prompt_eval_count > 0
    short = await client.embed("hx-tiny", "one", dimensions=16)
    assert len(short.embeddings[0]) == 16 and sum(value * value for value in short.embeddings[0]) == pytest.approx(1, abs=1e-3)
    old = await client.embeddings("hx-tiny", "one")
    assert list(old.embedding) == pytest.approx(list(both.embeddings[0]), abs=1e-3)


async def test_loading_and_unloading(client):
    assert (await client.chat("hx-tiny", keep_alive=0)).done_reason == "unload"
    assert (await client.ps()).models == []
    assert (await client.generate("hx-tiny")).done_reason == "load"
    assert [model.model for model in (await client.ps()).models] == ["hx-tiny:latest"]


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (lambda c: c.chat("nope", ASK), 404, "not found"),
        (lambda c: c.chat("hx-tiny", ASK, think=True), 400, "does not support thinking"),
        (lambda c: c.generate("hx-tiny", "a", suffix="b"), 400, "does not support insert"),
        (lambda c: c.chat("hx-tiny", [{"role": "user", "content": "word " * 3000}]), 400, "exceeds the context length"),
        (lambda c: c.embed("hx-tiny", "word " * 3000), 400, "exceeds the context length"),
    ],
)
async def test_refusals(client, call, status, words):
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        await call(client)
    assert caught.value.status_code == status
