"""Probes against servers that answer as the real ones do; none may ever cost a token."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.health.canned import OLLAMA, Canned, models
from tests.unit.health.test_fetch import free_port

from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.health.detect import detect
from hx_gateway.health.probes import legacy_embeddings, ollama, openai, probe_for
from hx_gateway.testing.backend import Backend
from hx_gateway.upstream.fetch import fetch


async def test_ollama_tells_version_and_models() -> None:
    async with Canned(OLLAMA) as server:
        result = await ollama(fetch, server.endpoint())
    assert result.healthy and result.version == "0.13.5" and result.legacy_embeddings is False
    assert result.models == ("llama3.2:3b", "phi3:latest")
    assert server.asked == ["/api/version", "/api/tags", "/api/ps"]


async def test_ollama_without_a_list_is_still_healthy_and_keeps_what_was_known() -> None:
    async with Canned({"/api/version": (200, {"version": "0.1.32"})}) as server:
        result = await ollama(fetch, server.endpoint())
    assert result.healthy and result.models is None and result.legacy_embeddings is True


@pytest.mark.parametrize(("status", "body"), [(500, {}), (200, {"version": 3}), (200, b"<html>"), (401, {})])
async def test_what_is_no_healthy_ollama(status: int, body: Any) -> None:
    async with Canned({"/api/version": (status, body)}) as server:
        result = await ollama(fetch, server.endpoint())
    assert not result.healthy and result.error


@pytest.mark.parametrize(
    ("version", "legacy"),
    [
        ("0.3.0", False),
        ("0.2.9", True),
        ("0.1.48", True),
        ("0.13.5-rc0", False),
        ("1.0", False),
        ("0.0.0", False),
        ("dev", None),
        ("", None),
    ],
)
def test_legacy_embeddings_by_version(version: str, legacy: bool | None) -> None:
    assert legacy_embeddings(version) is legacy


async def test_a_generic_server_is_asked_for_its_models_only() -> None:
    async with Canned({"/v1/models": (200, models("a", "b"))}) as server:
        result = await openai(fetch, server.endpoint())
    assert result.healthy and result.models == ("a", "b")
    assert server.asked == ["/v1/models"]


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [(200, {"status": "ok"}, True), (503, {"error": {"message": "Loading model"}}, False), (500, {}, False), (404, {}, True)],
)
@pytest.mark.parametrize("owner", ["vllm", "llamacpp"])
async def test_engines_with_a_free_health_route_are_asked_for_it(owner: str, status: int, body: Any, healthy: bool) -> None:
    async with Canned({"/v1/models": (200, models("m", owner=owner)), "/health": (status, body)}) as server:
        result = await openai(fetch, server.endpoint())
    assert result.healthy is healthy
    assert result.models == ("m",)
    assert ("loading" in result.error) is (status == 503)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}}),
        (401, {"error": {"message": "Authentication Error"}}),
        (403, {}),
    ],
)
async def test_refused_credentials_are_named_as_such(status: int, body: Any) -> None:
    async with Canned({"/v1/models": (status, body), "/health": (200, {})}) as server:
        result = await openai(fetch, server.endpoint(api_key="sk-wrong-0001"))
    assert not result.healthy and "api_key" in result.error
    assert "/health" not in server.asked


async def test_litellm_is_never_asked_for_its_health_because_that_runs_every_model() -> None:
    answers = {"/v1/models": (500, b"Internal Server Error"), "/health/liveliness": (200, "I'm alive!"), "/health": (200, {})}
    async with Canned(answers) as server:
        result = await openai(fetch, server.endpoint())
    assert not result.healthy and "500" in result.error
    assert "/health" not in server.asked


async def test_a_server_that_cannot_list_its_models_may_still_be_healthy() -> None:
    async with Canned({"/v1/models": (500, {}), "/health": (200, {"status": "ok"})}) as server:
        result = await openai(fetch, server.endpoint())
    assert result.healthy and result.models is None


@pytest.mark.parametrize("body", [b"<html>", [], {"data": None}, {"data": "x"}])
async def test_a_list_that_is_none_is_not_healthy(body: Any) -> None:
    async with Canned({"/v1/models": (200, body)}) as server:
        result = await openai(fetch, server.endpoint())
    assert not result.healthy and "list of models" in result.error


def test_every_provider_has_a_probe() -> None:
    assert probe_for("ollama") is ollama
    assert probe_for("openai") is openai
    assert probe_for("something-installed-later") is openai


async def test_detect_tells_dialects_apart() -> None:
    async with Canned(OLLAMA) as server:
        assert await detect(server.address, "", fetch) == "ollama"
    async with Canned({"/v1/models": (200, models("m"))}) as server:
        assert await detect(server.address, "sk-test-0002", fetch) == "openai"
    assert b"Bearer sk-test-0002" in server.heads[-1]
    async with Canned({"/v1/models": (401, {})}) as server:
        assert await detect(server.address, "", fetch) == "openai"
    assert await detect(Address("http", "127.0.0.1", free_port()), "", fetch) is None


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
async def test_the_scripted_server_is_detected_and_healthy_without_generating_anything(dialect: str) -> None:
    async with Backend(dialect, models=["tiny:1b"], api_key="sk-backend-01") as backend:
        endpoint = Endpoint("b", Address.parse(backend.url), api_key="sk-backend-01")
        assert await detect(endpoint.address, endpoint.api_key, fetch) == dialect
        result = await probe_for(dialect)(fetch, endpoint)
        assert result.healthy and result.models == ("tiny:1b",)
        assert {request.method for request in backend.requests} == {"GET"}
