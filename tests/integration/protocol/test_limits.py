"""Sizes and deadlines of the door: refused as soon as it is known, and told so."""

from __future__ import annotations

import pytest
from tests.integration.protocol.conftest import Pair
from tests.integration.protocol.wire import PING, Client, ask, chunked, one, request

LONG = [f"x-filler-{number}: {'f' * 90}" for number in range(100)]


@pytest.mark.parametrize("piece", [1 << 20, 500, 40])
def test_a_head_that_is_too_large(piece: int, tight: Pair) -> None:
    with Client(tight.port) as client:
        client.drip(request(PING, *LONG), piece)
        answer = client.answer()
        assert (answer.status, answer.code) == (431, "headers_too_large")
        assert answer.header("connection") == "close"
        assert client.end() == b""
    assert not tight.received()


def test_a_head_just_within_the_limit(tight: Pair) -> None:
    assert one(tight.port, request(PING, *LONG[:75])).content == "pong"
    with Client(tight.port) as client:
        client.drip(request(PING, *LONG[:75]), 977)
        assert client.answer().content == "pong"


def test_a_large_head_after_others_on_the_same_connection(tight: Pair) -> None:
    with Client(tight.port) as client:
        for _ in range(8):
            client.send(request(PING, *LONG[:30]))
            assert client.answer().content == "pong"
        client.send(request(PING, *LONG))
        assert client.answer().status == 431
        assert client.end() == b""
    assert len(tight.received()) == 8


def test_an_endless_target(tight: Pair) -> None:
    with Client(tight.port) as client:
        client.drip(b"GET /v1/" + b"a" * 40_000, 3000)
        assert client.answer().status == 431
        assert client.end() == b""


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/other", "/v1/chat/completions?x"])
def test_a_body_declared_too_large_is_refused_before_it_comes(path: str, tight: Pair) -> None:
    with Client(tight.port) as client:
        client.send(request(b"", "content-length: 65537", "expect: 100-continue", length=False, path=path))
        answer = client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        assert "http.max_body_bytes" in answer.body.decode()
        assert client.end() == b""
    assert not tight.received()


def test_a_body_just_within_the_limit(tight: Pair) -> None:
    body = ask("x" * (65536 - len(ask(""))))
    assert len(body) == 65536
    assert one(tight.port, request(body)).status == 200


def test_a_chunked_body_that_grows_too_large(tight: Pair) -> None:
    with Client(tight.port) as client:
        client.send(request(chunked(*[b" " * 4096] * 17), "transfer-encoding: chunked", length=False))
        answer = client.answer()
        assert (answer.status, answer.code) == (413, "request_too_large")
        assert client.end() == b""
    assert not tight.received()


def test_the_remembered_head_does_not_lift_the_limit(tight: Pair) -> None:
    with Client(tight.port) as client:
        for _ in range(3):
            client.send(request())
            assert client.answer().content == "pong"
        client.send(request(b" " * 65_537))
        assert client.answer().status == 413
        assert client.end() == b""


def test_a_slow_head(tight: Pair) -> None:
    with Client(tight.port) as client:
        client.send(request()[:40])
        answer = client.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert "http.head_timeout_seconds" in answer.body.decode()
        assert client.end() == b""


def test_a_slow_body(tight: Pair) -> None:
    with Client(tight.port) as client:
        client.send(request()[:-5])
        answer = client.answer()
        assert (answer.status, answer.code) == (408, "request_timeout")
        assert "http.body_timeout_seconds" in answer.body.decode()
        assert client.end() == b""
    assert not tight.received()


def test_a_slow_second_request(tight: Pair) -> None:
    """The deadline begins with its first byte, not with the connection."""
    with Client(tight.port) as client:
        client.send(request())
        assert client.answer().content == "pong"
        client.send(request()[:10])
        assert client.answer().code == "request_timeout"


@pytest.mark.parametrize("first", [b"", request(), b"\r\n"])
def test_a_silent_connection_is_closed_without_a_word(first: bytes, tight: Pair) -> None:
    with Client(tight.port) as client:
        client.send(first)
        if len(first) > 2:
            assert client.answer().content == "pong"
        assert client.end() == b""


def test_a_client_that_waits_to_be_told(plain: Pair) -> None:
    with Client(plain.port) as client:
        for _ in range(2):
            client.send(request(b"", f"content-length: {len(PING)}", "expect: 100-continue", length=False))
            assert client.answer().status == 100
            client.send(PING)
            assert client.answer().content == "pong"


def test_a_client_that_waits_to_be_told_though_another_is_being_answered(plain: Pair) -> None:
    """Else it would wait for ever: nobody says later what was not said at the time."""
    plain.backend.first_token_s = 0.3
    try:
        with Client(plain.port) as client:
            client.send(request() + request(b"", f"content-length: {len(PING)}", "expect: 100-continue", length=False))
            assert client.answer().content == "pong"
            assert client.answer().status == 100
            client.send(PING)
            assert client.answer().content == "pong"
    finally:
        plain.backend.first_token_s = 0.0


def test_a_client_of_http_1_0_is_not_told_to_go_on(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(request(PING, "expect: 100-continue", version="HTTP/1.0"))
        assert client.answer().content == "pong"
        assert client.end() == b""
