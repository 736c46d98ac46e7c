"""Several workers on one scrape: what was counted equals what is in the ledger, though a worker is killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.support.background import Scripted
from tests.support.gateway import KEY, GatewayProcess, free_port

WORKERS = 4
CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}, gone: {{url: "http://127.0.0.1:9", provider: openai}}}}
models:
  solo: {{endpoint: one, upstream_model: "tiny:1b", cost_per_request: 0.5, cost_per_prompt_token: 0.25}}
  lost: {{endpoint: gone}}
groups: {{pair: {{models: [solo, lost], policy: round_robin}}}}
load_balancer: {{health_check_interval: 3600}}
monitoring: {{prometheus_port: {port}}}
"""


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def summed(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all series of a name that have these labels."""
    return sum(value for (found, having), value in samples.items() if found == name and labels.items() <= dict(having).items())


class Gateway:
    """A gateway of several workers, and what it tells."""

    def __init__(self, process: GatewayProcess, exporter: int, state: Path) -> None:
        self.process = process
        self.exporter = exporter
        self.state = state

    def samples(self, port: int | None = None) -> Samples:
        text = one(port or self.process.port, request(b"", method="GET", path="/metrics")).body.decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def total(self, name: str, **labels: str) -> float:
        return summed(self.samples(), name, **labels)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()  # the housekeeper and its guard are nobody's children

    async def load(self, requests: int) -> int:
        """Answers received in full of so many requests, on a connection each, so that all workers get some."""

        async def ask(client: httpx.AsyncClient, number: int) -> int:
            body = {
                "model": ("solo", "pair", "nobody")[number % 3],
                "messages": [{"role": "user", "content": "x" * (number % 7)}],
                "stream": number % 2 == 0,
            }
            headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
            try:
                answer = await client.post(f"{self.process.url}/v1/chat/completions", json=body, headers=headers)
                return int(bool(answer.content))
            except httpx.HTTPError:
                return 0

        async with httpx.AsyncClient(trust_env=False, timeout=20, limits=httpx.Limits(max_connections=8)) as client:
            return sum(await asyncio.gather(*(ask(client, number) for number in range(requests))))

    def ledger(self) -> tuple[int, int, int, int, float]:
        """Rows, tokens by kind, and cost, as they are in the store."""
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.state / 'hx-gateway' / 'hx-gateway.db'}?mode=ro", uri=True)) as database:
                found = database.execute(
                    "SELECT count(*), total(prompt_tokens), total(completion_tokens), total(attempts), total(cost) FROM usage"
                ).fetchone()
        except sqlite3.OperationalError:
            return 0, 0, 0, 0, 0.0  # not made yet
        return found  # type: ignore[no-any-return]

    def counted(self) -> tuple[float, float, float, float, float]:
        """The same as the metrics have it."""
        found = self.samples()
        return (
            summed(found, "hx_gateway_requests_total"),
            summed(found, "hx_gateway_tokens_total", kind="prompt"),
            summed(found, "hx_gateway_tokens_total", kind="completion"),
            summed(found, "hx_gateway_attempts_total"),
            summed(found, "hx_gateway_cost_total"),
        )


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    state, port = tmp_path_factory.mktemp("state"), free_port()
    with Scripted() as backend:
        process = GatewayProcess(CONFIG.format(url=backend.url, port=port), {"XDG_STATE_HOME": str(state)}, workers=WORKERS)
        with process:
            found = Gateway(process, port, state)
            wait_until(lambda: found.total("hx_gateway_workers") == WORKERS, 30)
            yield found


def same(gateway: Gateway) -> bool:
    """Whether metrics and ledger agree, to the last request."""
    counted, ledger = gateway.counted(), gateway.ledger()
    return counted[:4] == ledger[:4] and abs(counted[4] - ledger[4]) < 1e-6


def test_counters_equal_the_ledger_whatever_happens_to_workers(gateway: Gateway) -> None:
    answered = asyncio.run(gateway.load(150))
    assert answered == 150
    wait_until(lambda: gateway.ledger()[0] == 150 and same(gateway), 30)
    before = gateway.samples()

    os.kill(gateway.workers()[0].pid, signal.SIGKILL)

    wait_until(lambda: gateway.total("hx_gateway_workers") == WORKERS, 30)
    after = gateway.samples()
    backwards = [
        (name, labels, value, after.get((name, labels)))
        for (name, labels), value in before.items()
        if name.endswith(("_total", "_bucket", "_count")) and after.get((name, labels), 0.0) < value
    ]
    assert not backwards
    asyncio.run(gateway.load(60))
    wait_until(lambda: same(gateway), 30)


def test_requests_cut_off_by_a_kill_are_counted_as_the_ledger_has_them(gateway: Gateway) -> None:
    async def run() -> None:
        loading = asyncio.create_task(gateway.load(300))
        for _ in range(3):
            await asyncio.sleep(0.2)
            os.kill(gateway.workers()[-1].pid, signal.SIGKILL)
        await loading

    asyncio.run(run())
    wait_until(lambda: gateway.total("hx_gateway_in_flight") == 0 and gateway.total("hx_gateway_workers") == WORKERS, 30)
    wait_until(lambda: same(gateway), 30)


def test_every_worker_tells_the_same(gateway: Gateway) -> None:
    found = {gateway.total("hx_gateway_requests_total") for _ in range(20)}
    assert len(found) == 1 and found.pop() > 0
    assert gateway.total("hx_gateway_worker_memory_bytes") > 4e6 * WORKERS


def test_every_worker_has_the_last_hour_of_all(gateway: Gateway) -> None:
    def told() -> dict[int, float]:
        answer = httpx.get(f"{gateway.process.url}/admin/history", headers={"Authorization": f"Bearer {KEY}"}, timeout=20).json()
        return dict(zip(answer["times"], answer["all"]["requests_per_s"], strict=True))

    wait_until(lambda: sum(value or 0.0 for value in told().values()) > 0, 30)

    def agreed() -> bool:
        answers = [told() for _ in range(8)]  # each on a connection of its own
        common = set.intersection(*(set(answer) for answer in answers))
        return len(common) >= len(answers[0]) - 1 and len({tuple(answer[at] for at in sorted(common)) for answer in answers}) == 1

    wait_until(agreed, 30)  # one that was held up by others may be late with the last few seconds


def test_a_port_of_its_own_serves_the_metrics_and_nothing_else(gateway: Gateway) -> None:
    requests = {key: value for key, value in gateway.samples().items() if key[0] == "hx_gateway_requests_total"}
    shown = gateway.samples(gateway.exporter)
    assert requests and {key: shown[key] for key in requests} == requests
    assert one(gateway.exporter, request(b"", method="GET", path="/v1/models")).status == 404
    assert one(gateway.exporter, request(b"{}", path="/metrics")).status == 405
