"""What non-2xx answers of servers in OpenAI's dialect mean, as real servers word them."""

from __future__ import annotations

import json

import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS
from hx_gateway.core.errors import Blame, ErrorKind, Failure
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

LLAMACPP_LONG = {
    "code": 400,
    "message": "request (45003 tokens) exceeds the available context size (1024 tokens), try increasing it",
    "type": "exceed_context_size_error",
}
LLAMACPP_LONG_EMBEDDING = {
    "code": 500,
    "message": "input (602 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
    "type": "server_error",
}
LITELLM_NO_DATABASE = {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}


def failure(status: int, error: object, route: object = CHAT, headers: list[tuple[bytes, bytes]] | None = None) -> Failure:
    body = json.dumps({"error": error}).encode() if error is not None else b""
    given = {"input": "a"} if route is EMBEDDINGS else {"messages": []}
    exchange = make_exchange({"model": "m", **given}, route)  # type: ignore[arg-type]
    return OpenAIProvider().failure(exchange, make_deployment(), status, headers or [], body)


@pytest.mark.parametrize(
    ("status", "error", "route"), [(400, LLAMACPP_LONG, CHAT), (500, LLAMACPP_LONG_EMBEDDING, EMBEDDINGS)], ids=["chat", "embeddings"]
)
def test_too_long_has_one_code_whatever_the_server_calls_it(status: int, error: dict[str, object], route: object) -> None:
    found = failure(status, error, route)
    assert found.kind is errors.CONTEXT_LENGTH
    assert found.kind.blame is Blame.CLIENT
    assert found.upstream_body is None
    told = json.loads(found.body())["error"]
    assert (told["code"], told["message"]) == ("context_length_exceeded", error["message"])


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {"message": "Unauthorized"}, errors.UPSTREAM_CREDENTIALS),
        (403, {"message": "Forbidden"}, errors.UPSTREAM_CREDENTIALS),
        (400, LITELLM_NO_DATABASE, errors.UPSTREAM_CREDENTIALS),
        (429, {"message": "slow down"}, errors.UPSTREAM_BUSY),
        (503, {"message": "server busy, please try again"}, errors.UPSTREAM_BUSY),
        (503, {"message": "Loading model", "type": "unavailable_error", "code": 503}, errors.UPSTREAM_ERROR),
        (404, {"message": "File Not Found"}, errors.UPSTREAM_ERROR),
        (500, {"message": "boom"}, errors.UPSTREAM_ERROR),
        (502, None, errors.UPSTREAM_ERROR),
        (400, {"message": "temperature: too hot", "param": "temperature"}, errors.UPSTREAM_REFUSED),
        (422, {"message": "no"}, errors.UPSTREAM_REFUSED),
    ],
)
def test_blame(status: int, error: object, kind: ErrorKind) -> None:
    assert failure(status, error).kind is kind


def test_a_refusal_is_passed_on_as_it_is() -> None:
    error = {"message": "temperature: too hot", "param": "temperature", "type": "BadRequestError", "code": 400}
    refused = failure(400, error)
    assert refused.status == 400
    assert refused.upstream_body is not None
    assert json.loads(refused.upstream_body) == {"error": error}


def test_a_busy_server_says_when_to_come_back() -> None:
    assert failure(429, {"message": "busy"}, headers=[(b"retry-after", b"7")]).retry_after_s == 7
    assert failure(429, {"message": "busy"}, headers=[(b"retry-after-ms", b"1500")]).retry_after_s == 1.5
