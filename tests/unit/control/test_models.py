"""GET /v1/models: what is listed, to whom, and how a wrong name is answered."""

from __future__ import annotations

import pytest
from tests.unit.control.house import KEYS, MASTER, USER, House, fleet

from hx_gateway.core.errors import CATALOGUE


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/"])
async def test_lists_every_name_in_openais_shape(path: str) -> None:
    async with House().client() as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    listed = answer.json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["llama3.2:3b", "org/phi:mini", "emb-premium", "hx-chat", "gpt-4o"]
    assert all(entry["object"] == "model" and entry["created"] == 1_700_000_000 and entry["owned_by"] for entry in listed["data"])


async def test_tells_what_each_name_can_do() -> None:
    async with House().client() as client:
        about = {entry["id"]: entry["hx"] for entry in (await client.get("/v1/models")).json()["data"]}
    assert about["llama3.2:3b"]["kind"] == "model"
    unknown = {"vision": None, "tools": None, "thinking": None}
    assert about["llama3.2:3b"]["capabilities"] == {"chat": True, "completions": True, "embeddings": False, **unknown}
    assert about["llama3.2:3b"]["context_length"] == 8192
    assert about["emb-premium"]["capabilities"] == {"chat": False, "completions": False, "embeddings": True, **unknown}
    assert about["emb-premium"]["dimensions"] == 1024
    group = about["hx-chat"]
    assert (group["kind"], group["tier"], group["models"], group["deployments"]) == (
        "group",
        "balanced",
        ["llama3.2:3b", "org/phi:mini"],
        2,
    )
    assert group["mode"] is None and group["capabilities"]["chat"] is None
    assert about["gpt-4o"]["kind"] == "alias" and about["gpt-4o"]["models"] == ["llama3.2:3b"]


@pytest.mark.parametrize(
    "path",
    ["/v1/models/llama3.2:3b", "/v1/models/org/phi:mini", "/v1/models/org%2Fphi%3Amini", "/models/hx-chat", "/v1/models/hx-chat:latest"],
)
async def test_one_name(path: str) -> None:
    async with House().client() as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json()["object"] == "model"
    assert answer.json()["id"] in ("llama3.2:3b", "org/phi:mini", "hx-chat")


async def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    async with House().client() as client:
        answer = await client.get("/v1/models/llama3.2:3")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("model_not_found", "invalid_request_error", "model")
    assert "llama3.2:3b" in error["message"]


async def test_a_key_sees_only_what_it_may_use() -> None:
    house = House({"keys": KEYS})
    async with house.client(USER) as client:
        assert [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]] == ["emb-premium", "hx-chat"]
        hidden = await client.get("/v1/models/llama3.2:3b")
        near = await client.get("/v1/models/hx-chatt")
    assert hidden.status_code == 404 and "'llama3.2:3b' does not exist" in hidden.json()["error"]["message"]
    assert "'hx-chat'" in near.json()["error"]["message"] and "gpt" not in near.json()["error"]["message"]
    async with house.client(MASTER) as client:
        assert len((await client.get("/v1/models")).json()["data"]) == 5


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {USER}"}, {"x-api-key": "wrong"}])
async def test_needs_a_key_where_keys_are_configured(headers: dict[str, str]) -> None:
    async with House({"keys": KEYS}).client() as client:
        for path in ("/v1/models", "/models", "/v1/models/hx-chat", "/v1/models/nothing"):
            answer = await client.get(path, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
async def test_other_key_headers_are_read(name: str) -> None:
    async with House({"keys": KEYS}).client() as client:
        assert (await client.get("/v1/models", headers={name: USER})).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/hx-chat"])
async def test_head_and_wrong_methods(path: str) -> None:
    async with House().client() as client:
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        refused = await client.post(path, json={})
    assert refused.status_code == 405
    assert {"GET", "HEAD"} <= set(refused.headers["allow"].split(", "))
    assert refused.json()["error"]["code"] == "method_not_allowed"
    assert refused.json()["error"]["code"] in {kind.code for kind in CATALOGUE}


async def test_a_model_is_not_deleted_by_a_client_and_the_refusal_says_where_models_are_kept() -> None:
    async with House(registry=fleet(forward=True)).client() as client:
        answer = await client.delete("/v1/models/org/phi:mini")
        assert (await client.get("/v1/models/org/phi:mini")).status_code == 200
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("method_not_allowed", "invalid_request_error")
    assert "part of the configuration; take this one out of the file and reload. Nothing was deleted" in error["message"]
