"""From SQLite to Postgres and back while requests come: each is in the store that is used last, once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from sqlalchemy import func, select
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.faults.test_housekeeper import running
from tests.support.gateway import GatewayProcess

from hx_gateway.housekeeping import read_state
from hx_gateway.stores.sql.engine import Store, StoreError
from hx_gateway.stores.sql.schema import USAGE, USAGE_HOURLY

COMMAND = [sys.executable, "-m", "hx_gateway", "migrate"]


def counted(url: str) -> tuple[int, int, int]:
    """Rows, different ids among them, and requests in the sums by hour."""

    async def count() -> tuple[int, int, int]:
        store = Store(url)
        try:
            async with store.reading() as connection:
                rows = (await connection.execute(select(func.count(), func.count(USAGE.c.id.distinct())))).one()
                return rows[0], rows[1], int(await connection.scalar(select(func.sum(USAGE_HOURLY.c.requests))) or 0)
        except StoreError:
            return 0, 0, 0
        finally:
            await store.close()

    return asyncio.run(count())


def ask(gateway: GatewayProcess, times: int) -> None:
    for number in range(times):
        assert chat(gateway.port, f"text {number}", "tiny").content == f"text {number}"


def waiting(source: str, target: str, state: Path) -> subprocess.Popen[str]:
    """A migration that waits for the end of the gateway."""
    words = ["--from", source, "--to", target, "--hold", str(state)]
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "waiting until no gateway uses" in process.stderr.readline()
    return process


def test_there_and_back_while_requests_come(tmp_path: Path, empty_postgres_url: str) -> None:
    state = tmp_path / "hx-gateway"
    first, second, third = f"sqlite:///{state / 'hx-gateway.db'}", empty_postgres_url, f"sqlite:///{tmp_path / 'again.db'}"
    with running(tmp_path) as gateway:
        ask(gateway, 10)
        # A file that is being made is not looked into: that would get in its way.
        wait_until(lambda: ((read_state(state) or {}).get("duties", {}).get("ship", {}).get("records")) == 10, 60)
        assert counted(first) == (10, 10, 10)
        assert subprocess.run([*COMMAND, "--from", first, "--to", second], capture_output=True, timeout=100).returncode in (0, 3)
        ask(gateway, 5)
        moving = waiting(first, second, state)
        ask(gateway, 5)
    with running(tmp_path, second) as gateway:
        ask(gateway, 5)
        said, wrong = moving.communicate(timeout=100)
        assert moving.returncode == 0, said + wrong
        wait_until(lambda: counted(second) == (25, 25, 25), 60)
        moving = waiting(second, third, state)
        ask(gateway, 5)
    with running(tmp_path, third) as gateway:
        ask(gateway, 5)
        said, wrong = moving.communicate(timeout=100)
        assert moving.returncode == 0, said + wrong
        wait_until(lambda: counted(third) == (35, 35, 35), 60)
        assert "Traceback" not in gateway.log, gateway.log
    # One more run would undo what came since: it is refused.
    late = subprocess.run([*COMMAND, "--from", second, "--to", third], capture_output=True, text=True, timeout=100)
    assert late.returncode == 1 and "move into an empty database" in late.stderr
    assert counted(third) == (35, 35, 35)
