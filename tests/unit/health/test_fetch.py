"""The GET used by probes: what it sends, what it reads, and everything it refuses to wait for or believe."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from tests.unit.health.canned import Canned

from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.health.probes import Unreachable
from hx_gateway.upstream.fetch import fetch


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_sends_the_endpoints_own_lines_below_its_base() -> None:
    async with Canned({"/proxy/v1/models": (200, {"ok": 1})}, headers=b"X-Some: thing\r\n") as server:
        endpoint = Endpoint("e", Address("http", "127.0.0.1", server.port, "/proxy"), api_key="sk-test-0001", headers={"X-Extra": "yes"})
        answer = await fetch(endpoint, "/v1/models")
    assert (answer.status, answer.json()) == (200, {"ok": 1})
    assert answer.header(b"x-some") == b"thing"
    lines = server.heads[0].split(b"\r\n")
    assert lines[0] == b"GET /proxy/v1/models HTTP/1.1"
    assert b"authorization: Bearer sk-test-0001" in lines
    assert b"x-extra: yes" in lines
    assert b"host: 127.0.0.1:%d" % server.port in lines


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nevil", b"ok"),
    ],
)
async def test_reads_every_framing(raw: bytes, body: bytes) -> None:
    async with Canned(raw=raw) as server:
        answer = await fetch(server.endpoint(), "/")
    assert answer.body == body
    assert answer.status in (200, 204)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort", "closed before the answer was complete"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab", "closed before the answer was complete"),
        (b"", "closed before the answer was complete"),
        (b"SSH-2.0-OpenSSH_9\r\n", "not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000, "larger than 1000 bytes"),
    ],
)
async def test_refuses_what_is_no_whole_answer(raw: bytes, why: str) -> None:
    async with Canned(raw=raw) as server:
        with pytest.raises(Unreachable, match=why):
            await fetch(server.endpoint(), "/", limit=1000)


async def test_does_not_wait_for_ever() -> None:
    async with Canned(silent=True) as server:
        with pytest.raises(Unreachable, match="no answer within"):
            await fetch(server.endpoint(), "/", timeout_s=0.05)


async def test_reasons_do_not_name_addresses() -> None:
    refused = Endpoint("e", Address("http", "127.0.0.1", free_port()))
    with pytest.raises(Unreachable, match="refused") as error:
        await fetch(refused, "/")
    assert "127.0.0.1" not in str(error.value)
    nameless = Endpoint("e", Address("http", "no-such-host.invalid", 80))
    with pytest.raises(Unreachable) as error:
        await fetch(nameless, "/")
    assert "no-such-host" not in str(error.value)


async def test_https_to_a_server_without_tls_is_a_failure_not_a_fallback() -> None:
    async with Canned(greeting=b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok") as server:
        endpoint = Endpoint("e", Address("https", "127.0.0.1", server.port), tls=ssl.create_default_context())
        with pytest.raises(Unreachable, match="TLS failed"):
            await fetch(endpoint, "/")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_https_accepts_a_certificate_it_can_check_and_no_other(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with Canned({"/": (200, {"ok": 1})}, tls=context) as server:
        trusting = server.endpoint(tls=ssl.create_default_context(cafile=str(certificate)))
        assert (await fetch(trusting, "/")).json() == {"ok": 1}
        with pytest.raises(Unreachable, match="certificate is not accepted"):
            await fetch(server.endpoint(), "/")
