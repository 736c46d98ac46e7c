"""Bytes that are not one unambiguous request are refused with 400 and the connection ends; nothing after them is believed."""

from __future__ import annotations

import pytest
from tests.integration.protocol.conftest import Pair
from tests.integration.protocol.wire import PING, Client, ask, chunked, one, request
from tests.support.gateway import KEY

AUTH = f"authorization: Bearer {KEY}"
SMUGGLED = request(ask("smuggled"))
N = len(PING)


def lines(*header: str, start: str = "POST /v1/chat/completions HTTP/1.1", body: bytes = b"") -> bytes:
    """A request from its lines, nothing added."""
    return "".join(f"{line}\r\n" for line in (start, *header)).encode("latin-1") + b"\r\n" + body


def post(*header: str, body: bytes = PING) -> bytes:
    """A hot request whose framing is given by ``header``."""
    return lines("host: a", AUTH, *header, body=body)


def chunks(body: bytes) -> bytes:
    """A hot request with this as its chunked body."""
    return post("transfer-encoding: chunked", body=body)


def edited(old: bytes, new: bytes) -> bytes:
    """A good request with one thing replaced."""
    good = request()
    assert good.count(old) == 1
    return good.replace(old, new)


REFUSED = {
    "length and chunked": post(f"content-length: {N}", "transfer-encoding: chunked", body=chunked(PING)),
    "chunked and length": post("transfer-encoding: chunked", f"content-length: {N}", body=chunked(PING)),
    "length and chunked, length 0": post("content-length: 0", "transfer-encoding: chunked", body=chunked(PING)),
    "two equal lengths": post(f"content-length: {N}", f"content-length: {N}"),
    "two different lengths": post(f"content-length: {N}", "content-length: 0"),
    "two lengths, differently spelt": post(f"Content-Length: {N}", f"CONTENT-LENGTH: {N - 1}"),
    "list of lengths": post(f"content-length: {N}, {N}"),
    "signed length": post(f"content-length: +{N}"),
    "negative length": post("content-length: -1"),
    "hexadecimal length": post(f"content-length: {N:#x}"),
    "length with a space inside": post("content-length: 6 2"),
    "length with an underscore": post("content-length: 6_2"),
    "empty length": post("content-length:"),
    "length of full-width digits": post("content-length: \xef\xbc\x96\xef\xbc\x92"),
    "length beyond 64 bits": post("content-length: 18446744073709551678"),
    "chunk size that is no number": chunks(b"zz\r\n" + PING + b"\r\n0\r\n\r\n"),
    "negative chunk size": chunks(b"-3e\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size with 0x": chunks(b"0x3e\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size with a space inside": chunks(b"3 e\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size with a space before": chunks(b" 3e\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size with a space behind": chunks(b"3e \r\n" + PING + b"\r\n0\r\n\r\n"),
    "empty chunk size": chunks(b"\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": chunks(b"1000000000000003e\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk size line ends in LF": chunks(b"3e\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk longer than its size": chunks(b"3d\r\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk without line end": chunks(b"3e\r\n" + PING + b"0\r\n\r\n"),
    "chunk ends in LF": chunks(b"3e\r\n" + PING + b"\n0\r\n\r\n"),
    "chunk extension with LF": chunks(b"3e;a=b\n" + PING + b"\r\n0\r\n\r\n"),
    "chunk extension with NUL": chunks(b"3e;a=\0\r\n" + PING + b"\r\n0\r\n\r\n"),
    "length in a trailer": chunks(b"3e\r\n" + PING + b"\r\n0\r\ncontent-length: 3\r\n\r\n"),
    "transfer encoding in a trailer": chunks(b"3e\r\n" + PING + b"\r\n0\r\ntransfer-encoding: chunked\r\n\r\n"),
    "trailer without colon": chunks(b"0\r\nnonsense\r\n\r\n"),
    "folded header": edited(b"host: gateway.test\r\n", b"host: gateway.test\r\nx-a: b\r\n c\r\n"),
    "folded with a tab": edited(b"host: gateway.test\r\n", b"host: gateway.test\r\nx-a: b\r\n\tc\r\n"),
    "first header line indented": edited(b"HTTP/1.1\r\nhost", b"HTTP/1.1\r\n host"),
    "LF after the request line": edited(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "LF after a header": edited(b"gateway.test\r\n", b"gateway.test\n"),
    "LF as the empty line": edited(b"\r\n\r\n", b"\r\n\n"),
    "LF only": request().replace(b"\r\n", b"\n"),
    "CR in a header": edited(b"gateway.test", b"gateway\r.test"),
    "CR after a header": edited(b"gateway.test\r\n", b"gateway.test\r"),
    "CR in the request line": edited(b" HTTP/1.1", b"\r HTTP/1.1"),
    "NUL in a header's value": edited(b"gateway.test", b"gateway\0.test"),
    "NUL in a header's name": edited(b"host:", b"ho\0st:"),
    "NUL in the target": edited(b"/v1/chat", b"/v1\0/chat"),
    "escape in a header's value": edited(b"gateway.test", b"gateway\x1b.test"),
    "control byte in a header's name": edited(b"host:", b"ho\x01st:"),
    "byte above 127 in a header's name": edited(b"host:", b"ho\xe9st:"),
    "space before the colon": edited(b"host:", b"host :"),
    "space before the colon of the length": edited(b"content-length:", b"content-length :"),
    "tab before the colon": edited(b"host:", b"host\t:"),
    "header without a name": edited(b"host:", b":"),
    "header without a colon": edited(b"host: gateway.test", b"host"),
    "two hosts": lines("host: a", "host: b", AUTH, f"content-length: {N}", body=PING),
    "two equal hosts": lines("host: a", "Host: a", AUTH, f"content-length: {N}", body=PING),
    "no host": lines(AUTH, f"content-length: {N}", body=PING),
    "HTTP/0.9 as it was": b"GET /v1/models\r\n\r\n",
    "HTTP/0.9 by number": edited(b"HTTP/1.1", b"HTTP/0.9"),
    "HTTP/1.2": edited(b"HTTP/1.1", b"HTTP/1.2"),
    "HTTP/2.0": edited(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1.10": edited(b"HTTP/1.1", b"HTTP/1.10"),
    "http in small letters": edited(b"HTTP/1.1", b"http/1.1"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 64,
    "no target": edited(b"POST /v1/chat/completions ", b"POST "),
    "two targets": edited(b"/v1/chat/completions ", b"/v1/chat/completions /v1/models "),
    "method in small letters": edited(b"POST", b"post"),
    "unknown method": edited(b"POST", b"FETCH"),
    "chunked in HTTP/1.0": lines(
        "host: a", AUTH, "transfer-encoding: chunked", start="POST /v1/chat/completions HTTP/1.0", body=chunked(PING)
    ),
    "chunked, identity": post("transfer-encoding: chunked, identity", body=chunked(PING)),
    "identity": post("transfer-encoding: identity", body=PING),
    "gzip, chunked": post("transfer-encoding: gzip, chunked", body=chunked(PING)),
    "xchunked": post("transfer-encoding: xchunked", body=chunked(PING)),
    "chunked twice": post("transfer-encoding: chunked", "transfer-encoding: chunked", body=chunked(PING)),
    "chunked with a parameter": post("transfer-encoding: chunked;q=1", body=chunked(PING)),
    "chunked in quotes": post('transfer-encoding: "chunked"', body=chunked(PING)),
    "no transfer encoding named": post("transfer-encoding:", body=chunked(PING)),
    "another expectation": request(PING, "expect: the-best"),
    "two keys": request(PING, f"authorization: Bearer {KEY}"),
}


@pytest.mark.parametrize("dripped", [False, True], ids=["in one piece", "byte by byte"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, dripped: bool, plain: Pair) -> None:
    with Client(plain.port) as client:
        if dripped:
            client.drip(REFUSED[name])
        else:
            client.send(REFUSED[name] + SMUGGLED)
        answer = client.answer()
        assert (answer.status, answer.code) == (400, "invalid_http"), answer.body
        assert answer.header("connection") == "close"
        assert client.end() == b""
    assert not plain.received()


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PROPFIND"])
def test_methods_that_are_not_spoken_here(method: str, plain: Pair) -> None:
    target = "upstream.test:443" if method == "CONNECT" else "/v1/chat/completions"
    with Client(plain.port) as client:
        client.send(lines("host: a", AUTH, start=f"{method} {target} HTTP/1.1") + SMUGGLED)
        answer = client.answer()
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert client.end() == b""
    assert not plain.received()


def test_what_stands_before_the_bad_bytes_is_served_and_nothing_after(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(request(ask("first")) + REFUSED["length and chunked"] + SMUGGLED)
        assert client.answer().content == "first"
        assert len(client.end().split(b"HTTP/1.1 ")) <= 2
    assert [received.json()["messages"][0]["content"] for received in plain.received()] == ["first"]


def test_chunk_extensions_are_ignored_but_not_without_end(plain: Pair) -> None:
    good = b'3e;name="a;b";x\r\n' + PING + b"\r\n0;last\r\n\r\n"
    assert one(plain.port, chunks(good)).content == "pong"
    with Client(plain.port) as client:
        client.send(chunks(b"3e"))
        with pytest.raises(AssertionError, match="refused"):
            for _ in range(400):
                client.send(b";" + b"x" * 4096)
                client.socket.settimeout(0.01)
                try:
                    answer = client.answer()
                except TimeoutError:
                    continue
                assert (answer.status, answer.code) == (400, "invalid_http")
                raise AssertionError("refused")
    assert len(plain.received()) == 1


def test_a_body_of_chunks_of_one_byte_is_served(plain: Pair) -> None:
    long = ask("Return exactly the text: " + "x" * 30_000)
    pieces = chunked(*(long[at : at + 1] for at in range(len(long))))
    assert one(plain.port, chunks(pieces)).content == "x" * 30_000


def test_trailers_change_nothing(plain: Pair) -> None:
    """Neither of this request nor of the next on the connection."""
    trailer = b"authorization: Bearer another\r\nx-hx-model-group: other\r\nx-note: trailer\r\nhost: b\r\n\r\n"
    body = b"%x\r\n%b\r\n0\r\n" % (N, PING) + trailer
    with Client(plain.port) as client:
        client.send(chunks(body) + request(ask("next"), key=""))
        assert client.answer().content == "pong"
        assert client.answer().status == 401
    with Client(plain.port) as client:
        client.drip(chunks(body) + request(ask("next")), 7)
        assert client.answer().content == "pong"
        assert client.answer().content == "next"
    assert len(plain.received()) == 3
    for received in plain.received():
        assert "x-note" not in received.headers


def test_an_authorization_in_a_trailer_opens_nothing(plain: Pair) -> None:
    body = b"%x\r\n%b\r\n0\r\nauthorization: Bearer %b\r\n\r\n" % (N, PING, KEY.encode())
    with Client(plain.port) as client:
        client.send(lines("host: a", "transfer-encoding: chunked", body=body) + request(key=""))
        assert client.answer().status == 401
        assert client.answer().status == 401
    assert not plain.received()


def test_absolute_form_is_the_same_request(plain: Pair) -> None:
    assert one(plain.port, request(path="http://elsewhere.test:81/v1/chat/completions")).content == "pong"
    received = plain.received()[0]
    assert received.path == "/v1/chat/completions"
    assert received.headers["host"] == plain.backend.url.removeprefix("http://")


def test_asterisk_form(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(request(b"", method="OPTIONS", path="*"))
        assert client.answer().status in (200, 204, 404, 405)
        client.send(request(b"", method="GET", path="*"))
        assert client.answer().status in (400, 404, 405)
        client.send(request())
        assert client.answer().content == "pong"


@pytest.mark.parametrize(
    "path", ["//v1/chat/completions", "/v1/chat/completions?x=1", "/v1/chat/completions/", "/V1/chat/completions", "/v1/%63hat/completions"]
)
def test_odd_spellings_of_a_hot_path_never_end_in_a_fault(path: str, plain: Pair) -> None:
    answer = one(plain.port, request(path=path))
    assert answer.status in (200, 404)
    if answer.status == 200:
        assert answer.content == "pong"


def test_line_ends_before_a_request_are_skipped(plain: Pair) -> None:
    with Client(plain.port) as client:
        client.send(b"\r\n\r\n" + request() + b"\r\n" + request())
        assert [client.answer().content, client.answer().content] == ["pong", "pong"]


def test_three_bytes_are_no_request_even_after_one_whose_body_came_late(plain: Pair) -> None:
    """The door remembers heads; what it remembers them by must not be something a client can send."""
    with Client(plain.port) as client:
        whole = request()
        client.send(whole[:-10])
        assert plain.gateway.process is not None
        client.socket.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.answer()
        client.socket.settimeout(20)
        client.send(whole[-10:])
        assert client.answer().content == "pong"
        client.send(b"\x003\x00")
        assert client.answer().code == "invalid_http"
        assert client.end() == b""


@pytest.mark.parametrize(
    "name", ["connection", "keep-alive", "te", "trailer", "upgrade", "proxy-authorization", "cookie", "x-forwarded-for"]
)
def test_headers_of_this_hop_go_no_further(name: str, plain: Pair) -> None:
    values = {"connection": "keep-alive", "te": "trailers", "trailer": "x-note", "keep-alive": "timeout=5", "upgrade": "websocket"}
    assert one(plain.port, request(PING, f"{name}: {values.get(name, 'a=b')}", "x-kept: yes")).status == 200
    received = plain.received()[0]
    assert name not in received.headers
    assert received.headers["x-kept"] == "yes"


def test_what_connection_names_goes_no_further(plain: Pair) -> None:
    """Named before or after, in one line or in several."""
    data = request(PING, "x-one: 1", "connection: x-one, x-two", "x-two: 2", "Connection: X-Three", "x-three: 3", "x-four: 4")
    assert one(plain.port, data).status == 200
    received = plain.received()[0]
    assert not {"x-one", "x-two", "x-three"} & received.headers.keys()
    assert received.headers["x-four"] == "4"


@pytest.mark.parametrize("spelling", ["authorization: Bearer ", "AUTHORIZATION: bearer ", "x-api-key: ", "api-key: "])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions?x=1", "/v1/other"])
def test_the_clients_key_never_leaves(path: str, spelling: str, plain: Pair) -> None:
    one(plain.port, request(PING, spelling + KEY, key="", path=path))
    assert len(plain.received()) == 1
    assert KEY.encode() not in plain.received()[0].head


@pytest.mark.parametrize("more", [(), ("x-request-id: {}",)], ids=["equal heads", "ids that differ"])
def test_each_request_is_known_by_the_key_it_brings(more: tuple[str, ...], plain: Pair) -> None:
    """However often another came on its connection, and whatever was remembered of that one's head."""
    with Client(plain.port) as client:
        for number in range(24):
            key = "somebody-elses-key" if number % 8 in (3, 5, 6) else KEY
            client.send(request(PING, f"authorization: Bearer {key}", *(line.format(number) for line in more), key=""))
            assert client.answer().status == (200 if key == KEY else 401)


def test_a_head_request_is_forwarded_and_answered(plain: Pair) -> None:
    """Its answer, here the model server's refusal, has a length and no body."""
    with Client(plain.port) as client:
        client.send(request(b"", method="HEAD", path="/v1/other", length=False))
        assert client.answer(bodiless=True).status == 405
        client.send(request())
        assert client.answer().content == "pong"
