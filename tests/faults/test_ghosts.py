"""A client leaves while Ollama reads its prompt: the next request goes where nothing is read, and the place comes back."""

from __future__ import annotations

import json

from tests.faults.asking import chat, opened
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: ollama}}
  two: {{url: "{two}", provider: ollama}}
models: {{solo: {{endpoints: [one, two], upstream_model: "tiny:1b"}}}}
load_balancer: {{algorithm: least_busy, health_check_interval: 3600}}
"""
READS_S = 3.0


def test_what_ollama_still_reads_counts() -> None:
    servers = {name: Scripted("ollama", first_token_s=READS_S) for name in ("one", "two")}
    with servers["one"] as first, servers["two"] as second, GatewayProcess(CONFIG.format(one=first.url, two=second.url)) as gateway:

        def load() -> dict[str, int]:
            status = json.loads(one(gateway.port, request(b"", path="/models/status", method="GET")).body)
            (target,) = [target for target in status["models"] if target["name"] == "solo"]
            return {deployment["endpoint"]: deployment["in_flight"] for deployment in target["deployments"]}

        # Each server has shown how long it reads.
        clients = [opened(gateway.port, "ping"), opened(gateway.port, "ping")]
        for client in clients:
            with client:
                assert client.answer().status == 200
        assert load() == {"one": 0, "two": 0}

        with opened(gateway.port, "ping"):
            wait_until(lambda: first.in_flight + second.in_flight == 1)
            busy, idle = ("one", "two") if first.in_flight else ("two", "one")
        servers[busy].until(lambda server: server.cancelled == 1)
        assert load() == {busy: 1, idle: 0}
        servers[idle].run(lambda: quick(servers[idle]))
        assert chat(gateway.port).header("x-hx-endpoint") == idle
        wait_until(lambda: load() == {busy: 0, idle: 0})


async def quick(server: Scripted) -> None:
    """Answer at once from here on."""
    assert server.backend is not None
    server.backend.first_token_s = 0.0
