"""Every way an exchange can end leaves one record that tells it truly, and it is in the journal when the answer has arrived."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.faults.asking import chat, opened
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import Answer, ask, one, request
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess
from tests.unit.ledger.records import found

from hx_gateway.ledger.record import UsageRecord

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai, cost_per_hour: 3600}}
  old: {{url: "{old}", provider: ollama}}
  gone: {{url: "http://127.0.0.1:9", provider: openai}}
models:
  solo: {{endpoint: one, upstream_model: "tiny:1b", cost_per_request: 100, cost_per_prompt_token: 10, cost_per_completion_token: 1000}}
  llama: {{endpoint: old, upstream_model: "tiny:1b", cost_per_request: 1}}
  lost: {{endpoint: gone, weight: 1000000}}
  found: {{endpoint: one, upstream_model: "tiny:1b", weight: 0.0001}}
groups:
  pair: {{models: [lost, found], policy: weighted, aliases: [both]}}
gateway: {{default_upstream: one}}
load_balancer: {{health_check_interval: 3600}}
keys:
  api_keys: [{{name: webui, key: the-key-of-the-web-ui}}, {{name: other, key: the-key-of-another}}]
ledger: {{end_user_keys: [webui]}}
"""


@dataclass
class Stage:
    """A gateway, its model servers, and its journal."""

    gateway: GatewayProcess
    servers: dict[str, Scripted]
    folder: Path

    @property
    def port(self) -> int:
        """Where the gateway listens."""
        return self.gateway.port

    def last(self, answer: Answer | None = None) -> UsageRecord:
        """The newest record: that of ``answer``, if one is given."""
        record = found(self.folder)[-1]
        assert answer is None or answer.header("x-request-id") == record.id
        return record

    def let(self, name: str, **settings: object) -> None:
        """Change a server, on the thread it runs in."""
        server = self.servers[name]

        async def change() -> None:
            for setting, value in settings.items():
                setattr(server.backend, setting, value)

        server.run(change)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("state")
    servers = {"one": Scripted("openai"), "old": Scripted("ollama")}
    environment = {"XDG_STATE_HOME": str(state)}
    with (
        servers["one"] as one,
        servers["old"] as old,
        GatewayProcess(CONFIG.format(one=one.url, old=old.url), environment) as gateway,
    ):
        yield Stage(gateway, servers, state / "hx-gateway" / "journal")


@pytest.fixture
def stage(shared: Stage) -> Stage:
    for name in shared.servers:
        shared.let(name, fault=None, token_s=0.0, first_token_s=0.0)
    return shared


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer(stage: Stage, stream: bool) -> None:
    record = stage.last(chat(stage.port, "Count to 3", stream=stream))
    assert (record.route, record.status, record.outcome, record.stream) == ("chat", 200, "ok", stream)
    assert (record.asked, record.model, record.group, record.endpoint, record.attempts) == ("solo", "solo", "", "one", 1)
    assert record.key_name == "master" and record.trail is None and not record.estimated
    prompt, completion = record.prompt_tokens, record.completion_tokens
    assert prompt and completion and record.ttft_ms is not None and 0 < record.ttft_ms <= record.duration_ms
    assert record.cost == pytest.approx(100 + 10 * prompt + 1000 * completion + record.engine_ms / 1000)
    assert 0 < record.engine_ms <= record.duration_ms


@pytest.mark.parametrize("stream", [False, True])
def test_the_record_is_there_before_the_last_byte(stage: Stage, stream: bool) -> None:
    """Not soon after: what a client was told is on record, whatever comes next."""
    for number in range(40):
        answer = chat(stage.port, f"n{number}", stream=stream)
        assert answer.header("x-request-id") in {record.id for record in found(stage.folder)}


def test_ollamas_own_times_are_the_engines(stage: Stage) -> None:
    stage.let("old", first_token_s=0.3)
    record = stage.last(chat(stage.port, "ping", "llama"))
    assert 0 < record.engine_ms < record.duration_ms * 0.9, "a third each for the prompt and the answer, as the script has it"
    assert record.cost == 1.0


def test_a_failover_and_its_trail(stage: Stage) -> None:
    answer = chat(stage.port, "ping", "both")
    record = stage.last(answer)
    assert answer.status == 200 and (record.asked, record.group, record.model, record.endpoint) == ("both", "pair", "found", "one")
    assert record.attempts == 2 and record.trail is not None
    ((endpoint, code, milliseconds),) = record.trail
    assert (endpoint, code) == ("gone", "upstream_connect_failed") and 0 <= milliseconds <= record.duration_ms


def test_a_failure(stage: Stage) -> None:
    stage.let("one", fault="status")
    record = stage.last(chat(stage.port))
    assert (record.status, record.outcome, record.endpoint) == (500, "upstream_error", "one")
    assert record.trail is not None and {code for _, code, _ in record.trail} == {"upstream_error"}
    assert record.cost == 0.0 and record.prompt_tokens is None and record.engine_ms == 0.0


@pytest.mark.parametrize(
    ("data", "status", "outcome", "asked", "key"),
    [
        (request(ask("x", model="nobody")), 404, "model_not_found", "nobody", "master"),
        (request(ask("x", model="n" * 5000)), 404, "model_not_found", "n" * 256, "master"),
        (request(b"{"), 400, "invalid_json", "", "master"),
        (request(ask("x"), key="wrong"), 401, "invalid_api_key", "", ""),
    ],
)
def test_refusals(stage: Stage, data: bytes, status: int, outcome: str, asked: str, key: str) -> None:
    record = stage.last(one(stage.port, data))
    assert (record.status, record.outcome, record.asked, record.key_name, record.attempts) == (status, outcome, asked, key, 0)
    assert record.cost == 0.0 and record.endpoint == "" and record.duration_ms > 0


def test_forwarded_unread(stage: Stage) -> None:
    record = stage.last(one(stage.port, request(b"{}", path="/v1/nothing/known?secret=1")))
    assert (record.route, record.asked, record.endpoint, record.status) == ("forward", "/v1/nothing/known", "one", 404)


@pytest.mark.parametrize("model", ["solo", "llama"])
def test_a_client_that_leaves_pays_for_what_was_made_for_it(stage: Stage, model: str) -> None:
    stage.let("one", token_s=0.02)
    stage.let("old", token_s=0.02)
    count = len(found(stage.folder))
    with opened(stage.port, "Count to 500", model) as client:
        client.head()
        for _ in range(8):
            client.chunk()
    wait_until(lambda: len(found(stage.folder)) == count + 1)
    record = stage.last()
    assert (record.status, record.outcome, record.stream, record.model) == (499, "client_closed", True, model)
    assert record.completion_tokens is not None and 3 <= record.completion_tokens < 400 and record.estimated
    assert record.prompt_tokens and record.cost >= 1 and record.engine_ms > 0


def test_a_client_that_leaves_before_the_first_byte(stage: Stage) -> None:
    stage.let("one", fault="hang")
    count = len(found(stage.folder))
    with opened(stage.port, "ping"):
        wait_until(lambda: stage.servers["one"].backend is not None and stage.servers["one"].backend.in_flight > 0)
    wait_until(lambda: len(found(stage.folder)) == count + 1)
    record = stage.last()
    assert (record.outcome, record.completion_tokens, record.ttft_ms) == ("client_closed", 0, None) and record.estimated


def test_a_stream_that_breaks_is_recorded_with_what_came(stage: Stage) -> None:
    stage.let("one", fault="reset_body")
    answer = chat(stage.port, "Count to 20", stream=True)
    record = stage.last(answer)
    assert answer.status == 200 and (record.status, record.outcome) == (200, "stream_broken")
    assert record.completion_tokens is not None and record.estimated and record.cost > 100


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_that_no_server_told_are_estimated_and_marked(stage: Stage, stream: bool) -> None:
    stage.let("one", fault="no_usage")
    record = stage.last(chat(stage.port, "Count to 60", stream=stream))
    assert record.estimated and record.prompt_tokens
    assert record.completion_tokens is not None and 30 <= record.completion_tokens <= 120


@pytest.mark.parametrize(
    ("key", "lines", "more", "user"),
    [
        ("the-key-of-the-web-ui", ("X-OpenWebUI-User-Id: anna",), {}, "anna"),
        ("the-key-of-the-web-ui", (), {"user": "bert"}, "bert"),
        ("the-key-of-the-web-ui", ("accept: */*", "x-openwebui-user-id: anna", "x-other: x"), {"user": "bert"}, "anna"),
        ("the-key-of-another", ("X-OpenWebUI-User-Id: anna",), {"user": "bert"}, ""),
    ],
)
def test_whose_request_it_was_by_keys_that_may_say_so(
    stage: Stage, key: str, lines: tuple[str, ...], more: dict[str, str], user: str
) -> None:
    """Which of a web front's users called is known, and nobody else can claim to be one."""
    record = stage.last(one(stage.port, request(ask("ping", model="solo", **more), *lines, key=key)))
    assert record.user == user and record.outcome == "ok"


def test_a_gateway_that_cannot_write_serves_and_counts(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with Scripted("openai") as server:
        config = f'endpoints: {{one: {{url: "{server.url}", provider: openai}}}}\nmodels: {{solo: {{endpoint: one, upstream_model: "tiny:1b"}}}}\n'
        with GatewayProcess(config, {"XDG_STATE_HOME": str(blocked)}) as gateway:
            assert chat(gateway.port).status == 200
            metrics = one(gateway.port, request(b"", method="GET", path="/metrics")).body.decode()
            assert "hx_gateway_journal_lost_total 1.0" in metrics
            assert "state cannot be kept" in gateway.log


def test_nothing_is_written_where_the_ledger_is_off() -> None:
    state = Path(os.environ["XDG_STATE_HOME"])
    with Scripted("openai") as server:
        config = f'endpoints: {{one: {{url: "{server.url}", provider: openai}}}}\nmodels: {{solo: {{endpoint: one, upstream_model: "tiny:1b"}}}}\n'
        with GatewayProcess(config + "ledger: {enabled: false}\n") as gateway:
            assert chat(gateway.port).status == 200
            metrics = one(gateway.port, request(b"", method="GET", path="/metrics")).body.decode()
    assert "hx_gateway_journal_lost_total 0.0" in metrics and not (state / "hx-gateway" / "journal").exists()
