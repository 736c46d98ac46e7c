"""Bodies of requests and answers, where they are asked for: redacted, bounded, read by request id, never in the way and never where they are not wanted."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import Client, ask, request
from tests.support.background import Scripted
from tests.support.engines import Databases
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.config.ledger import BodiesSettings
from hx_gateway.ledger.bodies import Bodies, read, waiting

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{tiny: {{endpoint: one, upstream_model: "tiny:1b"}}, secret: {{endpoint: one, upstream_model: "tiny:1b"}}}}
keys: {{api_keys: [{{name: anna, key: "env:ANNA"}}, {{name: bert, key: "env:BERT"}}]}}
ledger: {{bodies: {{enabled: true, keys: [anna], models: [tiny], max_bytes: 1500, redact: ["card [0-9]+"]}}}}
load_balancer: {{health_check_interval: 3600}}
"""
ANNA, BERT = "the-key-of-anna-for-tests", "the-key-of-bert-for-tests"


class Told:
    """A gateway that keeps bodies of anna's requests to one model."""

    def __init__(self, gateway: GatewayProcess, server: Scripted, state: Path) -> None:
        self.gateway = gateway
        self.server = server
        self.state = state

    def ask(self, content: str, key: str = ANNA, model: str = "tiny", stream: bool = False) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}
        return httpx.post(
            f"{self.gateway.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=30, verify=False
        )

    def story(self, id: str, key: str = KEY) -> dict[str, Any]:
        """What is known of a request, once its row is there."""
        found: dict[str, Any] = {}

        def there() -> bool:
            answer = httpx.get(
                f"{self.gateway.url}/admin/requests/{id}", headers={"authorization": f"Bearer {key}"}, timeout=30, verify=False
            )
            found.update(answer.json())
            return answer.status_code == 200

        wait_until(there, 60)
        return found

    def bodies(self, id: str) -> tuple[str, str]:
        """Its bodies, once they are there."""
        found: dict[str, Any] = {}
        wait_until(lambda: found.update(self.story(id)) or found["request"] is not None, 60)
        return found["request"], found["response"]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    state = tmp_path_factory.mktemp("state")
    given = {"XDG_STATE_HOME": str(state), "ANNA": ANNA, "BERT": BERT}
    if request.param == "postgres":
        databases: Databases = request.getfixturevalue("databases")
        given["DATABASE_URL"] = databases.ready()
    server = Scripted("openai", models=("tiny:1b",))
    with server as backend, GatewayProcess(CONFIG.format(url=backend.url), given) as gateway:
        yield Told(gateway, server, state / "hx-gateway")
        assert "Traceback" not in gateway.log, gateway.log


def test_both_bodies_are_there_without_what_is_secret(told: Told) -> None:
    answer = told.ask("my card 4711 and Bearer abcdefgh12345678 and sk-" + "0123456789abcdef")
    request, response = told.bodies(answer.headers["x-hx-decision-id"])
    for body in (json.loads(request)["messages"][0]["content"], json.loads(response)["choices"][0]["message"]["content"]):
        assert body == "my [redacted] and [redacted] and [redacted]"
    assert ANNA not in request + response and answer.json()["choices"][0]["message"]["content"].startswith("my card 4711")


def test_a_stream_is_kept_as_one_answer(told: Told) -> None:
    answer = told.ask("Say card 12 34", stream=True)
    assert "redacted" not in answer.text
    _, response = told.bodies(answer.headers["x-hx-decision-id"])
    whole = json.loads(response)
    assert whole["object"] == "chat.completion" and whole["choices"][0]["message"]["content"] == "[redacted] 34", "also over two events"


def test_what_is_too_long_is_cut_and_says_so(told: Told) -> None:
    content = "x" * 40_000
    answer = told.ask(content)
    assert answer.json()["choices"][0]["message"]["content"] == content
    for body in told.bodies(answer.headers["x-hx-decision-id"]):
        kept, _, said = body.rpartition("\n")
        assert len(kept) == 1500 and said.startswith("[truncated: 40") and said.endswith(" bytes in all]")


def test_who_left_and_what_failed(told: Told) -> None:
    backend = told.server.backend
    assert backend is not None
    backend.token_s = 0.02
    with Client(told.gateway.port) as client:
        body = ask("Count to 2000", stream=True, model="tiny")
        client.send(request(body, key=ANNA))
        id = dict(client.head()[1])["x-hx-decision-id"]
        while b'"1 "' not in (piece := client.chunk()) and b'"1"' not in piece:
            pass
    asked, told_so_far = told.bodies(id)
    assert json.loads(asked)["stream"] and "1" in json.loads(told_so_far)["choices"][0]["message"]["content"]
    backend.token_s = 0.0
    answer = told.ask("nothing", model="none")
    assert answer.status_code == 404
    answer = told.ask("Say no", key=ANNA)
    assert told.bodies(answer.headers["x-hx-decision-id"])[0]


def test_only_what_is_wanted_is_kept(told: Told) -> None:
    others = [told.ask("a", BERT), told.ask("b", ANNA, "secret"), told.ask("c", ANNA)]
    ids = [answer.headers["x-hx-decision-id"] for answer in others]
    assert told.bodies(ids[2])[0]
    assert [told.story(id)["request"] for id in ids[:2]] == [None, None]
    assert told.ask("d", "no-such-key").status_code == 401
    assert not any(b"no-such-key" in path.read_bytes() for path in waiting(told.state))


def test_a_killed_gateway_loses_none_that_was_written(told: Told) -> None:
    answer = told.ask("before it is killed")
    wait_until(lambda: bool(waiting(told.state)) or told.story(answer.headers["x-hx-decision-id"])["request"] is not None, 30)
    os.kill(told.gateway.pid, signal.SIGKILL)
    assert told.gateway.process is not None
    told.gateway.process.wait(30)
    told.gateway.start()
    assert "before it is killed" in told.bodies(answer.headers["x-hx-decision-id"])[0]
    if (told.state / "hx-gateway.db").exists():
        with closing(sqlite3.connect(told.state / "hx-gateway.db")) as store:
            assert store.execute(
                "SELECT count(*), count(DISTINCT id) FROM bodies WHERE CAST(request AS TEXT) LIKE '%before it is killed%'"
            ).fetchone() == (1, 1)


def test_bounds_losses_and_torn_ends(tmp_path: Path) -> None:
    from hx_gateway.core.context import CHAT, NOBODY, Exchange

    bodies = Bodies()
    bodies.adopt(BodiesSettings(enabled=True, max_bytes=1 << 20))
    exchanges = [Exchange(f"{number:026}", CHAT, b"POST", b"", {}, [], b"x" * 1_000_000, NOBODY, 0.0) for number in range(40)]
    bodies.take(exchanges[0], [b"y"], 1)
    assert bodies.lost == 1, "there is no state directory"
    bodies.adopt(BodiesSettings(enabled=True, max_bytes=1 << 20, waiting_max_bytes=4 << 20))
    bodies.start(tmp_path)
    for exchange in exchanges:
        bodies.take(exchange, [b"y"], 1)
    bodies.stop()
    files = waiting(tmp_path)
    kept = [one for path in files for one in read(path.read_bytes())]
    assert 0 < len(kept) <= 6 and len(kept) + bodies.lost == 41, "what has no room is counted"
    assert {one[0] for one in kept} < {exchange.id for exchange in exchanges} and kept[0][2] == b"x" * 1_000_000
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    data = files[0].read_bytes()
    assert list(read(data[:-1])) == list(read(data))[:-1] and list(read(data[:5])) == []
