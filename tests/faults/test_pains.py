"""What operators of other gateways suffer from, where no other test here has it: retries that multiply, a busy gateway taken
for a dead one, one dead host that stalls all."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from typing import Any

from tests.faults.asking import chat, opened
from tests.faults.conftest import wait_until
from tests.support.background import Scripted, scripted
from tests.support.gateway import KEY, GatewayProcess


def get(gateway: GatewayProcess, path: str) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {KEY}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_tries_and_names_that_stand_in_do_not_multiply() -> None:
    with ExitStack() as running:
        servers = [running.enter_context(scripted("openai", models=["m"])) for _ in range(6)]
        for server in servers:
            server.fault = "status status=500"
        places = [f'endpoints: ["{one.url}", "{two.url}"], upstream_model: m' for one, two in zip(servers[::2], servers[1::2], strict=True)]
        config = f"""\
models: {{a: {{{places[0]}}}, b: {{{places[1]}}}, c: {{{places[2]}}}}}
fallbacks: {{a: {{down: [b, c]}}, b: {{down: [c, a]}}, c: {{down: [a, b]}}}}
load_balancer: {{max_attempts: 3, circuit_breaker_threshold: 1000, health_check_interval: 3600}}
"""
        gateway = running.enter_context(GatewayProcess(config))
        for number in range(1, 4):
            answer = chat(gateway.port, model="a")
            assert answer.status == 500
            assert answer.header("x-should-retry") == "false"
            asked = sum(request.method == "POST" for server in servers for request in server.requests)
            assert asked <= number * (3 + 2), "one budget for all: each name that stands in adds one try, not a budget of its own"


def test_a_gateway_that_is_full_is_alive_and_says_so() -> None:
    slow = Scripted("openai", models=["m"], first_token_s=60.0)
    with slow as backend:
        config = f"""\
models: {{m: {{endpoint: "{backend.url}"}}}}
performance: {{max_concurrent_requests: 3}}
queue: {{max_waiting: 0}}
"""
        with GatewayProcess(config) as gateway, ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(opened(gateway.port, "ping", "m"))
            wait_until(lambda: backend.in_flight == 3)
            answer = chat(gateway.port, model="m")
            assert (answer.status, answer.code) == (503, "overloaded")
            for _ in range(20):
                status, alive = get(gateway, "/healthz")
                assert (status, alive["ok"]) == (200, True)
                assert get(gateway, "/readyz")[0] == 200
            assert backend.in_flight == 3, "it was full all the while"


def test_one_dead_host_among_several_stalls_nobody() -> None:
    well, deaf = Scripted("ollama", models=["one:1b", "both:1b"]), Scripted("ollama", models=["both:1b", "other:1b"])
    with well as first, deaf as second:
        deaf.run(lambda: silent(second))
        config = f'endpoints: {{a: {{url: "{first.url}"}}, b: {{url: "{second.url}"}}}}'
        with GatewayProcess(config) as gateway:
            status, listed = get(gateway, "/v1/models")
            assert (status, {model["id"] for model in listed["data"]}) == (200, {"one:1b", "both:1b"})
            assert chat(gateway.port, model="both:1b").content == "pong"
            deaf.run(lambda: silent(second, None))
            wait_until(lambda: len(get(gateway, "/v1/models")[1]["data"]) == 3, within_s=30.0)
            assert chat(gateway.port, model="other:1b").content == "pong"


async def silent(server: Any, fault: str | None = "hang") -> None:
    """Make a server deaf, or well again; to be run where it runs."""
    server.fault = fault
