"""Inference requests that come through the control plane: which exchange the data plane gets, and what is refused before."""

from __future__ import annotations

import pytest
from tests.unit.control.house import KEYS, USER, House, answer, fleet

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, FORWARD, Exchange


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions?user=1", CHAT),
        ("/chat/completions?x", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1/chat%2Fcompletions", CHAT),
        ("/v1/completions?", COMPLETIONS),
        ("/embeddings?a=b", EMBEDDINGS),
    ],
)
async def test_a_hot_route_asked_for_in_an_odd_way_means_the_same(path: str, route: object) -> None:
    house = House(script=answer(body=b'{"id":"x"}', headers=b"content-type: application/json\r\nx-hx-model: m\r\nx-request-id: theirs\r\n"))
    async with house.client() as client:
        found = await client.post(path, content=b'{"messages":[]}', headers={"content-type": "application/json", "x-request-id": "theirs"})
    assert (found.status_code, found.content, found.headers["x-hx-model"]) == (200, b'{"id":"x"}', "m")
    assert found.headers.get_list("x-request-id") == ["theirs"]
    exchange = house.exchanges[0]
    assert exchange.route is route and exchange.method == b"POST" and exchange.body == b'{"messages":[]}'
    assert exchange.received_s == 500.0 and len(exchange.id) == 26


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/completions", "/v1/embeddings"])
async def test_wrong_method_on_a_hot_route(method: str, path: str) -> None:
    async with House(registry=fleet(forward=True)).client() as client:
        found = await client.request(method, path)
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        error = found.json()["error"]
        assert error["code"] == "method_not_allowed" and error["message"].startswith(f"{method} ")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
async def test_any_other_path_is_forwarded_as_the_client_spelt_it(method: str) -> None:
    house = House(registry=fleet(forward=True), script=answer(201, b"made", b"content-type: text/plain\r\n"))
    async with house.client() as client:
        found = await client.request(method, "/v1/audio/a%2Fb?x=1&y=%20", content=b"\x00body")
    assert found.status_code == 201
    assert found.content == (b"" if method == "HEAD" else b"made")
    exchange = house.exchanges[0]
    assert exchange.route is FORWARD
    assert exchange.method == method.encode()
    assert exchange.target == b"/v1/audio/a%2Fb?x=1&y=%20"
    assert exchange.body == b"\x00body"


async def test_headers_are_cleaned_and_noted() -> None:
    house = House({"keys": KEYS}, fleet(forward=True), answer())
    sent = [
        ("authorization", f"Bearer {USER}"), ("x-api-key", "k"), ("api-key", "k"), ("cookie", "c=1"), ("connection", "close, X-Hop"),
        ("x-hop", "1"), ("te", "trailers"), ("proxy-authorization", "Basic x"), ("accept-encoding", "br"), ("x-forwarded-for", "203.0.113.9"),
        ("content-type", "multipart/form-data; boundary=b"), ("x-custom", "kept"), ("x-custom", "twice"), ("traceparent", "00-ab-cd-01"),
        ("x-hx-session", "s1"), ("x-hx-tags", "t"), ("x-request-id", "r1"), ("accept", "application/json"),
    ]  # fmt: skip
    async with house.client() as client:
        await client.post("/v1/audio/transcriptions", headers=sent, content=b"--b")
        await client.post("/v1/chat/completions?x", headers=sent, content=b"{}")
    forwarded, hot = house.exchanges
    lines = b"".join(forwarded.forward).split(b"\r\n")
    assert b"content-type: multipart/form-data; boundary=b" in lines
    assert lines.count(b"x-custom: kept") == lines.count(b"x-custom: twice") == 1
    assert b"traceparent: 00-ab-cd-01" in lines and b"accept: application/json" in lines
    names = {line.partition(b":")[0] for line in lines if line}
    assert names <= {b"content-type", b"x-custom", b"traceparent", b"accept", b"user-agent"}
    assert b"".join(forwarded.forward).endswith(b"\r\n")
    assert not any(piece.startswith(b"content-type") for piece in hot.forward)
    for exchange in (forwarded, hot):
        notes = exchange.notes
        assert (notes[b"authorization"], notes[b"x-request-id"], notes[b"x-hx-session"], notes[b"x-hx-tags"]) == (
            f"Bearer {USER}".encode(), b"r1", b"s1", b"t",
        )  # fmt: skip


async def test_without_an_upstream_an_unknown_path_is_not_found() -> None:
    async with House().client() as client:
        found = await client.post("/v1/rerank", json={})
    assert found.status_code == 404
    error = found.json()["error"]
    assert error["code"] == "not_found" and "gateway.default_upstream" in error["message"] and "POST /v1/rerank" in error["message"]


async def test_what_exists_is_told_to_callers_only() -> None:
    house = House({"keys": KEYS})
    async with house.client() as client:
        assert (await client.get("/v1/rerank")).status_code == 401
    async with house.client(USER) as client:
        assert (await client.get("/v1/rerank")).status_code == 404


async def test_nothing_outside_v1_is_forwarded() -> None:
    house = House(registry=fleet(forward=True))
    async with house.client() as client:
        for path in ("/admin", "/key/generate", "/v2/rerank"):
            assert (await client.post(path)).status_code == 404


async def test_our_own_routes_are_never_forwarded() -> None:
    house = House(registry=fleet(forward=True))
    async with house.client() as client:
        assert (await client.delete("/v1/models/hx-chat")).status_code == 405
        assert (await client.post("/v1/models")).status_code == 405


async def test_a_body_over_the_limit_is_refused() -> None:
    house = House({"http": {"max_body_bytes": 1024}}, fleet(forward=True), answer())
    async with house.client() as client:
        found = await client.post("/v1/files", content=b"x" * 1025)
        assert (await client.post("/v1/files", content=b"x" * 1024)).status_code == 200
    assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")


async def test_an_answer_without_a_body_has_no_length() -> None:
    house = House(registry=fleet(forward=True), script=answer(204, b"", b""))
    async with house.client() as client:
        found = await client.delete("/v1/files/1")
    assert found.status_code == 204 and "content-length" not in found.headers


async def test_a_fault_while_dispatching_is_a_clean_500() -> None:
    def fail(exchange: Exchange) -> None:
        raise ZeroDivisionError

    async with House(registry=fleet(forward=True), script=fail).client() as client:
        found = await client.post("/v1/rerank")
    assert (found.status_code, found.json()["error"]["code"]) == (500, "internal_error")
