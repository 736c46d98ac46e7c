"""The contract's configuration file, as it is, with four scripted servers where its hosts would be."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from signal import SIGKILL
from typing import Any

import pytest
from tests.faults.asking import opened
from tests.faults.processes import ServerProcess
from tests.integration.protocol.wire import Client, request
from tests.support.background import Scripted, scripted
from tests.support.contract import NAMES, OWNERS_FILE
from tests.support.gateway import GatewayProcess, free_port

from hx_gateway.testing.backend import Backend

PING = [{"role": "user", "content": "ping"}]


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


def ask(gateway: GatewayProcess, path: str, body: Any = None, key: str | None = None, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        headers["Authorization"] = f"Bearer {gateway.key if key is None else key}"
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def chat(gateway: GatewayProcess, **body: Any) -> dict[str, Any]:
    """A whole chat answer."""
    status, answer = ask(gateway, "/v1/chat/completions", {"messages": PING, **body})
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


GROUPS = {"hx-chat-fast": "phi-3-mini", "hx-chat": "openchat-3.5", "hx-chat-premium": "mixtral-8x7b"}


@pytest.fixture(scope="module")
def grouped(overrides: dict[str, str]) -> Iterator[GatewayProcess]:
    """The same file with the contract's groups behind it."""
    tiers = zip(GROUPS.items(), ("fast", "balanced", "premium"), strict=True)
    groups = "".join(f"  {group}: {{models: [{model}], tier: {tier}}}\n" for (group, model), tier in tiers)
    environment = {**overrides, "API_GATEWAY_WORKERS": "1", "PROMETHEUS_PORT": str(free_port())}
    with GatewayProcess(f"{OWNERS_FILE}groups:\n{groups}", environment=environment) as started:
        yield started


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("by", ["model", "header"])
def test_each_group_is_answered_by_its_model(grouped: GatewayProcess, servers: dict[str, Backend], group: str, by: str) -> None:
    before = {name: chats(server) for name, server in servers.items()}
    body: dict[str, Any] = {"messages": PING}
    if by == "model":
        status, answer = ask(grouped, "/v1/chat/completions", {**body, "model": group})
    else:
        status, answer = ask(grouped, "/v1/chat/completions", body, **{"X-HX-Model-Group": group})
    assert status == 200, answer
    assert json.loads(answer)["choices"][0]["message"]["content"] == "pong"
    assert {name for name, server in servers.items() if chats(server) > before[name]} == {GROUPS[group]}


@pytest.mark.parametrize("algorithm", ["round_robin", "least_busy", "intelligent"])
def test_ten_parallel_calls_are_spread_evenly_over_equal_endpoints(algorithm: str) -> None:
    with ExitStack() as running:
        equal = {
            places: [running.enter_context(scripted("openai", models=[f"on-{places}"], first_token_s=2.5)) for _ in range(places)]
            for places in (2, 5)
        }
        models = "\n".join(f"  on-{places}: {{endpoints: {[server.url for server in servers]}}}" for places, servers in equal.items())
        gateway = running.enter_context(GatewayProcess(f"load_balancer: {{algorithm: {algorithm}}}\nmodels:\n{models}\n"))
        for places, servers in equal.items():
            with ThreadPoolExecutor(10) as pool:
                answers = list(
                    pool.map(lambda number, model=f"on-{places}": chat(gateway, model=model, user=f"caller {number}"), range(10))
                )
            assert len(answers) == 10
            assert [chats(server) for server in servers] == [10 // places] * places


def status_of(gateway: GatewayProcess, name: str) -> dict[str, Any]:
    """The one deployment of a model, as ``/models/status`` shows it at this moment."""
    _, body = ask(gateway, "/models/status")
    (found,) = [model["deployments"] for model in json.loads(body)["models"] if model["name"] == name]
    deployment: dict[str, Any] = found[0]
    return deployment


def test_models_status_is_true_at_the_moment_it_is_asked(overrides: dict[str, str]) -> None:
    environment = {**overrides, "API_GATEWAY_WORKERS": "1", "RATE_LIMITING_ENABLED": "false", "PROMETHEUS_PORT": str(free_port())}
    slow = Scripted("openai", models=["hermes-2"], first_token_s=60.0)
    with slow as backend, ServerProcess("--model", "phi-3-mini") as mortal:
        environment |= {variable("hermes-2"): backend.url, variable("phi-3-mini"): mortal.url}
        with GatewayProcess(OWNERS_FILE, environment=environment) as gateway:
            with ExitStack() as clients:
                for _ in range(7):
                    clients.enter_context(opened(gateway.port, "ping", "hermes-2"))
                slow.until(lambda server: chats(server) == 7)
                assert status_of(gateway, "hermes-2")["in_flight"] == 7
                assert status_of(gateway, "mixtral-8x7b")["in_flight"] == 0
            slow.until(lambda server: server.in_flight == 0)  # the clients have left, and the server was told
            assert status_of(gateway, "hermes-2")["in_flight"] == 0

            assert chat(gateway, model="phi-3-mini")
            alive = status_of(gateway, "phi-3-mini")
            assert (alive["available"], alive["breaker"]["state"], alive["endpoint_breaker"]["state"]) == (True, "closed", "closed")
            mortal.signal(SIGKILL)
            for failures in (1, 2):  # what the gateway learns from a request, the next report shows
                assert ask(gateway, "/v1/chat/completions", {"model": "phi-3-mini", "messages": PING})[0] == 502
                dead = status_of(gateway, "phi-3-mini")
                assert (dead["in_flight"], dead["endpoint_breaker"]["failures"]) == (0, failures)
            assert (dead["available"], dead["endpoint_breaker"]["state"]) == (False, "open")
            assert 30.0 < dead["endpoint_breaker"]["retry_after_s"] <= 60.0
            assert status_of(gateway, "mixtral-8x7b")["available"]


def test_more_than_fifty_requests_a_second_are_refused_with_a_time_to_come_back(gateway: GatewayProcess) -> None:
    with ExitStack() as opened_first:  # so that they come at once, however slow this machine is at answering them
        clients = [opened_first.enter_context(Client(gateway.port, timeout_s=60.0)) for _ in range(90)]
        for client in clients:
            client.send(request(json.dumps({"model": "phi-3-mini", "messages": PING}).encode()))  # it takes a hundred at once
        answers = [client.answer() for client in clients]
    assert Counter(answer.status for answer in answers).keys() == {200, 429}
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.code for answer in refused} == {"rate_limit_exceeded"}
    assert all(float(answer.header("retry-after") or -1) >= 0 for answer in refused)


def test_four_processes_as_the_file_says(overrides: dict[str, str]) -> None:
    environment = {**overrides, "PROMETHEUS_PORT": str(free_port()), "RATE_LIMITING_ENABLED": "false"}
    with GatewayProcess(OWNERS_FILE, environment=environment) as gateway:
        for name in NAMES * 3:
            assert chat(gateway, model=name)["model"] == name


def test_every_worker_knows_what_all_have_under_way() -> None:
    with ExitStack() as running:
        backend = running.enter_context(scripted("openai", models=["m"], first_token_s=60.0))
        config = f'models: {{m: {{endpoint: "{backend.url}", provider: openai}}}}'
        gateway = running.enter_context(GatewayProcess(config, workers=3))

        def told_by_all(count: int) -> None:
            seen: set[int] = set()
            give_up_s = time.monotonic() + 30
            while len(seen) < 3:
                status = json.loads(ask(gateway, "/models/status")[1])  # on a connection of its own: any worker answers
                seen = seen | {status["worker"]} if status["models"][0]["deployments"][0]["in_flight"] == count else set()
                assert time.monotonic() < give_up_s, (count, seen, status)

        with ExitStack() as clients:
            for _ in range(9):
                clients.enter_context(opened(gateway.port, "ping", "m"))
            told_by_all(9)
        told_by_all(0)
