"""Everything below /v1 that the gateway does not serve itself goes to the default upstream, by OpenAI's SDK and by hand."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from tests.integration.clients.litellm_like import SOUND, LitellmLike
from tests.support.background import Background
from tests.support.gateway import GatewayProcess, free_port

UPSTREAM_KEY = "key-of-the-upstream"
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "hi"}]}


@dataclass(frozen=True)
class Place:
    """What runs."""

    gateway: GatewayProcess
    upstream: LitellmLike

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One request with the master key: status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
        lines = {"Authorization": f"Bearer {self.gateway.key}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {k: v for k, v in lines.items() if v})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


def configuration(url: str) -> str:
    return f"""\
gateway: {{default_upstream: {{url: "{url}", api_key: "env:UPSTREAM_KEY"}}}}
endpoints: {{litellm: {{url: "{url}", api_key: "env:UPSTREAM_KEY", discover: false}}}}
models: {{mock: {{endpoint: litellm}}}}
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A gateway with a default upstream that knows its key."""
    with (
        Background(lambda: LitellmLike(UPSTREAM_KEY)) as upstream,
        GatewayProcess(configuration(upstream.url), environment={"UPSTREAM_KEY": UPSTREAM_KEY}) as gateway,
    ):
        yield Place(gateway, upstream)


@pytest.fixture(scope="module")
def misconfigured() -> Iterator[Place]:
    """The same, but the gateway has the wrong key for its upstream."""
    with (
        Background(lambda: LitellmLike(UPSTREAM_KEY)) as upstream,
        GatewayProcess(configuration(upstream.url), environment={"UPSTREAM_KEY": "another-key"}) as gateway,
    ):
        yield Place(gateway, upstream)


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK."""
    with openai.OpenAI(base_url=f"{place.gateway.url}/v1", api_key=place.gateway.key, max_retries=0) as made:
        yield made


def test_json(client: openai.OpenAI, place: Place) -> None:
    raw = client.moderations.with_raw_response.create(model="mock", input="something", extra_headers={"x-api-key": "leaks"})
    assert json.loads(raw.content)["seen"] == {"model": "mock", "input": "something"}
    assert raw.headers["x-litellm-call-id"] == "call-1"
    assert not {"x-private", "set-cookie"} & set(raw.headers)
    sent = place.upstream.asked[-1].headers
    assert sent["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert "x-api-key" not in sent
    assert sent["host"] == place.upstream.url.removeprefix("http://")
    assert sent["x-request-id"] == raw.headers["x-request-id"]


def test_binary_answers_are_streamed_whole(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(model="mock", voice="alloy", input="x") as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        assert b"".join(answer.iter_bytes(1000)) == SOUND


def test_multipart_bodies_pass(client: openai.OpenAI, place: Place) -> None:
    found = client.files.create(file=("name.jsonl", SOUND), purpose="batch")
    assert found.bytes > len(SOUND)
    sent = place.upstream.asked[-1]
    assert SOUND in sent.body
    assert sent.headers["content-type"].startswith("multipart/form-data; boundary=")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_method_path_and_query_are_kept(place: Place, method: str) -> None:
    status, _, body = place.ask(method, "/v1/files/a%2Fb?limit=3&after=x%20y")
    assert status == 200
    assert (json.loads(body)["method"], json.loads(body)["query"]) == (method, "limit=3&after=x%20y")
    assert place.upstream.asked[-1].path == "/v1/files/a%2Fb"


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [("/v1/nope/nothing", 404, b'{"detail":"Not Found"}'), ("/v1/bad", 400, b"input is required"), ("/v1/busy", 429, b"slow down")],
)
def test_the_upstreams_own_errors_are_kept(place: Place, path: str, status: int, part: bytes) -> None:
    found, headers, body = place.ask("POST", path, {"x": 1})
    assert found == status
    assert part in body
    assert headers.get("retry-after") == ("7" if status == 429 else None)
    assert headers["x-request-id"]


def test_only_who_may_call_is_forwarded(place: Place) -> None:
    before = len(place.upstream.asked)
    for key in ("", "Bearer nobody-knows-this-key"):
        status, _, body = place.ask("POST", "/v1/moderations", {"input": "x"}, Authorization=key)
        assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    assert len(place.upstream.asked) == before


def test_a_client_that_leaves_ends_the_upstreams_work(place: Place) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", place.gateway.port, timeout=30)
    connection.request("GET", "/v1/endless", headers={"Authorization": f"Bearer {place.gateway.key}"})
    answer = connection.getresponse()
    assert answer.readline() == b"data: 1\n"
    answer.close()
    connection.close()
    give_up_s = time.monotonic() + 30
    while "/v1/endless" not in place.upstream.left:
        assert time.monotonic() < give_up_s, "the upstream goes on working for nobody"
        time.sleep(0.01)


# The upstream refuses the gateway's own key: LiteLLM says 400 "No connected db."


@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/audio/speech", "/v1/files", "/v1/nope"])
def test_what_is_forwarded_with_a_wrong_key_is_not_the_clients_fault(misconfigured: Place, path: str) -> None:
    status, _, body = misconfigured.ask("POST", path, {"input": "x"})
    error = json.loads(body)["error"]
    assert (status, error["code"], error["type"]) == (502, "upstream_credentials", "upstream_error")
    assert "No connected db" not in error["message"]
    assert UPSTREAM_KEY.encode() not in body


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_with_a_wrong_key_is_not_the_clients_fault(misconfigured: Place, stream: bool) -> None:
    status, _, body = misconfigured.ask("POST", "/v1/chat/completions", {**CHAT, "stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_credentials")


def test_a_wrong_key_shows_in_the_status(misconfigured: Place) -> None:
    _, _, body = misconfigured.ask("GET", "/models/status")
    (model,) = json.loads(body)["models"]
    assert not model["available"]
    assert "api_key" in model["deployments"][0]["error"]


# Nobody there


def test_an_upstream_that_is_down_is_named() -> None:
    with GatewayProcess(configuration(f"http://127.0.0.1:{free_port()}"), environment={"UPSTREAM_KEY": UPSTREAM_KEY}) as gateway:
        place = Place(gateway, LitellmLike(UPSTREAM_KEY))
        status, _, body = place.ask("POST", "/v1/moderations", {"input": "x"})
        assert status == 502
        error = json.loads(body)["error"]
        assert (error["code"], error["type"]) == ("upstream_connect_failed", "upstream_error")
        assert "default upstream" in error["message"]
        assert place.ask("GET", "/healthz")[0] == 200


def test_without_a_default_upstream_there_is_no_such_route() -> None:
    with GatewayProcess("models: {mock: {endpoint: 'http://127.0.0.1:9'}}") as gateway:
        place = Place(gateway, LitellmLike(UPSTREAM_KEY))
        status, _, body = place.ask("POST", "/v1/moderations", {"input": "x"})
        error = json.loads(body)["error"]
        assert (status, error["code"], error["type"]) == (404, "not_found", "invalid_request_error")
        assert "default_upstream" in error["message"]
