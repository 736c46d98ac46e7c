"""TLS at both doors: the gateway's own, and a model server's."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import trustme
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.testing.backend import Backend

CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}], "temperature": 0}
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


@pytest.fixture
async def secure_upstream(authority: trustme.CA) -> AsyncIterator[str]:
    """A TLS face in front of a scripted server; only the transport is ours, the answers are the server's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    async with Backend(dialect="openai", models=["chat"]) as backend:

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", backend.port)
            await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer), return_exceptions=True)

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        try:
            yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()


async def _ask(gateway: GatewayProcess, body: dict[str, object]) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=HEADERS, timeout=30)


async def test_a_model_server_behind_tls_with_its_own_authority(secure_upstream: str, tmp_path: Path) -> None:
    config = f"""
endpoints:
  secure: {{url: "{secure_upstream}", provider: openai, tls_ca_file: "{tmp_path / "ca.pem"}", discover: false}}
models:
  chat: {{endpoint: secure}}
"""
    gateway = GatewayProcess(config)
    await asyncio.to_thread(gateway.start)
    try:
        plain = await _ask(gateway, CHAT)
        assert plain.status_code == 200, plain.text
        assert plain.json()["choices"][0]["message"]["content"] == "HX-OK"
        streamed = await _ask(gateway, {**CHAT, "stream": True})
        assert streamed.text.rstrip().endswith("data: [DONE]")
    finally:
        await asyncio.to_thread(gateway.stop)


async def test_an_unknown_authority_is_not_trusted(secure_upstream: str) -> None:
    config = f'models: {{chat: {{endpoint: "{secure_upstream}", provider: openai}}}}'
    gateway = GatewayProcess(config)
    await asyncio.to_thread(gateway.start)
    try:
        answer = await _ask(gateway, CHAT)
        assert answer.status_code == 502
        error = answer.json()["error"]
        assert error["code"] == "upstream_connect_failed"
        assert "TLS" in error["message"]
    finally:
        await asyncio.to_thread(gateway.stop)


async def test_the_gateway_itself_speaks_tls(authority: trustme.CA, tmp_path: Path) -> None:
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    async with Backend(dialect="openai", models=["chat"]) as backend:
        config = f"""
service: {{tls: {{cert_file: "{tmp_path / "cert.pem"}", key_file: "{tmp_path / "key.pem"}"}}}}
models: {{chat: {{endpoint: "{backend.url}", provider: openai}}}}
"""
        gateway = GatewayProcess(config, verify=str(tmp_path / "ca.pem"))
        await asyncio.to_thread(gateway.start)
        try:
            context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
            async with httpx.AsyncClient(verify=context, trust_env=False) as client:
                answer = await client.post(f"{gateway.url}/v1/chat/completions", json=CHAT, headers=HEADERS, timeout=30)
                assert answer.json()["choices"][0]["message"]["content"] == "HX-OK"
                events = []
                async with client.stream(
                    "POST", f"{gateway.url}/v1/chat/completions", json={**CHAT, "stream": True}, headers=HEADERS
                ) as stream:
                    events = [line async for line in stream.aiter_lines() if line]
                assert events[-1] == "data: [DONE]"
                text = "".join(json.loads(line[6:])["choices"][0]["delta"].get("content") or "" for line in events[:-1])
                assert text == "HX-OK"
                assert (await client.get(f"{gateway.url}/healthz")).json()["ok"] is True
                cookie = (await client.post(f"{gateway.url}/ui/login", data={"key": KEY})).headers["set-cookie"]
                assert cookie.startswith("__Secure-hx-session-") and "; Secure" in cookie
        finally:
            await asyncio.to_thread(gateway.stop)
