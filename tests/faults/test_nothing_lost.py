"""Nothing is lost: every answer a client received in full is in the store once, whatever is killed, hung or full meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import Client, ask, one, request
from tests.support.background import Scripted
from tests.support.engines import Postgres
from tests.support.gateway import KEY, GatewayProcess
from tests.unit.ledger.records import found

ROUNDS = int(os.environ.get("HX_ROUNDS", "6"))
"""How often the gateway is killed; each round takes about two seconds."""
SECONDS = float(os.environ.get("HX_OUTAGE_SECONDS", "2"))
"""How long a store is away."""
CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{solo: {{endpoint: one, upstream_model: "tiny:1b"}}}}
load_balancer: {{health_check_interval: 3600}}
ledger: {{segment_bytes: 262144, journal_max_bytes: 67108864}}
"""


@dataclass
class Load:
    """Clients that ask as long as they are let, whole answers and streams in turn."""

    received: set[str] = field(default_factory=set)  # ids of answers that arrived in full
    broken: int = 0  # answers that did not: connections broke off
    refused: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    async def run(self, url: str, stop: asyncio.Event, clients: int = 12, pause_s: float = 0.0) -> None:
        """Ask until told to stop."""
        async with httpx.AsyncClient(trust_env=False, timeout=20, headers={"Authorization": f"Bearer {KEY}"}) as client:
            await asyncio.gather(*(self._ask(client, url, number, stop, pause_s) for number in range(clients)))

    async def _ask(self, client: httpx.AsyncClient, url: str, number: int, stop: asyncio.Event, pause_s: float) -> None:
        while not stop.is_set():
            number += 1
            began_s = time.monotonic()
            stream = number % 2 == 0
            body = {"model": "solo", "messages": [{"role": "user", "content": f"Count to {number % 30}"}], "stream": stream}
            text = ""
            try:
                async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
                    async for piece in answer.aiter_text():
                        text += piece
                        if stream and "data: [DONE]" in text:  # to most clients this is the end
                            self.received.add(answer.headers["x-request-id"])
                if answer.status_code != 200:
                    self.refused.append(f"{answer.status_code} {text[:200]}")
                elif not stream:
                    assert json.loads(text)["choices"]
                    self.received.add(answer.headers["x-request-id"])
                self.waits_s.append(time.monotonic() - began_s)
            except httpx.HTTPError:
                self.broken += 1
                await asyncio.sleep(0.01)
            await asyncio.sleep(pause_s)


def for_a_while(load: Load, url: str, meanwhile: Callable[[], None], **settings: float) -> None:
    """Put load on a gateway as long as ``meanwhile`` takes, which runs in a thread."""

    async def run() -> None:
        stop = asyncio.Event()
        asking = asyncio.create_task(load.run(url, stop, **settings))
        try:
            await asyncio.to_thread(meanwhile)
        finally:
            stop.set()
            await asking

    asyncio.run(run())


def rows_of(url: str) -> tuple[list[str], int]:
    """The ids of all rows, and the number of requests that the sums by hour tell."""
    ids, sums = "SELECT id FROM usage", "SELECT coalesce(sum(requests), 0) FROM usage_hourly"
    if url.startswith("sqlite"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as database:
            return [row[0] for row in database.execute(ids)], database.execute(sums).fetchone()[0]

    async def fetch() -> tuple[list[str], int]:
        connection = await asyncpg.connect(url)
        try:
            return [row[0] for row in await connection.fetch(ids)], int(await connection.fetchval(sums))
        finally:
            await connection.close()

    return asyncio.run(fetch())


def journal() -> Path:
    """The journal's folder of the test's gateways."""
    return Path(os.environ["XDG_STATE_HOME"]) / "hx-gateway" / "journal"


def all_there_once(url: str, received: set[str]) -> int:
    """Every answer received has one row; returns the number of rows."""
    ids, sums = rows_of(url)
    assert received - set(ids) == set(), "answers that were received and are not in the store"
    assert len(ids) == len(set(ids)) == sums
    return len(ids)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest) -> str:
    """Where the gateway of the test keeps its rows; once for each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{journal().parent / 'hx-gateway.db'}"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
def server() -> Iterator[Scripted]:
    """The model server."""
    scripted = Scripted("openai")
    with scripted:
        yield scripted


@pytest.mark.timeout(120 + ROUNDS * 10)
def test_killed_at_random_moments_under_load(store_url: str, server: Scripted) -> None:
    """SIGKILL for the gateway, its workers, its housekeeper, or all of them at once."""
    rounds = ROUNDS if store_url.startswith("sqlite") else -(-ROUNDS // 3)
    assert server.backend is not None
    chance = random.Random(20_26)
    load = Load()
    environment = {} if store_url.startswith("sqlite") else {"DATABASE_URL": store_url}
    for number in range(rounds):
        workers = 2 if number % 4 == 3 else 1
        gateway = GatewayProcess(CONFIG.format(url=server.backend.url), environment, workers=workers)
        with contextlib.ExitStack() as cleared:
            cleared.callback(gateway._folder.cleanup)
            gateway.start()
            pause_s = chance.uniform(0.05, 0.8)

            def kill(
                gateway: GatewayProcess = gateway, everything: bool = number % 2 == 1 or workers > 1, pause_s: float = pause_s
            ) -> None:
                time.sleep(pause_s)
                family = psutil.Process(gateway.pid).children(recursive=True) if everything else []
                for pid in [gateway.pid, *(process.pid for process in family)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                assert gateway.process is not None
                gateway.process.wait()

            for_a_while(load, gateway.url, kill)
    with GatewayProcess(CONFIG.format(url=server.backend.url), environment) as gateway:
        wait_until(lambda: len(list(journal().glob("*.seg"))) == 1, 60)  # that of the living
    rows = all_there_once(store_url, load.received)
    print(f"{rounds} rounds: {len(load.received)} answers received, {load.broken} broken off, {rows} rows")
    assert not load.refused and len(load.received) > rounds * 10 and load.broken >= rounds


@pytest.mark.timeout(120 + 5 * SECONDS)
def test_postgres_is_away_under_load(own_postgres: Postgres, server: Scripted) -> None:
    """Stopped, hung, killed, or refusing to write: no request fails or waits for it, and everything is there afterwards, once."""
    assert server.backend is not None
    url = own_postgres.url()
    troubles: list[tuple[Callable[[], None], Callable[[], None]]] = [
        (own_postgres.stop, own_postgres.start),
        (own_postgres.hang, own_postgres.resume),
        (own_postgres.kill, own_postgres.start),
        (lambda: refuse(url, True), lambda: refuse(url, False)),
    ]
    calm = Load()
    with GatewayProcess(CONFIG.format(url=server.backend.url), {"DATABASE_URL": url}) as gateway:
        for_a_while(calm, gateway.url, lambda: wait_until(lambda: not_empty(url), 60), pause_s=0.06)
        received = set(calm.received)
        for begin, end in troubles:
            load = Load()

            def disturb(begin: Callable[[], None] = begin, end: Callable[[], None] = end) -> None:
                begin()
                time.sleep(SECONDS)
                end()

            for_a_while(load, gateway.url, disturb, pause_s=0.06)
            received |= load.received
            assert not load.refused and not load.broken
            print(f"{len(load.received)} answers, p99 {sorted(load.waits_s)[int(len(load.waits_s) * 0.99)] * 1000:.1f} ms")
            wait_until(lambda expected=frozenset(received): expected <= set(rows_of(url)[0]), 60)
        assert "Traceback" not in gateway.log
    assert all_there_once(url, received) == len(received)


def not_empty(url: str) -> bool:
    """Whether the first row has come to the store, schema and all."""
    try:
        return bool(rows_of(url)[0])
    except asyncpg.PostgresError:
        return False


def refuse(url: str, refusing: bool) -> None:
    """Have a Postgres refuse every write, as one without room does."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if refusing else 'off'}")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()

    asyncio.run(run())


def test_a_full_disk_costs_records_that_are_counted_and_no_answer(server: Scripted) -> None:
    """The journal cannot grow; when it can again, everything that was not counted as lost is there."""
    assert server.backend is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    gateway = GatewayProcess(CONFIG.format(url=server.backend.url), cold=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (192 << 10, hard))  # inherited: no file of it may grow beyond
    try:
        gateway.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with contextlib.ExitStack() as cleared:
        cleared.callback(gateway._folder.cleanup)
        cleared.callback(gateway.stop)
        sent = 4600  # more than may wait in memory
        with Client(gateway.port) as client:
            for _ in range(sent // 100):
                client.send(request(ask("x", model="nobody")) * 100)
                assert {client.answer().status for _ in range(100)} == {404}
        assert {chat(gateway.port, stream=bool(number % 2)).status for number in range(20)} == {200}
        sent += 20
        lost = metric(gateway, "hx_gateway_journal_lost_total")
        assert 0 < lost <= sent
        wait_until(lambda: "usage records are being lost" in gateway.log)
        assert "the journal cannot grow" in gateway.log
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (soft, hard))
        wait_until(lambda: metric(gateway, "hx_gateway_journal_records_total") == sent - lost, 30)
        answer = chat(gateway.port)
        assert answer.header("x-request-id") == found(journal())[-1].id
        assert metric(gateway, "hx_gateway_journal_lost_total") == lost
        assert "the journal has room again" in gateway.log
        assert len({record.id for record in found(journal())}) == sent - lost + 1


def test_a_full_journal_keeps_the_newest_and_counts_the_rest(server: Scripted) -> None:
    """With the store away for too long, the oldest segments are set aside; they can be brought back."""
    assert server.backend is not None
    config = CONFIG.format(url=server.backend.url).replace("67108864", "1048576")
    with GatewayProcess(config, {"DATABASE_URL": "postgresql://127.0.0.1:9/nothing"}) as gateway:
        sent = 0
        with Client(gateway.port) as client:
            while not metric(gateway, "hx_gateway_journal_dead_lettered_total"):
                client.send(request(ask("x", model="nobody")) * 100)
                assert {client.answer().status for _ in range(100)} == {404}
                sent += 100
        assert chat(gateway.port).status == 200
        letters = found(journal() / "dead-letter")
        assert letters and len(letters) == metric(gateway, "hx_gateway_journal_dead_lettered_total")
        assert len(letters) + len(found(journal())) == sent + 1
        assert metric(gateway, "hx_gateway_journal_lost_total") == 0
        assert "the journal is full" in gateway.log
    for letter in (journal() / "dead-letter").glob("*.seg"):
        letter.rename(journal() / letter.name)
    with GatewayProcess(CONFIG.format(url=server.backend.url)):  # with room for them
        wait_until(lambda: all(size_of(path) in (0, 262144) for path in journal().glob("*.seg")), 60)
    ids, sums = rows_of(f"sqlite:///{journal().parent / 'hx-gateway.db'}")
    assert len(ids) == len(set(ids)) == sums == sent + 1


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def metric(gateway: GatewayProcess, name: str) -> float:
    """The value of a metric without labels."""
    text = one(gateway.port, request(b"", method="GET", path="/metrics")).body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
    return float(line.split()[1])
