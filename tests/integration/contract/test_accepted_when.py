"""The checks by which the owner accepts the gateway, as the contract words them."""

from __future__ import annotations

import datetime
import json

import pytest
from tests.integration.contract.conftest import Ask, House

CHAT = {"messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}], "max_tokens": 10, "temperature": 0}


def test_models_is_a_positive_number(ask: Ask) -> None:
    answer = ask("/v1/models")
    assert answer.status == 200
    assert len(answer.json()["data"]) > 0
    assert {"hx-chat", "hx-chat-fast", "hx-chat-premium", "emb-premium"} <= {model["id"] for model in answer.json()["data"]}


def test_the_embedding_has_1024_numbers(ask: Ask, house: House) -> None:
    answer = ask("/v1/embeddings", {"model": "emb-premium", "input": "HX-OK"})
    assert answer.status == 200
    (item,) = answer.json()["data"]
    assert len(item["embedding"]) == 1024
    assert all(isinstance(number, float) for number in item["embedding"])
    assert house.orc.requests[-1].json()["model"] == "mxbai-embed-large"


def test_the_chat_says_hx_ok(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", {"model": "hx-chat", **CHAT})
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "HX-OK"
    assert answer.json()["model"] == "hx-chat"


def test_the_same_by_group_header_and_without_a_model(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", CHAT, X_HX_Model_Group="hx-chat")
    assert answer.status == 200
    assert answer.json()["choices"][0]["message"]["content"] == "HX-OK"


@pytest.mark.parametrize("group", ["hx-chat-fast", "hx-chat", "hx-chat-premium"])
def test_every_group_answers_the_same_twenty_times(ask: Ask, group: str) -> None:
    said = [ask("/v1/chat/completions", CHAT, X_HX_Model_Group=group).json()["choices"][0]["message"]["content"] for _ in range(20)]
    assert said == ["HX-OK"] * 20


def test_without_any_name_the_default_model_answers(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", CHAT)
    assert (answer.json()["choices"][0]["message"]["content"], answer.json()["model"]) == ("HX-OK", "hx-chat")


def test_a_model_in_the_body_comes_before_the_header(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", {"model": "hx-chat-premium", **CHAT}, X_HX_Model_Group="hx-chat-fast")
    assert answer.json()["model"] == "hx-chat-premium"


def test_a_group_that_does_not_exist(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", CHAT, X_HX_Model_Group="hx-chart")
    assert answer.status == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "hx-chat" in answer.json()["error"]["message"]


def test_the_chat_streamed(ask: Ask) -> None:
    answer = ask("/v1/chat/completions", {"model": "hx-chat", "stream": True, **CHAT})
    events = answer.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "HX-OK"
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/embeddings"])
def test_nothing_without_a_key(ask: Ask, path: str) -> None:
    body = None if path.endswith("models") else {"model": "hx-chat", **CHAT}
    for key in ("", "Bearer nobody-knows-this-key"):
        answer = ask(path, body, Authorization=key)
        assert answer.status == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_healthz(ask: Ask) -> None:
    answer = ask("/healthz", Authorization="")
    assert answer.status == 200
    assert answer.json()["ok"] is True
    assert answer.json()["note"] == "HX wrapper – proxy mode"


def test_healthz_deps(ask: Ask) -> None:
    found = ask("/healthz/deps").json()
    assert set(found) >= {"postgres", "redis", "qdrant", "embedding_model"}
    assert found["embedding_model"] == "emb-premium"


def test_health(ask: Ask) -> None:
    found = ask("/health", Authorization="").json()
    assert (found["status"], found["gateway"]) == ("healthy", "unified-api-gateway")
    assert "hx-chat" in found["models"]
    assert datetime.datetime.fromisoformat(found["timestamp"]).tzinfo is not None


def test_metrics_are_named_for_the_gateway(ask: Ask) -> None:
    ask("/v1/chat/completions", {"model": "hx-chat", **CHAT})
    text = ask("/metrics", Authorization="").body.decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert [name for name in names if "gateway" in name]


def test_an_old_back_end_gets_prompt_where_the_client_sent_input(ask: Ask, house: House) -> None:
    house.old.forget()
    answer = ask("/v1/embeddings", {"model": "emb-old", "input": ["one", "two"]})
    assert [(item["index"], len(item["embedding"])) for item in answer.json()["data"]] == [(0, 16), (1, 16)]
    sent = [request for request in house.old.requests if request.method == "POST"]
    assert {request.path for request in sent} == {"/api/embeddings"}
    assert sorted(request.json()["prompt"] for request in sent) == ["one", "two"]
    assert all("input" not in request.json() for request in sent)


@pytest.mark.parametrize("body", [b"{", b"", b'{"model": "hx-chat", "messages": [}', b"\xff\xfe", b"[]", b'"text"'])
def test_malformed_json_is_a_clean_400(ask: Ask, body: bytes) -> None:
    answer = ask("/v1/chat/completions", body)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_json", "invalid_value")
    assert "Traceback" not in error["message"]
    assert ask("/v1/chat/completions", {"model": "hx-chat", **CHAT}).status == 200
