"""Waiting for a place at a real gateway in front of a server with few places."""

from __future__ import annotations

import asyncio
import time

import httpx
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend

HEADERS = {"Authorization": f"Bearer {KEY}"}


def _body(text: str, stream: bool = False) -> dict[str, object]:
    return {"model": "chat", "messages": [{"role": "user", "content": text}], "stream": stream}


async def test_what_does_not_fit_waits_and_is_answered() -> None:
    async with Backend(dialect="openai", models=["chat"], first_token_s=0.1) as backend:
        gateway = GatewayProcess(f'models: {{chat: {{endpoint: "{backend.url}", provider: openai, max_concurrent: 2}}}}')
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                answers = await asyncio.gather(
                    *(
                        client.post(f"{gateway.url}/v1/chat/completions", json=_body(f"Return exactly the text: {n}"), headers=HEADERS)
                        for n in range(12)
                    )
                )
            assert [answer.status_code for answer in answers] == [200] * 12
            assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [str(n) for n in range(12)]
            assert any("x-hx-queue-ms" in answer.headers for answer in answers)
            assert backend.peak <= 2, "never more at once than the server may have"
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_a_full_queue_refuses_with_a_true_retry_after() -> None:
    async with Backend(dialect="openai", models=["chat"], first_token_s=2.5) as backend:
        config = f"""
queue: {{max_waiting: 1}}
models: {{chat: {{endpoint: "{backend.url}", provider: openai, max_concurrent: 1}}}}
"""
        gateway = GatewayProcess(config)
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                calls = [
                    asyncio.create_task(client.post(f"{gateway.url}/v1/chat/completions", json=_body("hello"), headers=HEADERS))
                    for _ in range(4)
                ]
                answers = await asyncio.gather(*calls)
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200, 200, 429, 429]
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_a_waiting_client_that_leaves_gives_up_its_place_in_the_queue() -> None:
    async with Backend(dialect="openai", models=["chat"], first_token_s=2.5) as backend:
        gateway = GatewayProcess(f'models: {{chat: {{endpoint: "{backend.url}", provider: openai, max_concurrent: 1}}}}')
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                url = f"{gateway.url}/v1/chat/completions"
                first = asyncio.create_task(client.post(url, json=_body("one"), headers=HEADERS))
                await backend.until(lambda server: server.in_flight == 1)
                second = asyncio.create_task(client.post(url, json=_body("two"), headers=HEADERS))
                await asyncio.sleep(0.2)
                second.cancel()
                third = asyncio.create_task(client.post(url, json=_body("three"), headers=HEADERS))
                assert (await first).status_code == 200
                assert (await third).status_code == 200
            asked = [request.json()["messages"][0]["content"] for request in backend.requests if request.body]
            assert asked == ["one", "three"], "the request of the client that left was never sent"
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_a_waiting_stream_gets_signs_of_life_with_its_position() -> None:
    async with Backend(dialect="openai", models=["chat"], first_token_s=2.0) as backend:
        config = f"""
http: {{heartbeat_seconds: 0.5}}
models: {{chat: {{endpoint: "{backend.url}", provider: openai, max_concurrent: 1}}}}
"""
        gateway = GatewayProcess(config)
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                url = f"{gateway.url}/v1/chat/completions"
                first = asyncio.create_task(client.post(url, json=_body("one"), headers=HEADERS))
                await backend.until(lambda server: server.in_flight == 1)
                began = time.monotonic()
                async with client.stream("POST", url, json=_body("Return exactly the text: two", True), headers=HEADERS) as stream:
                    assert stream.status_code == 200
                    lines = [line async for line in stream.aiter_lines() if line]
                assert time.monotonic() > began
                assert any(line.startswith(": queued") for line in lines)
                assert any(line == ": waiting for the model" for line in lines)
                assert lines[-1] == "data: [DONE]"
                assert (await first).status_code == 200
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_another_name_stands_in_when_all_is_down() -> None:
    async with Backend(dialect="openai", models=["small"]) as backend:
        config = f"""
models:
  big: {{endpoint: "http://127.0.0.1:9", provider: openai}}
  small: {{endpoint: "{backend.url}", provider: openai}}
fallbacks: {{big: {{down: [small]}}}}
"""
        gateway = GatewayProcess(config)
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                body = {**_body("Return exactly the text: here"), "model": "big"}
                for _ in range(4):
                    answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS)
                    assert answer.status_code == 200, answer.text
                    assert answer.headers["x-hx-fallback-from"] == "big"
                    assert answer.headers["x-hx-model"] == "small"
                    assert answer.json()["model"] == "big", "the answer carries the name that was asked"
        finally:
            await asyncio.to_thread(gateway.stop)
