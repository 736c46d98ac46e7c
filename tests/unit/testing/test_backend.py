"""The scripted model server: says what it should, and fails as it is told."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import httpx
import ollama
import openai
import pytest

from hx_gateway.testing.backend import Backend, main
from hx_gateway.testing.faults import CONTENT_FAULTS, KINDS, WIRE_FAULTS, Fault
from hx_gateway.testing.script import Model, plan, tokens, vector

CHAT = {"model": "tiny:1b", "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}]}


def chat(text, **fields):
    return {"model": "tiny:1b", "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def server(dialect="openai", **settings):
    async with Backend(dialect, **settings) as backend, httpx.AsyncClient(base_url=backend.url, timeout=10) as client:
        yield backend, client


def sse(text):
    return [line[6:] for line in text.splitlines() if line.startswith("data: ")]


async def raw(backend, body, path="/v1/chat/completions", headers=b""):
    """Everything the server sends for one request until it closes or is silent; and how it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
    payload = json.dumps(body).encode()
    writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (path.encode(), headers, len(payload)) + payload)
    received = b""
    end = ""
    quiet = 0
    while not end:
        try:
            data = await asyncio.wait_for(reader.read(65536), 0.05)
        except TimeoutError:
            # Server and client share a loop: once it has answered, what it wrote is there to be read.
            quiet += 1
            end = "silent" if backend.answered or quiet > 6 else ""
            continue
        except ConnectionResetError:
            end = "reset"
            continue
        received += data
        quiet = 0
        end = "closed" if not data else "endless" if len(received) > 400_000 else ""
    writer.close()
    return received, end


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("Return exactly the text: HX-OK", "HX-OK"),
        ("Please. Reply with exactly: a  b\nc", "a  b\nc"),
        ("Count to 5", "1 2 3 4 5"),
        ("ping", "pong"),
        ("anything else, ö", "anything else, ö"),
    ],
)
def test_the_script(prompt, answer):
    said = plan(prompt, prompt)
    assert "".join(said.content) == answer
    assert "".join(tokens(answer)) == answer
    assert said.prompt_tokens == len(tokens(prompt))


def test_the_script_stops_and_counts():
    assert plan("Count to 9", "x", limit=3).content == ["1", " 2", " 3"]
    assert plan("Count to 9", "x", limit=3).finish == "length"
    assert "".join(plan("Count to 9", "x", stop=(" 4",)).content) == "1 2 3"
    assert json.loads("".join(plan("Say: hi", "x", schema="json").content)) == {"answer": "hi"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}}}
    assert json.loads("".join(plan("?", "x", schema=schema).content)) == {"a": 1, "b": "x"}
    assert plan('Call f with {"a": 1}', "x", offered=("f",)).calls == [("f", {"a": 1})]
    assert plan('Call f with {"a": 1}', "x").calls == []
    assert vector("a", 40) == vector("a", 40) != vector("b", 40)
    assert sum(value * value for value in vector("a", 40)) == pytest.approx(1)


async def test_openai_by_its_own_client():
    async with (
        Backend("openai", [Model("tiny:1b", dimensions=4)]) as backend,
        openai.AsyncOpenAI(base_url=backend.url + "/v1", api_key="x") as client,
    ):
        assert [model.id async for model in client.models.list()] == ["tiny:1b"]
        answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content == "HX-OK" and answer.usage.completion_tokens == 2
        stream = await client.chat.completions.create(**chat("Count to 3"), stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "1 2 3"
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 3
        assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"
        tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
        called = await client.chat.completions.create(**chat('Call add with {"a": 1}'), tools=tools)
        assert json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"a": 1}
        text = await client.completions.create(model="tiny:1b", prompt=["Say: a", "Say: b"])
        assert [choice.text for choice in text.choices] == ["a", "b"]
        vectors = await client.embeddings.create(model="tiny:1b", input=["a", "b"])  # asks for base64
        assert [row.embedding for row in vectors.data] == [pytest.approx(vector(name, 4), abs=1e-6) for name in "ab"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": ""}])


async def test_ollama_by_its_own_client():
    models = [Model("tiny:1b", dimensions=4), Model("plain:latest", ("completion",))]
    async with Backend("ollama", models, load_s=0.01, loaded=False) as backend:
        client = ollama.AsyncClient(host=backend.url)
        assert [model.model for model in (await client.list()).models] == ["tiny:1b", "plain:latest"]
        assert (await client.ps()).models == []
        answer = await client.chat("tiny:1b", [{"role": "user", "content": "Return exactly the text: HX-OK"}])
        assert answer.message.content == "HX-OK" and answer.done_reason == "stop"
        assert answer.load_duration == 10_000_000 and answer.eval_count == 2
        assert [model.model for model in (await client.ps()).models] == ["tiny:1b"]
        parts = [part async for part in await client.chat("tiny:1b", [{"role": "user", "content": "Count to 3"}], stream=True, think=True)]
        assert "".join(part.message.content for part in parts) == "1 2 3"
        assert "".join(part.message.thinking or "" for part in parts) == "The user says: Count to 3"
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].load_duration is None  # what is zero is left out
        assert (await client.generate("tiny:1b", "Say: yes", options={"num_predict": 1})).done_reason == "stop"
        vectors = await client.embed("tiny:1b", ["a", "b"], dimensions=2)
        assert [list(row) for row in vectors.embeddings] == [vector("a", 2), vector("b", 2)]
        assert list((await client.embeddings("tiny:1b", "a")).embedding) == vector("a", 4)
        assert (await client.show("plain")).capabilities == ["completion"]
        assert (await client.chat("tiny:1b", keep_alive=0)).done_reason == "unload"
        assert (await client.ps()).models == []
        with pytest.raises(ollama.ResponseError, match="does not support thinking") as caught:
            await client.chat("plain", [{"role": "user", "content": "x"}], think=True)
        assert caught.value.status_code == 400
        with pytest.raises(ollama.ResponseError, match="not found") as caught:
            await client.chat("nope")
        assert caught.value.status_code == 404


async def test_ollamas_small_routes():
    async with server("ollama", version="0.9.0", legacy_embeddings=True) as (_, client):
        assert (await client.get("/")).text == "Ollama is running"
        head = await client.head("/")
        assert head.status_code == 200 and head.content == b""
        assert (await client.get("/api/version")).json() == {"version": "0.9.0"}
        assert (await client.post("/api/embed", json={"model": "tiny:1b", "input": "a"})).status_code == 404
        assert (await client.post("/api/embeddings", json={"model": "tiny:1b", "input": "a"})).json() == {"embedding": []}
        assert (await client.post("/v1/chat/completions", json=CHAT)).json()["system_fingerprint"] == "fp_ollama"
        assert (await client.post("/api/chat", content=b"{")).status_code == 400
        assert (await client.post("/api/chat", json={})).json() == {"error": "model is required"}


async def test_openais_small_routes():
    async with server(api_key="k", version="1.2") as (_, client):
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 401
        client.headers["authorization"] = "Bearer k"
        assert (await client.get("/v1/models/tiny:1b")).json()["max_model_len"] == 32_768
        assert "vllm:num_requests_running 0" in (await client.get("/metrics")).text
        assert (await client.get("/version")).json() == {"version": "1.2"}
        assert (await client.get("/nope")).status_code == (await client.post("/nope", json={})).status_code == 404
        assert (await client.put("/v1/models")).status_code == 405


async def test_what_was_received_is_kept_exactly():
    async with server() as (backend, _):
        body = json.dumps(CHAT).encode()
        head = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Odd:  two  \r\nTransfer-Encoding: chunked"
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        chunked = b"5;x=y\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"
        for byte in head + b"\r\n\r\n" + chunked:
            writer.write(bytes([byte]))
        writer.write(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).count(b"HTTP/1.1 200") == 2
        writer.close()
        first, second = backend.requests
        assert (first.head, first.body) == (head, body)
        assert (first.method, first.path, first.query, first.headers["x-odd"]) == ("POST", "/v1/chat/completions", "a=b", "two")
        assert first.json() == CHAT
        assert first.connection == second.connection == 1 and backend.connections == 1


async def test_continue_is_given_and_nonsense_refused():
    async with server() as (backend, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        body = json.dumps(CHAT).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", backend.port)
        writer.write(b"nonsense\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400")
        writer.close()


async def test_a_client_that_leaves_is_seen():
    async with server(token_s=30) as (backend, client):
        async with client.stream("POST", "/v1/chat/completions", json=chat("Count to 9", stream=True)) as response:
            async for _ in response.aiter_bytes():
                break
            assert backend.in_flight == 1
        await backend.until(lambda b: b.cancelled == 1)
        assert backend.in_flight == 0 and backend.cancellations[0].pieces == 1
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/chat/completions", json=chat("Count to 9"), timeout=0.1)
        await backend.until(lambda b: b.cancelled == 2)
        assert backend.answered == 0


async def test_slots_queue_and_busy():
    async with server("ollama", slots=1, queue=1, first_token_s=1.0) as (backend, client):
        body = chat("Say: x", stream=False)
        first = asyncio.create_task(client.post("/api/chat", json=body))
        second = asyncio.create_task(client.post("/api/chat", json=body))
        await backend.until(lambda b: b.in_flight == 2)
        third = await client.post("/api/chat", json=body)
        assert third.status_code == 503 and "maximum pending requests" in third.json()["error"]
        assert backend.working == 1
        assert {(await first).status_code, (await second).status_code} == {200}
        assert backend.peak == 3


async def test_refusing_and_coming_back_on_the_same_port():
    async with server() as (backend, client):
        assert (await client.get("/health")).status_code == 200
        port = backend.port
        backend.fault = "refuse"
        with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
            await client.get("/health")
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
        backend.fault = None
        assert (await client.get("/health")).status_code == 200
        assert backend.port == port


WIRE_ENDS = {
    "hang": (b"", "silent"),
    "reset_head": (b"", "reset"),
    "close_head": (b"", "closed"),
    "garbage_http": (b"\x16\x03\x01 this", "closed"),
    "huge_headers": (b"x-filler-24: f", "silent"),
    "interim": (b"HTTP/1.1 103", "silent"),
    "slow": (b"HX-O", "silent"),
    "split": (b"HX-O", "silent"),
    "black_hole": (b"HTTP/1.1 200", "silent"),
    "reset_body": (b"HTTP/1.1 200", "reset"),
    "close_body": (b"HTTP/1.1 200", "closed"),
    "endless": (b"400\r\n" + b" " * 1024, "endless"),
    "extra_bytes": (b'{"forged": "yes"}', "silent"),
    "close_delimited": (b"HX-O", "closed"),
    "long_length": (b"HX-O", "closed"),
    "short_length": (b"HX-O", "closed"),
    "double_length": (b"content-length", "closed"),
    "bad_chunk": (b"zz\r\n", "closed"),
    "close_after": (b"HX-O", "closed"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", WIRE_FAULTS)
async def test_every_wire_fault(kind, stream):
    async with Backend() as backend:
        backend.fault = Fault(kind, delay_s=0.0001)
        received, end = await raw(backend, {**CHAT, "stream": stream})
        expected, expected_end = WIRE_ENDS[kind]
        assert end == expected_end
        assert expected in received
        if kind in ("close_delimited", "hang"):
            assert b"content-length" not in received and b"chunked" not in received
        if kind in ("black_hole", "reset_body", "close_body"):
            assert b"[DONE]" not in received and not received.endswith(b"}")
        if kind == "double_length":
            assert b"chunked" in received


CONTENT_SIGNS = {
    "status": "HTTP/1.1 500", "busy": "HTTP/1.1 429", "not_found": "HTTP/1.1 404", "too_long": "maximum context length",
    "error_200": '{"error"', "garbage_json": '[{"index"', "empty": "content-length: 0", "garbage_events": '[{\n', "error_event": "scripted failure",
    "truncated": '"HX-O"', "no_usage": "[DONE]", "usage_in_last": '"finish_reason": "stop"}], "usage": {"prompt', "usage_with_choice": '"usage": {"prompt',
    "crlf": "[DONE]\r\n\r\n", "bom": "\ufeffdata", "comments": ": still here\n\n", "no_final_blank": "[DONE]\n\r\n", "repeated_finish": "[DONE]",
    "fickle": '"content": " 1"', "other_model": '"model": "not-tiny:1b"', "early_finish": "[DONE]",
}  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in CONTENT_FAULTS if "embedding" not in kind])
async def test_every_content_fault_of_a_stream(kind):
    async with Backend() as backend:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        received, end = await raw(backend, body, headers=b"x-backend-fault: " + kind.encode() + b"\r\n")
        text = received.decode()
        assert end == "silent"
        assert CONTENT_SIGNS[kind] in text
        assert ("[DONE]" in text) == (kind not in [*list(CONTENT_SIGNS)[:7], "error_event", "truncated"])
        assert ('"usage": {' in text) == ("[DONE]" in text and kind != "no_usage")
        assert text.count('"finish_reason": "stop"') == {"repeated_finish": 2, "early_finish": 2}.get(kind, 1 if "[DONE]" in text else 0)
        if kind == "usage_in_last":
            assert '"choices": []' not in text
        if kind == "usage_with_choice":
            assert '"choices": [{"index": 0, "delta": {}, "finish_reason": null}], "usage": {"prompt' in text
        if kind == "busy":
            assert "retry-after: 2" in text


@pytest.mark.parametrize(
    ("kind", "status", "sign"),
    [
        ("status", 500, '{"error": "scripted failure"}'), ("busy", 503, "maximum pending requests"), ("not_found", 404, "not found"),
        ("too_long", 400, "exceeds the context length"), ("error_200", 200, '{"error": "scripted failure"}'), ("garbage_json", 200, '{"role"'),
        ("garbage_events", 200, '{"model": \n'), ("error_event", 200, '\n{"error": "scripted failure"}\n'), ("truncated", 200, '"done": false}\n'),
        ("no_usage", 200, '"done": true'), ("no_final_blank", 200, '"done": true'), ("crlf", 200, "}\r\n"),
    ],
)  # fmt: skip
async def test_content_faults_in_ollamas_words(kind, status, sign):
    async with server("ollama") as (backend, client):
        response = await client.post("/api/chat", json=chat(f"Count to 5 [[fault:{kind} after=2]]"))
        assert response.status_code == status and sign in response.text
        assert ('"done": true' in response.text) == (kind in ("no_usage", "no_final_blank", "crlf"))
        assert ("eval_count" in response.text) == (kind in ("no_final_blank", "crlf"))
        assert response.text.endswith("\n") == (
            kind not in ("no_final_blank", "garbage_json", "error_200", "status", "busy", "not_found", "too_long")
        )
        assert backend.fault is None


@pytest.mark.parametrize("dialect", ["openai", "ollama"])
async def test_faults_of_embeddings(dialect):
    async with server(dialect) as (_, client):
        path, field = ("/api/embed", "embeddings") if dialect == "ollama" else ("/v1/embeddings", "data")

        async def rows(kind):
            body = {"model": "tiny:1b", "input": ["a", "b"]}
            found = (await client.post(path, json=body, headers={"x-backend-fault": kind})).json()[field]
            return [row["embedding"] if dialect == "openai" else row for row in found]

        assert len(await rows("fewer_embeddings")) == 1
        assert (await rows("empty_embedding"))[1] == []
        assert isinstance((await rows("nested_embedding"))[0][0], list)


async def test_faults_can_be_counted_and_leave_probes_alone():
    async with server() as (backend, client):
        backend.fault = "status times=2 status=503 retry_after_s=7"
        assert (await client.get("/health")).status_code == 200
        answers = [await client.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [503, 503, 200]
        assert answers[0].headers["retry-after"] == "7"
        backend.fault = "status"
        assert (await client.get("/health")).status_code == 500
        assert len(backend.requests) == 5
        backend.forget()
        assert not backend.requests and backend.peak == 0


def test_faults_are_read_and_typos_named():
    assert Fault.parse("status status=503 message=no") == Fault("status", status=503, message="no")
    for text in ("explode", "status colour=red", "status status=x", "status kind=busy"):
        with pytest.raises(ValueError):
            Fault.parse(text)
    with pytest.raises(ValueError, match="dialect"):
        Backend("telnet")
    assert set(WIRE_ENDS) == set(WIRE_FAULTS)
    assert len(KINDS) == len(WIRE_FAULTS) + len(CONTENT_FAULTS) + 1


async def test_large_bodies_and_slow_readers():
    async with server() as (backend, client):
        text = "x" * 3_000_000
        answer = await client.post("/v1/chat/completions", json=chat(f"Say: {text}", max_tokens=2))
        assert answer.json()["choices"][0]["message"]["content"] == "xxxxxxxx"
        assert len(backend.requests[0].body) > 3_000_000


def test_as_a_program_on_several_ports():
    command = [
        sys.executable,
        "-m",
        "hx_gateway.testing.backend",
        "--port",
        "0",
        "--port",
        "0",
        "--dialect",
        "ollama",
        "--model",
        "a",
        "--fault",
        "busy",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            urls = [process.stdout.readline().strip() for _ in range(2)]
            assert len(set(urls)) == 2
            for url in urls:
                assert [model["name"] for model in httpx.get(url + "/api/tags").json()["models"]] == ["a"]
                assert httpx.post(url + "/api/chat", json={"model": "a", "messages": [{"role": "user", "content": ""}]}).status_code == 503
        finally:
            process.terminate()
        assert process.wait(10) == 0


def test_a_program_that_cannot_start_says_why(capsys):
    assert main(["--fault", "explode"]) == 2
    assert "explode" in capsys.readouterr().err
