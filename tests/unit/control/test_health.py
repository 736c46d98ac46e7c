"""Liveness, readiness, the fleet's report, and who may see addresses."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from tests.unit.control.house import KEYS, MASTER, USER, House

from hx_gateway.control.fleet import together
from hx_gateway.fleet.registry import Registry


class Untouchable:
    """A registry that must not be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was touched")


async def test_healthz_touches_nothing() -> None:
    house = House({"service": {"name": "unified-api-gateway"}, "keys": KEYS})
    house.clock.advance(12.5)
    async with house.client() as client:
        house.registry = house.keys = Untouchable()  # type: ignore[assignment]
        answer = await client.get("/healthz")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("version")
    assert body == {"ok": True, "note": "HX wrapper – proxy mode", "service": "unified-api-gateway", "uptime_s": 12.5}


@pytest.mark.parametrize(("in_flight", "state"), [((0, 0), "drained"), ((0, 1), "draining")])
def test_a_drained_server_is_draining_while_any_worker_has_requests_there(in_flight: tuple[int, int], state: str) -> None:
    one = {"drained": {"by": "ops"}, "healthy": True, "breaker": {"state": "closed"}, "models": [], "checked_ms": 1}
    answers: list[dict[str, Any]] = [{"endpoints": {"one": {**one, "in_flight": count}}, "waiting": {}} for count in in_flight]
    assert together(answers)["endpoints"]["one"]["state"] == state


async def test_readyz_follows_start_and_drain() -> None:
    house = House({"keys": KEYS})
    async with house.client() as client:
        assert (await client.get("/readyz")).status_code == 200
        house.ready = False
        assert (await client.get("/readyz")).json() == {"ready": False, "reason": "starting"}
        house.ready = house.draining = True
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "draining")


async def test_health_reports_the_fleet() -> None:
    house = House({"keys": KEYS})
    async with house.client() as client:
        well = (await client.get("/health")).json()
        house.registry.endpoints["192.0.2.2:11434"].facts.healthy = False
        partly = await client.get("/health")
        house.registry.endpoints["llm-01"].facts.healthy = False
        none = await client.get("/health")
    assert well["status"] == "healthy" and well["gateway"] == "unified-api-gateway"
    assert well["models"] == ["llama3.2:3b", "org/phi:mini", "emb-premium", "hx-chat", "gpt-4o"] and well["unavailable"] == []
    assert datetime.fromisoformat(well["timestamp"]).timestamp() == house.clock.wall()
    assert well["timestamp"].endswith("Z")
    assert partly.status_code == 200 and partly.json()["status"] == "degraded" and partly.json()["unavailable"] == ["org/phi:mini"]
    assert none.status_code == 503 and none.json()["status"] == "unhealthy"


@pytest.mark.parametrize(
    ("name", "shown"), [("hx-gateway", "unified-api-gateway"), ("unified-api-gateway", "unified-api-gateway"), ("mine", "mine")]
)
async def test_health_names_the_gateway(name: str, shown: str) -> None:
    async with House({"service": {"name": name}}).client() as client:
        assert (await client.get("/health")).json()["gateway"] == shown


async def test_paths_follow_the_configuration() -> None:
    house = House({"monitoring": {"health_check_endpoint": "/state", "metrics_endpoint": "/numbers"}})
    async with house.client() as client:
        assert (await client.get("/state")).json()["status"] == "healthy"
        assert "hx_gateway_info" in (await client.get("/numbers")).text
        assert (await client.get("/health")).status_code == 404
        assert (await client.get("/metrics")).status_code == 404


async def test_stores_are_null_unless_configured() -> None:
    async with House(registry=Registry({}, {})).client() as client:
        body = (await client.get("/healthz/deps")).json()
    assert (body["postgres"], body["redis"], body["qdrant"], body["embedding_model"]) == (None, None, None, None)


async def test_a_configured_store_that_is_not_used_is_not_called_well() -> None:
    url = "postgres://hx:secret@sql/never-shown"
    async with House({"storage": {"database_url": url}, "embeddings": {"model": "emb-premium"}}).client() as client:
        answer = await client.get("/healthz/deps")
    body = answer.json()
    assert body["postgres"] is False and body["redis"] is None
    assert body["embedding_model"] == "emb-premium" and body["details"]["embedding_model"] == "available"
    assert "never-shown" not in answer.text


async def test_the_embedding_model_is_found_by_its_mode() -> None:
    async with House().client() as client:
        assert (await client.get("/healthz/deps")).json()["embedding_model"] == "emb-premium"


async def test_status_tells_everything_to_an_admin() -> None:
    house = House({"keys": KEYS})
    facts = house.registry.endpoints["llm-01"].facts
    facts.healthy, facts.version, facts.checked_s = True, "0.13.5", 490.0
    deployment = house.registry.targets["org/phi:mini"].deployments[0]
    deployment.breaker.threshold = 1
    deployment.breaker.failed(house.clock.monotonic() - 20)
    deployment.in_flight = 3
    async with house.client(MASTER) as client:
        body = (await client.get("/models/status")).json()
    assert body["status"] == "degraded"
    status = {entry["name"]: entry for entry in body["models"]}
    llama = status["llama3.2:3b"]["deployments"][0]
    assert (llama["endpoint"], llama["address"], llama["provider"], llama["version"]) == (
        "llm-01",
        "http://192.0.2.1:11434",
        "ollama",
        "0.13.5",
    )
    assert (llama["healthy"], llama["checked_s_ago"], llama["breaker"]["state"]) == (True, 10.0, "closed")
    phi = status["org/phi:mini"]["deployments"][0]
    assert (phi["breaker"], phi["in_flight"], phi["max_concurrent"]) == ({"state": "open", "failures": 1, "retry_after_s": 40.0}, 3, 10)
    assert status["org/phi:mini"]["available"] is False and status["hx-chat"]["available"] is True
    assert phi["healthy"] is None and phi["provider"] is None and phi["address"] == "http://192.0.2.2:11434"


@pytest.mark.parametrize("key", ["", USER])
async def test_status_shows_addresses_to_nobody_else(key: str) -> None:
    async with House({"keys": KEYS}).client(key) as client:
        answer = await client.get("/models/status")
    assert answer.status_code == 200
    assert "192.0.2." not in answer.text
    status = {entry["name"]: entry for entry in answer.json()["models"]}
    assert [one["endpoint"] for one in status["hx-chat"]["deployments"]] == ["llm-01", "endpoint-2"]
    assert ("llama3.2:3b" in status) is (key == "")


async def test_without_any_key_configured_nobody_is_admin() -> None:
    async with House().client() as client:
        assert "192.0.2." not in (await client.get("/models/status")).text


async def test_a_wrong_key_is_refused_even_where_none_is_needed() -> None:
    async with House({"keys": KEYS}).client("sk-wrong") as client:
        assert (await client.get("/models/status")).status_code == 401


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/health", "/metrics", "/docs", "/openapi.json", "/healthz/deps", "/models/status"]
)
async def test_state_needs_no_key_and_answers_head(path: str) -> None:
    async with House({"keys": KEYS}).client() as client:
        assert (await client.get(path)).status_code == 200
        assert (await client.head(path)).status_code == 200
        refused = await client.delete(path)
    assert refused.status_code == 405 and refused.headers["allow"] == "GET, HEAD"
    assert refused.json()["error"]["code"] == "method_not_allowed"
