"""The contract's configuration file, as it is, with four scripted servers where its hosts would be."""

from __future__ import annotations

import http.client
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.background import scripted
from tests.support.contract import NAMES, OWNERS_FILE
from tests.support.gateway import GatewayProcess, free_port

from hx_gateway.testing.backend import Backend


def variable(name: str) -> str:
    """The environment variable that moves a model, by the contract's rule."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper()) + "_ENDPOINT"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Backend]]:
    """One server for each model."""
    with ExitStack() as running:
        yield {name: running.enter_context(scripted("openai", models=[name])) for name in NAMES}


@pytest.fixture(scope="module")
def overrides(servers: dict[str, Backend]) -> dict[str, str]:
    """What the environment has to say for this machine."""
    return {variable(name): server.url for name, server in servers.items()} | {"PROMETHEUS_PORT": str(free_port())}


@pytest.fixture(scope="module")
def gateway(overrides: dict[str, str]) -> Iterator[GatewayProcess]:
    """The gateway with that file, in one process."""
    with GatewayProcess(OWNERS_FILE, environment={**overrides, "API_GATEWAY_WORKERS": "1"}) as started:
        yield started


def ask(gateway: GatewayProcess, path: str, body: Any = None, port: int = 0, key: str | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port or gateway.port, timeout=30)
    try:
        headers = {"Authorization": f"Bearer {gateway.key if key is None else key}"}
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def chat(gateway: GatewayProcess, **body: Any) -> dict[str, Any]:
    """A whole chat answer."""
    status, answer = ask(gateway, "/v1/chat/completions", {"messages": [{"role": "user", "content": "ping"}], **body})
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    assert found["choices"][0]["message"]["content"] == "pong"
    return found


def chats(server: Backend) -> int:
    """How many chats a server was asked for."""
    return sum(request.path == "/v1/chat/completions" for request in server.requests)


@pytest.mark.parametrize("name", NAMES)
def test_each_model_is_served_by_its_own_server(gateway: GatewayProcess, servers: dict[str, Backend], name: str) -> None:
    before = {other: chats(server) for other, server in servers.items()}
    assert chat(gateway, model=name)["model"] == name
    assert {other: chats(server) - before[other] for other, server in servers.items()} == {other: int(other == name) for other in NAMES}


def test_without_a_model_the_default_answers(gateway: GatewayProcess, servers: dict[str, Backend]) -> None:
    before = chats(servers["mixtral-8x7b"])
    assert chat(gateway)["model"] == "mixtral-8x7b"
    assert chats(servers["mixtral-8x7b"]) == before + 1


def test_models_and_health(gateway: GatewayProcess) -> None:
    _, body = ask(gateway, "/v1/models")
    assert {model["id"] for model in json.loads(body)["data"]} == set(NAMES)
    status, body = ask(gateway, "/health", key="")
    health = json.loads(body)
    assert (status, health["status"], health["gateway"]) == (200, "healthy", "unified-api-gateway")
    assert set(health["models"]) == set(NAMES)
    assert health["timestamp"]


def test_models_status_shows_the_addresses_that_the_environment_gave(gateway: GatewayProcess, servers: dict[str, Backend]) -> None:
    status, body = ask(gateway, "/models/status")
    assert status == 200
    shown = {model["name"]: model["deployments"] for model in json.loads(body)["models"]}
    assert {name: deployments[0]["address"] for name, deployments in shown.items()} == {
        name: server.url for name, server in servers.items()
    }
    assert {name: deployments[0]["max_concurrent"] for name, deployments in shown.items()} == dict(
        zip(NAMES, (10, 20, 50, 100), strict=True)
    )
    assert {name: deployments[0]["weight"] for name, deployments in shown.items()} == dict(zip(NAMES, (1.0, 0.8, 0.6, 0.4), strict=True))
    assert all(deployments[0]["healthy"] and deployments[0]["breaker"]["state"] == "closed" for deployments in shown.values())


def test_metrics_tell_of_the_gateway(gateway: GatewayProcess) -> None:
    chat(gateway, model="hermes-2")
    status, body = ask(gateway, "/metrics", key="")
    assert status == 200
    names = {line.split()[2] for line in body.decode().splitlines() if line.startswith("# TYPE")}
    ours = {name for name in names if "gateway" in name}
    for word in ("response", "overhead", "requests", "attempts", "available", "breaker", "limit", "throttled", "errors"):
        assert [name for name in ours if word in name], f"no metric of the gateway tells of {word}: {sorted(ours)}"


def test_a_model_in_two_places_takes_turns(servers: dict[str, Backend], overrides: dict[str, str]) -> None:
    with scripted("openai", models=["phi-3-mini"]) as second:
        first = servers["phi-3-mini"]
        config = OWNERS_FILE.replace('{endpoint: "http://llm-09:11403"', f'{{endpoints: ["{first.url}", "{second.url}"]')
        environment = {name: value for name, value in overrides.items() if name != variable("phi-3-mini")}
        environment |= {"API_GATEWAY_WORKERS": "1", "INTELLIGENT_ROUTING": "false", "PROMETHEUS_PORT": str(free_port())}
        with GatewayProcess(config, environment=environment) as gateway:
            before = chats(first)
            for _ in range(10):
                chat(gateway, model="phi-3-mini")
            assert (chats(first) - before, chats(second)) == (5, 5)


def test_more_than_fifty_requests_a_second_are_refused_with_a_time_to_come_back(gateway: GatewayProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    seen: Counter[int] = Counter()
    waits = set()
    body = json.dumps({"messages": [{"role": "user", "content": "ping"}]})
    for _ in range(400):  # far more than a second's share, at the speed of one connection
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {gateway.key}"})
        answer = connection.getresponse()
        answer.read()
        seen[answer.status] += 1
        if answer.status == 429:
            waits.add(answer.getheader("retry-after"))
            break
    connection.close()
    assert seen[200] >= 1
    assert set(seen) == {200, 429}
    assert all(wait is not None and float(wait) >= 0 for wait in waits)


def test_four_processes_as_the_file_says(overrides: dict[str, str]) -> None:
    environment = {**overrides, "PROMETHEUS_PORT": str(free_port()), "RATE_LIMITING_ENABLED": "false"}
    with GatewayProcess(OWNERS_FILE, environment=environment) as gateway:
        for name in NAMES * 3:
            assert chat(gateway, model=name)["model"] == name
