"""Connections in the ways clients use them: kept, pipelined, in HTTP/1.0, half closed, with an upgrade on offer."""

from __future__ import annotations

import json
import random

import pytest
from tests.integration.protocol.conftest import Pair
from tests.integration.protocol.wire import PING, Client, ask, chunked, request, texts

OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")


def test_kept_alive(plain: Pair) -> None:
    with Client(plain.port) as client:
        for number in range(30):
            client.send(request(ask(f"number {number}")))
            answer = client.answer()
            assert answer.content == f"number {number}"
            assert answer.header("connection") is None


def test_closed_when_the_client_says_so(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(request(PING, "connection: close") + request())
        answer = client.answer()
        assert (answer.content, answer.header("connection")) == ("pong", "close")
        assert client.end() == b""
    assert len(plain.received()) == 1


@pytest.mark.parametrize("lines", [(), ("connection: keep-alive",), ("Connection: close",)])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
def test_http_1_0_gets_one_answer(lines: tuple[str, ...], path: str, plain: Pair) -> None:
    method, body = ("GET", b"") if path == "/v1/models" else ("POST", PING)
    with Client(plain.port) as client:
        client.send(request(body, *lines, version="HTTP/1.0", method=method, path=path, length=method == "POST"))
        answer = client.answer()
        assert answer.status == 200
        assert answer.header("transfer-encoding") is None
        assert client.end() == b""


def test_http_1_0_gets_a_stream_without_chunks(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(request(ask("Count to 5", stream=True), version="HTTP/1.0"))
        answer = client.answer()
        assert answer.header("transfer-encoding") is None and answer.header("content-length") is None
        assert answer.events[-1] == "[DONE]"
        assert texts(answer.events) == "1 2 3 4 5"


def hot(number: int) -> tuple[bytes, str]:
    return request(ask(f"hot {number}")), f"hot {number}"


def streamed(number: int) -> tuple[bytes, str]:
    return request(ask(f"streamed {number}", stream=True)), f"streamed {number}"


def in_chunks(number: int) -> tuple[bytes, str]:
    body = ask(f"in chunks {number}")
    return request(chunked(body[:20], body[20:]), "transfer-encoding: chunked", length=False), f"in chunks {number}"


def cold(number: int) -> tuple[bytes, str]:
    return request(b"", method="GET", path=f"/v1/models/none-{number}", length=False), f"none-{number}"


def healthz(_: int) -> tuple[bytes, str]:
    return request(b"", method="GET", path="/healthz", length=False), '"ok":true'


def refused(number: int) -> tuple[bytes, str]:
    return request(ask("x", model=f"unknown-{number}")), f"unknown-{number}"


def queried(number: int) -> tuple[bytes, str]:
    return request(ask(f"queried {number}"), path="/v1/chat/completions?a=b"), f"queried {number}"


KINDS = (hot, streamed, in_chunks, cold, healthz, refused, queried)


@pytest.mark.parametrize("seed", range(8))
def test_pipelined_requests_are_answered_in_order(seed: int, plain: Pair) -> None:
    """Twenty deep, hot and cold mixed, cut into writes at random."""
    dice = random.Random(seed)
    asked = [dice.choice(KINDS)(number) for number in range(20)]
    data = b"".join(sent for sent, _ in asked)
    with Client(plain.port) as client:
        at = 0
        while at < len(data):
            size = dice.choice((1, 30, 300, 3000, 30_000))
            client.send(data[at : at + size])
            at += size
        for _, expected in asked:
            answer = client.answer()
            assert answer.whole
            body = answer.body.decode()
            said = (
                texts(answer.events)
                if answer.header(
                    "content-type",
                ).startswith("text/event-stream")
                else body
            )  # type: ignore[union-attr]
            assert expected in said
        client.send(request())
        assert client.answer().content == "pong"


def test_pipelining_stops_where_the_client_said_close(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(hot(1)[0] + request(ask("last"), "connection: close") + hot(2)[0])
        assert [client.answer().content, client.answer().content] == ["hot 1", "last"]
        assert client.end() == b""
    assert len(plain.received()) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_shuts_its_side_has_left(stream: bool, plain: Pair) -> None:
    """A close looks the same on the wire; going on for one that may be gone would cost a model's time."""
    plain.backend.first_token_s = 5.0
    try:
        with Client(plain.port) as client:
            client.send(request(ask("ping", stream=stream)))
            plain.server.until(lambda backend: backend.in_flight > 0)
            client.socket.shutdown(1)
            assert client.end() == b""
            plain.server.until(lambda backend: backend.cancelled == 1)
    finally:
        plain.backend.first_token_s = 0.0


@pytest.mark.parametrize("piece", [1 << 16, 50, 1])
def test_an_upgrade_to_http_2_is_not_taken_and_nothing_is_lost(piece: int, plain: Pair) -> None:
    """As Java's HttpClient offers it with every first request."""
    with Client(plain.port) as client:
        client.drip(request(ask("offered"), *OFFER), piece)
        answer = client.answer()
        assert answer.content == "offered"
        assert answer.header("upgrade") is None
        client.drip(request(ask("and again"), *OFFER) + request(ask("without")), piece)
        assert [client.answer().content, client.answer().content] == ["and again", "without"]
    for received in plain.received():
        assert not {"upgrade", "http2-settings", "connection"} & received.headers.keys()


def test_an_upgrade_offered_with_a_chunked_body_and_a_get(plain: Pair) -> None:
    body = ask("in chunks")
    with Client(plain.port) as client:
        client.send(
            request(chunked(body[:9], body[9:]), *OFFER, "transfer-encoding: chunked", length=False)
            + request(b"", *OFFER, method="GET", path="/healthz", length=False)
            + request(ask("last"))
        )
        assert client.answer().content == "in chunks"
        assert json.loads(client.answer().body)["ok"] is True
        assert client.answer().content == "last"


def test_a_web_socket_is_answered_as_plain_http(plain: Pair) -> None:
    lines = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==")
    with Client(plain.port) as client:
        client.send(request(b"", *lines, method="GET", path="/healthz", length=False) + request())
        assert client.answer().status == 200
        assert client.answer().content == "pong"


def test_the_remembered_head_is_the_same_request_only_if_it_is_the_same(plain: Pair) -> None:
    """The same head with another length, key, path or header, bodies cut or too long: each is what it says."""
    with Client(plain.port) as client:
        for number in range(3):
            client.send(request(ask("a" * number * 7)))
            assert client.answer().content == "a" * number * 7
        client.send(request(key="not-a-key"))
        assert client.answer().status == 401
        client.send(request(key=""))
        assert client.answer().status == 401
        client.send(request())
        assert client.answer().content == "pong"
        client.send(request(b'{"model":"tiny","prompt":"Say: text"}', path="/v1/completions"))
        assert json.loads(client.answer().body)["object"] == "text_completion"
        client.send(request(ask("noted"), "x-note: 1"))
        assert client.answer().content == "noted"
        for cut in (-1, -10, 30):
            whole = request(ask(f"cut {cut}"))
            client.send(whole[:cut])
            client.send(whole[cut:])
            assert client.answer().content == f"cut {cut}"
        client.send(request(ask("one")) + request(ask("two"))[:50])
        assert client.answer().content == "one"
        client.send(request(ask("two"))[50:])
        assert client.answer().content == "two"
        client.send(request(ask("longer")) + b"GET ")
        assert client.answer().content == "longer"
        client.send(request(b"", method="GET", path="/healthz", length=False)[4:])
        assert client.answer().status == 200
    assert [received.headers.get("x-note") for received in plain.received()].count("1") == 1


def test_a_refusal_is_never_remembered_as_another_request(plain: Pair) -> None:
    """Two heads in one read, both answered on the spot: the first must not come to stand for the second."""
    without, wrong = request(PING, key=""), request(ask("x", model="unknown"))
    with Client(plain.port) as client:
        for _ in range(3):
            client.send(without + wrong)
            assert [client.answer().status, client.answer().status] == [401, 404]
            client.send(without)
            assert client.answer().status == 401
            client.send(wrong)
            assert client.answer().status == 404
