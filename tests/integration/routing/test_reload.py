"""Reload while requests run: nothing is dropped, state survives, what cannot be used is refused with its reasons."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import httpx
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend

HEADERS = {"Authorization": f"Bearer {KEY}"}
RELOADS = int(os.environ.get("HX_RELOADS", "150"))
"""How many reloads the load test does; `HX_RELOADS=1000` for the full proof."""


def _config(urls: list[str], weight: float = 1.0, extra: str = "") -> str:
    places = ", ".join(json.dumps(url) for url in urls)
    return f"""
models:
  chat: {{endpoints: [{places}], provider: openai, weight: {weight}}}
{extra}
"""


async def _chat(client: httpx.AsyncClient, gateway: GatewayProcess, text: str, stream: bool = False, model: str = "chat") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": f"Return exactly the text: {text}"}], "stream": stream}
    return await client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS)


async def _until(client: httpx.AsyncClient, gateway: GatewayProcess, ok: bool) -> dict[str, object]:
    for _ in range(1000):
        told = (await client.get(f"{gateway.url}/admin/reload", headers=HEADERS)).json()
        if told["ok"] is ok:
            return dict(told)
        await asyncio.sleep(0.05)
    raise AssertionError(f"no reload ended with ok={ok}: {told}")


async def test_reloads_under_load_fail_no_request() -> None:
    async with Backend(dialect="openai", models=["chat"]) as one, Backend(dialect="openai", models=["chat"]) as two:
        gateway = GatewayProcess(_config([one.url, two.url]))
        await asyncio.to_thread(gateway.start)
        over = asyncio.Event()
        answered = 0

        async def ask(client: httpx.AsyncClient, number: int) -> None:
            nonlocal answered
            while not over.is_set():
                answer = await _chat(client, gateway, f"w{number}", stream=bool(number % 2))
                assert answer.status_code == 200, answer.text
                assert not number % 2 or answer.text.rstrip().endswith("data: [DONE]")
                answered += 1

        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                workers = [asyncio.create_task(ask(client, number)) for number in range(8)]
                for number in range(RELOADS):
                    # servers come and go, weights change: another registry each time
                    urls = [[one.url, two.url], [one.url], [two.url, one.url]][number % 3]
                    gateway.path.write_text(_config(urls, weight=1.0 + number % 5))
                    answer = await client.post(f"{gateway.url}/admin/reload", headers=HEADERS)
                    assert answer.status_code == 200, answer.text
                over.set()
                await asyncio.gather(*workers)
                assert answered > RELOADS / 4
                status = (await client.get(f"{gateway.url}/models/status", headers=HEADERS)).json()
                assert '"in_flight": 0' in json.dumps(status)
                assert '"in_flight": 1' not in json.dumps(status), "every lease was given back"
        finally:
            over.set()
            await asyncio.to_thread(gateway.stop)


async def test_a_changed_file_is_taken_into_use_by_itself_and_a_wrong_one_is_refused() -> None:
    async with Backend(dialect="openai", models=["chat", "more"]) as backend:
        gateway = GatewayProcess(_config([backend.url]))
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                assert (await _chat(client, gateway, "x", model="more")).status_code == 404
                gateway.path.write_text(_config([backend.url], extra=f'  more: {{endpoint: "{backend.url}", provider: openai}}'))
                await _until(client, gateway, True)
                assert (await _chat(client, gateway, "x", model="more")).status_code == 200
                gateway.path.write_text(_config([backend.url], extra="  more: {endpont: nowhere}"))
                refused = await _until(client, gateway, False)
                assert any("endpont" in problem and ":4:" in problem for problem in refused["problems"]), refused  # type: ignore[attr-defined]
                assert (await _chat(client, gateway, "x", model="more")).status_code == 200, "the old configuration stays in use"
                answer = await client.post(f"{gateway.url}/admin/reload", headers=HEADERS)
                assert answer.status_code == 409
                assert (await client.post(f"{gateway.url}/admin/reload")).status_code == 401
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_a_stream_outlives_the_removal_of_its_server() -> None:
    async with Backend(dialect="openai", models=["chat"], token_s=0.1) as old, Backend(dialect="openai", models=["chat"]) as new:
        gateway = GatewayProcess(_config([old.url]))
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                body = {"model": "chat", "messages": [{"role": "user", "content": "Count to 10"}], "stream": True}
                async with client.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS) as stream:
                    lines = stream.aiter_lines()
                    await anext(lines)
                    gateway.path.write_text(_config([new.url]))
                    assert (await client.post(f"{gateway.url}/admin/reload", headers=HEADERS)).status_code == 200
                    answer = await _chat(client, gateway, "moved")
                    assert answer.json()["choices"][0]["message"]["content"] == "moved"
                    rest = [line async for line in lines if line]
                assert rest[-1] == "data: [DONE]"
                assert len(new.requests) >= 1
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_a_breaker_stays_open_over_a_reload() -> None:
    async with Backend(dialect="openai", models=["chat"]) as good:
        dead = "http://127.0.0.1:9"
        gateway = GatewayProcess(_config([dead, good.url]))
        await asyncio.to_thread(gateway.start)
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                for number in range(20):
                    assert (await _chat(client, gateway, str(number))).status_code == 200
                before = json.dumps((await client.get(f"{gateway.url}/models/status", headers=HEADERS)).json())
                assert '"open"' in before
                gateway.path.write_text(_config([dead, good.url], weight=2.0))
                assert (await client.post(f"{gateway.url}/admin/reload", headers=HEADERS)).status_code == 200
                after = json.dumps((await client.get(f"{gateway.url}/models/status", headers=HEADERS)).json())
                assert '"open"' in after
        finally:
            await asyncio.to_thread(gateway.stop)


async def test_sighup_reaches_every_worker() -> None:
    async with Backend(dialect="openai", models=["chat", "more"]) as backend:
        gateway = GatewayProcess(_config([backend.url]), workers=2)
        await asyncio.to_thread(gateway.start)
        try:
            gateway.path.write_text(_config([backend.url], extra=f'  more: {{endpoint: "{backend.url}", provider: openai}}'))
            os.kill(gateway.pid, signal.SIGHUP)

            async def asked() -> list[int]:
                statuses = []
                for _ in range(12):  # a new connection each: the kernel spreads them over the workers
                    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
                        statuses.append((await _chat(client, gateway, "x", model="more")).status_code)
                return statuses

            for _ in range(300):
                if await asked() == [200] * 12:
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("some worker still refuses the new model")
        finally:
            await asyncio.to_thread(gateway.stop)
