"""The store of keys killed, hung, full and not there yet: who is known is let in, who was revoked is not, and nobody hears a false 401."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from tests.faults.conftest import wait_until
from tests.support.engines import Postgres
from tests.support.gateway import KEY
from tests.support.keyed import Keyed, delay_s, keyed

from hx_gateway.access.snapshot import FILE


def make(gateway: Keyed, name: str) -> str:
    status, made = gateway.ask("POST", "/admin/keys", {"name": name})
    assert status == 201, made
    key: str = made["key"]
    return key


@contextmanager
def asking(gateway: Keyed, key: str, clients: int = 4) -> Iterator[Counter[tuple[int, str]]]:
    """Clients that ask without a pause, each on a connection of its own; counts what they are answered."""
    answers: Counter[tuple[int, str]] = Counter()
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                answer = gateway.chat(key)
            except OSError as error:
                answer = (0, repr(error))
            answers[answer] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def durable_postgres() -> Iterator[Postgres]:
    """A Postgres that has what it said it has, also after it was killed."""
    with Postgres(synchronous_commit="on") as server:
        yield server


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_no_database_is_needed_to_know_who_calls(how: str, tmp_path: Path, durable_postgres: Postgres) -> None:
    with keyed(tmp_path, durable_postgres.url(), workers=2) as gateway:
        app, gone = make(gateway, "app"), make(gateway, "gone")
        assert gateway.ask("DELETE", "/admin/keys/gone")[0] == 200
        delay_s(lambda: all(gateway.chat(app) == (200, "ok") and gateway.chat(gone)[0] == 401 for _ in range(10)))
        with asking(gateway, app) as answers:
            wait_until(lambda: answers.total() >= 50, 30)
            durable_postgres.kill() if how == "killed" else durable_postgres.hang()
            before = answers.total()
            wait_until(lambda: answers.total() >= before + 300, 60)
            for _ in range(10):
                assert gateway.chat(gone) == (401, "invalid_api_key") and gateway.chat("hx-nobody") == (401, "invalid_api_key")
            status, body = gateway.ask("POST", "/admin/keys", {"name": "late"})
            assert (status, body["error"]["code"]) == (503, "store_unavailable") and "Postgres" in body["error"]["message"]
        assert set(answers) == {(200, "ok")}, answers

        # A restart changes nothing: neither who is known, nor who was revoked.
        assert gateway.process.stop() == 0
        gateway.process.start()
        assert gateway.chat(app) == gateway.chat(KEY) == (200, "ok")
        assert gateway.chat(gone) == (401, "invalid_api_key")
        assert "was revoked at" in gateway.ask("GET", "/v1/models", key=gone)[1]["error"]["message"]

        # When it is back, changes arrive again.
        durable_postgres.start() if how == "killed" else durable_postgres.resume()
        wait_until(
            lambda: (answer := gateway.ask("DELETE", "/admin/keys/app"))[0] == 200 or answer[0] != 503 and pytest.fail(str(answer)), 60
        )
        wait_until(lambda: all(gateway.chat(app)[0] == 401 for _ in range(10)), 30)


def test_no_worker_and_no_machine_keeps_a_stale_key(tmp_path: Path, own_postgres: Postgres) -> None:
    machines = keyed(tmp_path / "a", own_postgres.url(), workers=2), keyed(tmp_path / "b", own_postgres.url(), workers=2)
    with machines[0] as one, machines[1] as two:
        key = make(one, "app")
        wait_until(lambda: all(two.chat(key) == (200, "ok") for _ in range(10)), 30)
        assert two.process.stop() == 0
        # What it misses while it is away, it does not bring back.
        assert one.ask("DELETE", "/admin/keys/app")[0] == 200
        two.process.start()
        wait_until(lambda: all(two.chat(key)[0] == 401 for _ in range(10)), 30)
        own_postgres.kill()
        assert all(gateway.chat(key)[0] == 401 for gateway in (one, two) for _ in range(10))
        # Neither does a file that is damaged: it is refused, and what was known stays.
        path = tmp_path / "b" / FILE
        path.write_bytes(path.read_bytes()[:-30])
        wait_until(lambda: two.log.count("keys.json is refused") == 2, 30)
        assert all(two.chat(key)[0] == 401 and two.chat(KEY) == (200, "ok") for _ in range(10))
        assert two.process.stop() == 0
        two.process.start()
        assert "are taken from" in two.log and "was revoked at" in two.ask("GET", "/v1/models", key=key)[1]["error"]["message"]


def test_a_database_without_free_connections_refuses_nobody() -> None:
    with Postgres(max_connections="12", superuser_reserved_connections="0", reserved_connections="0") as server, asyncio.Runner() as runner:
        runner.run(crowded(server))


async def crowded(server: Postgres) -> None:
    async def taken() -> list[asyncpg.Connection]:
        """Every connection there is."""
        found: list[asyncpg.Connection] = []
        while True:
            try:
                found.append(await asyncpg.connect(server.url()))
            except asyncpg.TooManyConnectionsError:
                return found

    with keyed(server.folder / "a", server.url()) as gateway:
        app = await asyncio.to_thread(make, gateway, "app")
        rest = await taken()
        for backend in await rest[0].fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'hx-gateway'"):
            await rest[0].execute("SELECT pg_terminate_backend($1)", backend[0])
        rest += await taken()
        for _ in range(30):
            assert await asyncio.to_thread(gateway.chat, app) == (200, "ok")
        assert (await asyncio.to_thread(gateway.chat, "hx-nobody")) == (401, "invalid_api_key"), "all keys are known: this is none"
        # One that never got a word from the store cannot tell, and says that.
        with keyed(server.folder / "b", server.url()) as fresh:
            for _ in range(10):
                assert await asyncio.to_thread(fresh.chat, app) == (503, "store_unavailable")
                assert await asyncio.to_thread(fresh.chat, KEY) == (200, "ok")
                assert await asyncio.to_thread(fresh.chat, "") == (401, "invalid_api_key")
            for connection in rest:
                await connection.close()
            await asyncio.to_thread(wait_until, lambda: fresh.chat(app) == (200, "ok"), 60)
            assert await asyncio.to_thread(fresh.chat, "hx-nobody") == (401, "invalid_api_key")


def test_unknown_tokens_do_not_reach_the_database(tmp_path: Path, own_postgres: Postgres) -> None:
    def transactions() -> int:
        async def count() -> int:
            connection = await asyncpg.connect(own_postgres.url())
            try:
                return int(await connection.fetchval("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"))
            finally:
                await connection.close()

        return asyncio.run(count())

    with keyed(tmp_path, own_postgres.url()) as gateway:
        make(gateway, "app")
        before = transactions()
        with asking(gateway, "hx-nobody") as answers:
            wait_until(lambda: answers.total() >= 2000, 60)
        assert set(answers) == {(401, "invalid_api_key")}
        wait_until(lambda: transactions() > before, 30)  # the looks at the version of the keys go on
        assert transactions() - before < 500


def test_without_a_state_directory_workers_read_the_store_themselves(tmp_path: Path, own_postgres: Postgres) -> None:
    state = tmp_path / "state"
    state.write_text("a file where the folder should be")
    with keyed(state, own_postgres.url(), workers=2) as gateway:
        wait_until(lambda: gateway.chat("hx-nobody") == (401, "invalid_api_key"), 30)
        key = make(gateway, "app")
        wait_until(lambda: all(gateway.chat(key) == (200, "ok") for _ in range(10)), 30)
        own_postgres.kill()
        assert all(gateway.chat(key) == (200, "ok") for _ in range(10))


def test_a_gateway_without_any_key_and_a_store_it_never_read_lets_nobody_in(tmp_path: Path) -> None:
    server = Postgres()
    try:
        with keyed(tmp_path, server.url(), key="") as gateway:
            assert gateway.chat("") == gateway.chat("hx-perhaps") == (503, "store_unavailable")
            server.start()
            wait_until(lambda: gateway.chat("") == (200, "ok"), 60)  # no key is in it: this machine alone is let in, as ever
    finally:
        server.close()
