"""The real llama.cpp server with the real tiny model: answers, death and resurrection, and no orphans."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from hx_gateway.local import tiny
from hx_gateway.local.supervisor import LocalModel, LocalModelError

HX_OK = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}],
    "max_tokens": 10,
    "temperature": 0,
}
SERVER = [sys.executable, "-m", "hx_gateway.local.server", "--path", str(tiny.path())]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
async def chat(tiny_model: Path) -> AsyncIterator[LocalModel]:
    model = LocalModel("tiny", tiny_model, slots=2, threads=1, backoff_s=(0.02, 1.0))
    await model.start()
    yield model
    await model.stop()


async def content(client: httpx.AsyncClient, url: str) -> str:
    answer = await client.post(f"{url}/v1/chat/completions", json=HX_OK)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def until_gone(pid: int) -> None:
    """Wait until the process has ended; one that waits for its parent to look (a zombie) counts as ended."""
    async with asyncio.timeout(30):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state == "Z":
                return
            await asyncio.sleep(0.02)


async def test_it_answers_exactly_what_it_was_trained_to(chat: LocalModel, client: httpx.AsyncClient) -> None:
    assert chat.url.startswith("http://127.0.0.1:")
    assert await content(client, chat.url) == "HX-OK"
    models = (await client.get(f"{chat.url}/v1/models")).json()
    assert models["data"][0]["id"] == "tiny"


async def test_it_streams_token_by_token(chat: LocalModel, client: httpx.AsyncClient) -> None:
    body = HX_OK | {"stream": True, "max_tokens": 60, "messages": [{"role": "user", "content": "Count to 20"}]}
    pieces = []
    async with client.stream("POST", f"{chat.url}/v1/chat/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    assert "".join(pieces) == " ".join(str(n) for n in range(1, 21))
    assert len([piece for piece in pieces if piece]) > 20


async def test_each_slot_has_the_whole_context(tiny_model: Path, client: httpx.AsyncClient) -> None:
    model = LocalModel("tiny", tiny_model, slots=3, context=256, threads=1)
    url = await model.start()
    try:
        slots = (await client.get(f"{url}/slots")).json()
        assert [slot["n_ctx"] for slot in slots] == [256, 256, 256]
    finally:
        await model.stop()


async def test_an_embedding_model_embeds(tiny_model: Path, client: httpx.AsyncClient) -> None:
    model = LocalModel("emb", tiny_model, mode="embedding", threads=1)
    url = await model.start()
    try:
        answer = await client.post(f"{url}/v1/embeddings", json={"model": "emb", "input": ["HX-OK", "x" * 900]})
        assert answer.status_code == 200, answer.text
        assert [len(item["embedding"]) for item in answer.json()["data"]] == [tiny.EMBEDDING_LENGTH] * 2
    finally:
        await model.stop()


async def test_with_a_key_nobody_else_gets_in(tiny_model: Path, client: httpx.AsyncClient) -> None:
    model = LocalModel("tiny", tiny_model, threads=1, api_key="between-us")
    url = await model.start()
    try:
        assert (await client.post(f"{url}/v1/chat/completions", json=HX_OK)).status_code == 401
        answer = await client.post(f"{url}/v1/chat/completions", json=HX_OK, headers={"authorization": "Bearer between-us"})
        assert answer.status_code == 200
    finally:
        await model.stop()


async def test_a_page_from_elsewhere_is_given_no_leave_to_read(chat: LocalModel, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"{chat.url}/v1/models", headers={"origin": "https://elsewhere.example"})
    assert answer.headers.get("access-control-allow-origin", "") == ""


async def test_killed_it_comes_back_at_the_same_address(chat: LocalModel, client: httpx.AsyncClient) -> None:
    assert await content(client, chat.url) == "HX-OK"  # a connection stays open, as the gateway's pool would have one
    before, url = chat.pid, chat.url
    assert before is not None
    os.kill(before, signal.SIGKILL)
    async with asyncio.timeout(30):
        while chat.restarts == 0 or chat.state != "ready":
            await asyncio.sleep(0.01)
    assert chat.url == url
    assert chat.pid not in (None, before)
    async with httpx.AsyncClient(timeout=30, trust_env=False) as fresh:
        assert await content(fresh, url) == "HX-OK"


async def test_stopped_in_the_middle_of_a_stream_it_ends(tiny_model: Path, client: httpx.AsyncClient) -> None:
    model = LocalModel("tiny", tiny_model, threads=1)
    url = await model.start()
    pid = model.pid
    assert pid is not None
    body = HX_OK | {"stream": True, "max_tokens": 900, "messages": [{"role": "user", "content": "Count to 20"}], "ignore_eos": True}
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_lines():
            break
        await model.stop()
    await until_gone(pid)


async def test_a_damaged_file_is_an_error_with_llama_cpps_own_words(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.path().read_bytes()[:500_000])
    with pytest.raises(LocalModelError, match=r"(?s)status 4.*corrupted or incomplete"):
        await LocalModel("tiny", cut, threads=1).start()


async def test_a_port_in_use_is_an_error_that_says_so(chat: LocalModel, tiny_model: Path) -> None:
    with pytest.raises(LocalModelError, match=r"(?s)status 4.*bind"):
        await LocalModel("other", tiny_model, port=chat.port, threads=1).start()


async def test_when_the_parent_is_killed_the_child_goes(tiny_model: Path) -> None:
    code = (
        "import asyncio, sys, uvloop\n"
        "from hx_gateway.local.supervisor import LocalModel\n"
        "async def main():\n"
        "    model = LocalModel('tiny', sys.argv[1], threads=1)\n"
        "    await model.start()\n"
        "    print(model.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "uvloop.run(main())\n"  # the loop the gateway runs on
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(tiny_model), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child_pid = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until_gone(child_pid)


async def test_at_the_end_of_its_input_the_server_goes() -> None:
    server = await asyncio.create_subprocess_exec(*SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    assert json.loads(await server.stdout.readline())["pid"] == server.pid
    server.stdin.close()
    assert await server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_on_a_signal_the_server_ends_in_order(number: signal.Signals) -> None:
    server = await asyncio.create_subprocess_exec(*SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    await server.stdout.readline()
    server.send_signal(number)
    assert await server.wait() == 0


async def test_a_parent_that_is_gone_already_is_noticed() -> None:
    command = [*SERVER, "--parent", "1"] if os.getpid() != 1 else [*SERVER, "--parent", "2"]
    server = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stderr is not None
    assert b"is gone" in await server.stderr.read()
    assert await server.wait() == 1
