"""The admin API of keys: typed, for admin keys only, with errors that name the field, and no secret in any answer but the first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hx_gateway.config.load import load_text
from hx_gateway.control.app import create_app
from hx_gateway.gateway import Gateway, build

ADMIN, USER = "the-admin-of-this-test", "a-user-of-this-test"
CONFIG = """
endpoints: {{e: {{url: "http://127.0.0.1:9", discover: false}}}}
models: {{m: {{endpoint: e}}, n: {{endpoint: e}}}}
groups: {{g: {{models: [m]}}}}
load_balancer: {{health_check_interval: 3600}}
keys: {{master_key: env:ADMIN, api_keys: [{{name: user, key: env:USER}}]}}
storage: {{state_directory: {state}, database_url: env:URL}}
"""
LIMITS = {"requests_per_second": 5.0, "month_cost": 2.5}


def gateway_on(url: str, state: Path) -> Gateway:
    text = CONFIG.format(state=state)
    return build(load_text(text, "f.yaml", {"ADMIN": ADMIN, "USER": USER, "URL": url}).config)


@pytest.fixture
async def gateway(database_url: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    made = gateway_on(database_url, tmp_path / "state")
    await made.start()
    yield made
    await made.stop()


class Caller:
    """Asks a gateway's control plane."""

    def __init__(self, gateway: Gateway) -> None:
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(gateway)), base_url="http://gateway")

    async def __call__(self, method: str, path: str, body: Any = None, key: str = ADMIN) -> tuple[int, Any]:
        answer = await self.client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"} if key else {})
        return answer.status_code, answer.json()


@pytest.fixture
async def ask(gateway: Gateway) -> AsyncIterator[Caller]:
    caller = Caller(gateway)
    yield caller
    await caller.client.aclose()


async def test_the_life_of_a_key(gateway: Gateway, ask: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"name": "app", "owner": "Ada", "team": "red", "tags": ["x"], "models": ["m", "g"], "namespaces": ["docs"], "limits": LIMITS}
    status, made = await ask("POST", "/admin/keys", {**body, "expires": "90d"})
    assert status == 201
    first = made.pop("key")
    assert first.startswith(made["hint"]) and len(first) >= 35
    assert made["limits"] == {
        "requests_per_second": 5.0, "burst": 0, "tokens_per_minute": 0, "max_concurrent": 0,
        "day_cost": 0.0, "month_cost": 2.5, "day_tokens": 0, "month_tokens": 0,
    }  # fmt: skip
    assert (made["state"], made["admin"], made["revoked_at"], made["expires_at"] > made["created_at"]) == ("active", False, None, True)
    identity = gateway.keys.identify(first.encode())
    assert identity is not None and (identity.id, identity.owner, identity.namespaces) == (made["id"], "Ada", frozenset({"docs"}))
    assert [model["id"] for model in (await ask("GET", "/v1/models", key=first))[1]["data"]] == ["m", "g"]
    assert await ask("GET", "/admin/keys/app") == await ask("GET", f"/admin/keys/{made['id']}") == (200, made)
    assert await ask("GET", "/admin/keys") == (200, {"object": "list", "data": [made], "has_more": False, "next": None})

    status, changed = await ask("PATCH", "/admin/keys/app", {"models": None, "expires": None, "limits": {"burst": 9}})
    assert (changed["models"], changed["expires_at"], changed["limits"]["burst"], changed["limits"]["month_cost"]) == (None, None, 9, 2.5)
    assert (changed["owner"], changed["tags"]) == ("Ada", ["x"])
    status, turned = await ask("POST", "/admin/keys/app/rotate", {"grace": "1h"})
    second = turned.pop("key")
    assert status == 200 and second != first and turned["old_key_until"] > turned["rotated_at"]
    assert all(gateway.keys.identify(token.encode()) is not None for token in (first, second))
    status, turned = await ask("POST", "/admin/keys/app/rotate", {"grace": "0"})
    third = turned.pop("key")
    assert gateway.keys.identify(second.encode()) is None and gateway.keys.identify(first.encode()) is None
    assert (await ask("GET", "/v1/models", key=second))[1]["error"]["message"].startswith("the API key was replaced by a new one")
    status, ended = await ask("PATCH", "/admin/keys/app", {"expires": "2020-01-01"})
    assert (
        ended["state"] == "expired"
        and "expired at 2020-01-01T00:00:00Z" in (await ask("GET", "/v1/models", key=third))[1]["error"]["message"]
    )
    status, gone = await ask("DELETE", "/admin/keys/app")
    assert (status, gone["state"]) == (200, "revoked") and await ask("DELETE", "/admin/keys/app") == (200, gone)
    for method, path, body in (("PATCH", "/admin/keys/app", {"team": "b"}), ("POST", "/admin/keys/app/rotate", None)):
        status, answer = await ask(method, path, body)
        assert (status, answer["error"]["code"]) == (409, "conflict")

    status, log = await ask("GET", "/admin/audit")
    assert [deed["action"] for deed in log["data"]] == [
        "key.revoke", "key.change", "key.rotate", "key.rotate", "key.change", "key.create",
    ]  # fmt: skip
    assert {(deed["actor"], deed["subject"], deed["address"]) for deed in log["data"]} == {("master", "app", "127.0.0.1")}
    told = repr([made, changed, turned, ended, gone, log, gateway.keys, gateway.backing.known.snapshot]) + caplog.text
    for secret in (first, second, third, ADMIN, USER):
        assert secret not in told and secret[8:] not in told


async def test_pages(ask: Caller) -> None:
    for number in range(5):
        await ask("POST", "/admin/keys", {"name": f"key-{number}"})
        await asyncio.sleep(0.002)  # ids of one millisecond have no order
    page = (await ask("GET", "/admin/keys?limit=3"))[1]
    rest = (await ask("GET", f"/admin/keys?limit=3&after={page['next']}"))[1]
    assert [key["name"] for key in page["data"] + rest["data"]] == [f"key-{number}" for number in range(5)]
    assert (page["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
    page = (await ask("GET", "/admin/audit?limit=2"))[1]
    rest = (await ask("GET", f"/admin/audit?limit=9&before={page['next']}"))[1]
    assert [deed["subject"] for deed in page["data"] + rest["data"]] == [f"key-{number}" for number in range(4, -1, -1)]
    assert len((await ask("GET", "/admin/audit?subject=key-2"))[1]["data"]) == 1


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": ""}, "name"),
    ({"name": "master"}, "name"),
    ({"name": "a\nb"}, "name"),
    ({"name": " a"}, "name"),
    ({"name": "x" * 129}, "name"),
    ({"name": "a", "expires": "soon"}, "expires"),
    ({"name": "a", "limits": {"requests_per_second": -1}}, "limits.requests_per_second"),
    ({"name": "a", "limits": {"rps": 1}}, "limits.rps"),
    ({"name": "a", "models": "m"}, "models"),
    ({"name": "a", "key": "sk-chosen-by-me"}, "key"),
]


async def test_mistakes_name_their_field(ask: Caller) -> None:
    for body, param in MISTAKES:
        status, answer = await ask("POST", "/admin/keys", body)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (422, "invalid_value", param)
        assert "sk-chosen" not in answer["error"]["message"]


async def test_what_is_not_there_and_what_is_taken(ask: Caller) -> None:
    assert (await ask("POST", "/admin/keys", {"name": "app"}))[0] == 201
    status, answer = await ask("POST", "/admin/keys", {"name": "app"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (409, "conflict", "name")
    status, answer = await ask("POST", "/admin/keys", {"name": "user"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (409, "conflict", "name"), (
        "the configuration has it and would win"
    )
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        status, answer = await ask(method, f"/admin/keys/nobody{path}", {} if method != "GET" else None)
        assert (status, answer["error"]["code"]) == (404, "not_found") and "'nobody'" in answer["error"]["message"]


async def test_admin_keys_only(ask: Caller) -> None:
    routes = [("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/keys/x"), ("PATCH", "/admin/keys/x"),
              ("DELETE", "/admin/keys/x"), ("POST", "/admin/keys/x/rotate"), ("GET", "/admin/audit")]  # fmt: skip
    for method, path in routes:
        assert (await ask(method, path, {"name": "x"} if method == "POST" else None, key=""))[0] == 401
        status, answer = await ask(method, path, {} if method in ("POST", "PATCH") else None, key=USER)
        assert (status, answer["error"]["code"]) == (403, "admin_required")
    status, made = await ask("POST", "/admin/keys", {"name": "second admin", "admin": True})
    assert (await ask("GET", "/admin/keys", key=made["key"]))[0] == 200
    assert (await ask("GET", "/admin/audit"))[1]["data"][0]["actor"] == "master"


async def test_the_description_has_them(ask: Caller) -> None:
    paths = (await ask("GET", "/openapi.json"))[1]["paths"]
    assert set(paths["/admin/keys"]) == {"get", "post"} and set(paths["/admin/keys/{id}"]) == {"get", "patch", "delete"}
    made = paths["/admin/keys"]["post"]
    assert made["responses"]["201"]["content"]["application/json"]["schema"]["$ref"].endswith("/KeyMade")
    assert {"401", "403", "409", "503"} <= made["responses"].keys()
    assert made["security"] == paths["/admin/audit"]["get"]["security"] == [{"bearer": []}]


async def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    gateway = gateway_on("postgresql://hx:{}@127.0.0.1:1/hx".format("a-password"), tmp_path)
    await gateway.start()
    ask = Caller(gateway)
    try:
        for method, path in (("GET", "/admin/keys"), ("POST", "/admin/keys"), ("GET", "/admin/audit")):
            answer = await ask.client.request(
                method, path, json={"name": "x"} if method == "POST" else None, headers={"authorization": f"Bearer {ADMIN}"}
            )
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "store_unavailable") and int(answer.headers["retry-after"]) > 0
            assert "Postgres cannot be used" in error["message"] and "a-password" not in error["message"]
        # Who the configuration knows is served; whose key may be in the store hears no 401.
        assert (await ask("GET", "/v1/models", key=USER))[0] == 200
        assert (await ask("GET", "/v1/models", key="hx-perhaps"))[0] == 503
    finally:
        await ask.client.aclose()
        await gateway.stop()
