"""Documents over HTTP with the embedded store: what the contract asks, what is refused and how, keys, limits, and records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.conftest import wait_until
from tests.support import required
from tests.support.documents import House, housed
from tests.unit.ledger.records import found

KEYS = """
rag: {max_documents: 50, max_document_bytes: 1000000}
keys:
  api_keys:
    - {name: team, key: key-of-the-team, namespaces: [ours, "theirs:r"]}
    - {name: narrow, key: key-with-limits, limits: {day_tokens: 3000}}
    - {name: chats, key: key-for-chats-only, models: [tiny]}
    - {name: single, key: key-with-one-place, limits: {max_concurrent: 1, requests_per_second: 100, burst: 50}}
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    required.vectors()
    with housed(tmp_path_factory.mktemp("state"), KEYS) as made:
        yield made


def test_the_contract_s_two_searches_empty_and_full(house: House) -> None:
    asked = {"query": "flow over a wing", "limit": 3, "namespace": "smoke"}
    status, answer, _ = house.ask("POST", "/v1/rag/search", asked)
    assert (status, answer["status"], answer["result"]) == (200, "ok", {"points": []})
    house.put("the wing and the flow", "a library", "heat of a jet", namespace="smoke")
    status, answer, headers = house.ask("POST", "/v1/rag/search", asked)
    best = answer["result"]["points"][0]
    assert (status, answer["status"]) == (200, "ok") and headers["x-request-id"] and answer["time"] > 0
    assert best["payload"]["text"] == "the wing and the flow" and best["payload"]["namespace"] == "smoke"
    assert best["found_by"]["sparse"] == 1 and best["score"] > 0 and best["version"] == 0 and len(best["id"]) == 36
    assert answer["usage"]["inference"]["models"]["emb"]["tokens"] > 0
    status, answer, _ = house.ask("POST", "/v1/rag/search", {"vector": [1.0] * 16, "namespace": "smoke", "score_threshold": -1, "limit": 2})
    assert status == 200 and len(answer["result"]["points"]) == 2 and answer["usage"] is None
    assert all(set(point["found_by"]) == {"dense"} for point in answer["result"]["points"])


DOCUMENT = {"id": "a", "text": "wing"}
REFUSED: list[tuple[str, Any, int, str, str | None]] = [
    ("search", {"vector": [1.0, 2.0]}, 400, "invalid_value", "vector"),
    ("search", b'{"vector": [1.0, NaN]}', 400, "invalid_json", "vector"),
    ("search", {"vector": [0.0] * 16}, 400, "invalid_value", "vector"),
    ("search", {"query": ""}, 400, "invalid_value", "query"),
    ("search", {}, 400, "invalid_value", "query"),
    ("search", {"query": "x" * 40_000}, 400, "invalid_value", "query"),
    ("search", {"query": "a", "namespace": "../etc"}, 400, "invalid_value", "namespace"),
    ("search", {"query": "a", "filter": {"must": [{"key": "year"}]}}, 400, "invalid_value", "filter.must[0]"),
    ("search", {"query": "a", "filter": {"must": [{"key": "a b", "match": {"value": 1}}]}}, 400, "invalid_value", "filter.must[0].key"),
    ("search", {"query": "a", "limit": "many"}, 400, "invalid_value", "limit"),
    ("search", {"query": "a", "rerank": {"model": "none"}}, 404, "model_not_found", "rerank.model"),
    ("search", b"nonsense", 400, "invalid_json", None),
    ("upsert", {"documents": []}, 400, "invalid_value", "documents"),
    ("upsert", {"documents": [{"id": "a", "text": "  "}]}, 400, "invalid_value", "documents[0].text"),
    ("upsert", {"documents": [{"id": "a", "text": "ten megabytes " * 750_000}]}, 413, "request_too_large", "documents[0].text"),
    ("upsert", {"documents": [DOCUMENT] * 51}, 400, "invalid_value", "documents"),
    ("upsert", {"documents": [{"chunks": [{"text": "a", "vector": [1.0]}]}]}, 400, "invalid_value", "documents[0].chunks[0].vector"),
    ("upsert", {"documents": [DOCUMENT], "model": "other"}, 409, "conflict", "model"),
    ("upsert", {"documents": [DOCUMENT], "model": "other", "collection": "fresh"}, 404, "model_not_found", None),
    ("delete", {}, 400, "invalid_value", "ids"),
    ("delete", {"filter": {}}, 400, "invalid_value", "filter"),
]


@pytest.mark.parametrize(("route", "body", "status", "code", "param"), REFUSED)
def test_what_cannot_be_done_is_told_with_its_field(house: House, route: str, body: Any, status: int, code: str, param: str | None) -> None:
    house.put("wing")  # the collection is there
    got, answer, _ = house.ask("POST", f"/v1/rag/{route}", body)
    error = answer["error"]
    assert (got, error["code"], error["param"]) == (status, code, param), error
    assert len(error["message"]) > 10 and error["type"]


def test_what_is_replaced_and_what_has_not_changed(house: House) -> None:
    documents = [{"id": "long", "text": "\n\n".join(f"# Part {n}\n\n{'wing ' * 200}" for n in range(5)), "format": "markdown"}]
    _, first, _ = house.ask("POST", "/v1/rag/upsert", {"documents": documents, "namespace": "again"})
    assert first["result"]["documents"][0]["chunks"] >= 5
    _, again, _ = house.ask("POST", "/v1/rag/upsert", {"documents": documents, "namespace": "again"})
    assert again["result"]["unchanged"] == 1 and again["usage"] is None
    house.ask("POST", "/v1/rag/upsert", {"documents": [{"id": "long", "text": "shock"}], "namespace": "again"})
    assert house.texts(query="wing shock", namespace="again") == ["shock"]
    _, gone, _ = house.ask("POST", "/v1/rag/delete", {"ids": ["long"], "namespace": "again"})
    assert gone["result"] == {"status": "completed", "deleted": 1}
    status, answer, _ = house.ask("POST", "/v1/rag/search", {"query": "wing shock", "namespace": "again"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "namespace_not_found", "namespace"), (
        "its last document is gone"
    )


def test_progress_comes_as_events(house: House) -> None:
    documents = [{"id": f"d{number}", "text": f"wing {number}" if number else " "} for number in range(20)]
    status, text, headers = house.ask("POST", "/v1/rag/upsert", {"documents": documents, "namespace": "events", "stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream") and text.endswith("data: [DONE]\n\n")
    events = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert [event["done"] for event in events[:-1]] == list(range(1, 21))
    assert {event["document"]["status"] for event in events[:-1]} == {"stored", "failed"}
    assert (events[-1]["status"], events[-1]["result"]["stored"], events[-1]["result"]["failed"]) == ("ok", 19, 1)


def test_keys_keep_to_their_namespaces(house: House) -> None:
    house.put("a wing of theirs", namespace="theirs")
    house.put("a wing of ours", namespace="ours", key="key-of-the-team")
    assert house.texts("key-of-the-team", query="wing", namespace="ours") == ["a wing of ours"]
    assert house.texts("key-of-the-team", query="wing", namespace="theirs") == ["a wing of theirs"]
    document = {"documents": [DOCUMENT]}
    for route, body in (("upsert", {**document, "namespace": "theirs"}), ("upsert", document), ("search", {"query": "wing"}),
                        ("delete", {"everything": True, "namespace": "theirs"})):  # fmt: skip
        status, answer, _ = house.ask("POST", f"/v1/rag/{route}", body, "key-of-the-team")
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (403, "namespace_not_allowed", "namespace")
    _, answer, _ = house.ask("GET", "/v1/rag/collections", key="key-of-the-team")
    (seen,) = answer["result"]["collections"]
    assert seen["namespaces"] == {"ours": 1, "theirs": 1} and (seen["model"], seen["dimension"]) == ("emb", 16)
    for key in ("", "nobody-s-key"):
        assert house.ask("GET", "/v1/rag/collections", key=key)[0] == 401


def test_a_key_that_may_not_embed_is_refused_and_may_search_by_vector(house: House) -> None:
    house.put("wing")
    status, answer, _ = house.ask("POST", "/v1/rag/search", {"query": "wing"}, "key-for-chats-only")
    assert (status, answer["error"]["code"]) == (403, "model_not_allowed") and "emb" in answer["error"]["message"]
    assert house.ask("POST", "/v1/rag/search", {"vector": [1.0] * 16}, "key-for-chats-only")[0] == 200


def test_limits_hold_for_the_call_with_all_that_it_embeds(house: House) -> None:
    assert house.put(*(f"wing {number}" for number in range(10)), key="key-with-one-place", namespace="limits")["stored"] == 10
    refused = False
    for round in range(40):
        body = {"documents": [{"id": str(round), "text": f"round {round} " + "wing " * 200}], "namespace": "budget"}
        status, answer, _ = house.ask("POST", "/v1/rag/upsert", body, "key-with-limits")
        if status == 429:
            assert answer["error"]["code"] == "insufficient_quota"
            refused = True
            break
        assert status == 200, answer
    assert refused and round >= 2, "the day's tokens are what was truly embedded"


def test_calls_are_recorded_and_what_they_embed_by_itself(house: House) -> None:
    before = len(found(house.state / "journal"))
    _, _, headers = house.ask("POST", "/v1/rag/search", {"query": "a recorded wing", "namespace": "smoke"}, "key-with-one-place")
    house.ask("POST", "/v1/rag/search", {"querry": "x"}, "key-with-one-place")
    wait_until(lambda: len(found(house.state / "journal")) >= before + 3)
    part, whole, wrong = found(house.state / "journal")[before : before + 3]
    assert (part.route, part.key_name, part.model, part.outcome) == ("embeddings", "single", "emb", "ok") and part.prompt_tokens
    assert (whole.route, whole.asked, whole.key_name, whole.outcome, whole.prompt_tokens) == ("rag", "/v1/rag/search", "single", "ok", None)
    assert whole.id == headers["x-request-id"] and whole.cost == 0
    assert (wrong.route, wrong.status, wrong.outcome) == ("rag", 400, "invalid_value")


def test_another_method_is_refused_here_and_not_forwarded(house: House) -> None:
    for method, path, allowed in (("GET", "search", "POST"), ("PUT", "upsert", "POST"), ("POST", "collections", "GET, HEAD")):
        status, answer, headers = house.ask(method, f"/v1/rag/{path}", {} if method != "GET" else None)
        assert (status, answer["error"]["code"], headers["allow"]) == (405, "method_not_allowed", allowed)


def test_openai_s_words_for_a_search(house: House) -> None:
    document = {"id": "manual", "text": "heat of a jet", "metadata": {"filename": "manual.md", "year": 1960}}
    assert house.ask("POST", "/v1/rag/upsert", {"documents": [document], "namespace": "vs"})[0] == 200
    where = {"type": "and", "filters": [{"type": "eq", "key": "year", "value": 1960}, {"type": "ne", "key": "filename", "value": "x"}]}
    asked = {"query": ["jet"], "max_num_results": 3, "filters": where, "rewrite_query": False}
    status, answer, _ = house.ask("POST", "/v1/vector_stores/documents:vs/search", asked)
    assert status == 200 and answer["object"] == "vector_store.search_results.page" and answer["search_query"] == ["jet"]
    (hit,) = answer["data"]
    assert (hit["file_id"], hit["filename"], hit["attributes"]["year"]) == ("manual", "manual.md", 1960)
    assert hit["content"] == [{"type": "text", "text": "heat of a jet"}] and isinstance(hit["score"], float)
    asked["filters"] = {"type": "gt", "key": "year", "value": 1960}
    assert house.ask("POST", "/v1/vector_stores/documents:vs/search", asked)[1]["data"] == []
    asked["filters"] = {"type": "like"}
    status, answer, _ = house.ask("POST", "/v1/vector_stores/documents:vs/search", asked)
    assert (status, answer["error"]["param"]) == (400, "filters")


def test_the_state_of_the_stores_is_true(house: House) -> None:
    house.put("wing")
    _, answer, _ = house.ask("GET", "/healthz/deps")
    assert answer["qdrant"] is None and answer["embedding_model"] == "emb"
    assert (answer["details"]["vectors"], answer["details"]["embedding_model"]) == ("embedded, ok", "available")
