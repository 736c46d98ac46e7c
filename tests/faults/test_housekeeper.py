"""The housekeeping process and the database behind it, killed, stopped and late: the gateway serves, and nothing is left behind."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.faults.asking import chat
from tests.faults.conftest import wait_until
from tests.support.background import scripted
from tests.support.engines import Postgres
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.housekeeping import read_state

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{tiny: {{endpoint: one, upstream_model: "tiny:1b"}}}}
load_balancer: {{health_check_interval: 3600}}
"""


@contextmanager
def running(state: Path, database: str = "", workers: int = 1, cold: bool = False, **environment: str) -> Iterator[GatewayProcess]:
    """A gateway with a state directory of its own."""
    given = {"XDG_STATE_HOME": str(state), **({"DATABASE_URL": database} if database else {}), **environment}
    with (
        scripted("openai", models=("tiny:1b",)) as backend,
        GatewayProcess(CONFIG.format(url=backend.url), given, workers, cold=cold) as gateway,
    ):
        yield gateway


def deps(gateway: GatewayProcess, key: str = KEY) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("GET", "/healthz/deps", headers={"authorization": f"Bearer {key}"} if key else {})
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def housekeeper(state: Path) -> int:
    """Process id of the housekeeper at work; 0 for none."""
    told = read_state(state / "hx-gateway")
    return told["pid"] if told is not None and psutil.pid_exists(told["pid"]) else 0


def gone(*pids: int) -> bool:
    """Whether none of the processes runs; one that nobody waits for does not."""

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(runs, pids))


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_it_comes_back_and_with_its_gateway_it_goes(tmp_path: Path, workers: int) -> None:
    with running(tmp_path, workers=workers) as gateway:
        wait_until(lambda: housekeeper(tmp_path) > 0, 30)
        first = housekeeper(tmp_path)
        os.kill(first, signal.SIGKILL)
        assert chat(gateway.port, "meanwhile", "tiny").content == "meanwhile"
        wait_until(lambda: housekeeper(tmp_path) not in (0, first), 30)
        second = housekeeper(tmp_path)
        assert "the housekeeper ended with status -9" in gateway.log
        guard = psutil.Process(second).ppid()
        os.kill(guard, signal.SIGTERM)  # sent to the whole group by who stops a service: not yet
        os.kill(second, signal.SIGINT)
        children = [child.pid for child in psutil.Process(gateway.pid).children()]
        os.kill(gateway.pid, signal.SIGKILL)
        wait_until(lambda: gone(guard, second), 30)
        wait_until(lambda: gone(*children), 30)
        assert len(children) == (workers if workers > 1 else 0)
        assert gateway.process is not None and gateway.process.wait(10) == -signal.SIGKILL


def test_a_killed_guard_is_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        seen: list[int] = []
        for _ in range(2):
            wait_until(lambda: housekeeper(tmp_path) not in (0, *seen), 30)
            keeper = housekeeper(tmp_path)
            guard = psutil.Process(keeper).ppid()
            seen.append(keeper)
            os.kill(guard, signal.SIGKILL)
            wait_until(lambda: housekeeper(tmp_path) not in (0, *seen), 30)
            assert psutil.Process(housekeeper(tmp_path)).ppid() == keeper, "the old housekeeper guards the new one"
        seen.append(housekeeper(tmp_path))
        os.kill(seen[-1], signal.SIGKILL)
        wait_until(lambda: housekeeper(tmp_path) not in (0, *seen), 30)
        assert chat(gateway.port, "as ever", "tiny").content == "as ever"
        ended = [housekeeper(tmp_path), psutil.Process(housekeeper(tmp_path)).ppid()]
        assert gateway.stop() == 0
        assert gone(*ended, *seen) and "Traceback" not in gateway.log, gateway.log


def test_it_is_gone_before_its_gateway_is(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        wait_until(lambda: housekeeper(tmp_path) > 0, 30)
        keeper = housekeeper(tmp_path)
        guard = psutil.Process(keeper).ppid()
        assert gateway.stop() == 0
        assert gone(keeper, guard)
        assert "Traceback" not in gateway.log, gateway.log


def test_it_is_ended_when_it_does_not_hear(tmp_path: Path) -> None:
    with running(tmp_path) as gateway:
        wait_until(lambda: housekeeper(tmp_path) > 0, 30)
        keeper = housekeeper(tmp_path)
        os.kill(keeper, signal.SIGSTOP)
        assert gateway.stop() == 0
        assert gone(keeper)


def test_another_takes_over_a_shared_state_directory(tmp_path: Path) -> None:
    with running(tmp_path, cold=True) as second, running(tmp_path, cold=True) as first:
        wait_until(lambda: housekeeper(tmp_path) > 0, 30)
        keeper = housekeeper(tmp_path)
        first_is = f"--port {first.port}" in " ".join(psutil.Process(keeper).cmdline())
        (first if first_is else second).stop()
        wait_until(lambda: housekeeper(tmp_path) not in (0, keeper), 30)
        left = second if first_is else first
        assert f"--port {left.port}" in " ".join(psutil.Process(housekeeper(tmp_path)).cmdline())


def test_postgres_that_comes_late_goes_and_comes_again(tmp_path: Path) -> None:
    server = Postgres()
    try:
        with running(tmp_path, server.url()) as gateway:
            assert chat(gateway.port, "without", "tiny").content == "without"
            wait_until(lambda: str(server.port) in deps(gateway)["details"]["postgres"], 30)
            assert deps(gateway)["postgres"] is False
            assert str(server.port) not in deps(gateway, key="")["details"]["postgres"]
            server.start()
            wait_until(lambda: deps(gateway)["postgres"] is True, 30)
            assert "schema is now" in gateway.log
            server.kill()
            wait_until(lambda: deps(gateway)["postgres"] is False, 30)
            assert chat(gateway.port, "again without", "tiny").content == "again without"
            server.start()
            wait_until(lambda: deps(gateway)["postgres"] is True, 30)
            assert "Traceback" not in gateway.log, gateway.log
            assert gateway.log.count("the database cannot be used") == 2, gateway.log
    finally:
        server.close()


def test_two_gateways_that_start_on_an_empty_postgres(tmp_path: Path, empty_postgres_url: str) -> None:
    with running(tmp_path / "a", empty_postgres_url) as one, running(tmp_path / "b", empty_postgres_url) as two:
        for gateway in (one, two):
            wait_until(lambda gateway=gateway: deps(gateway)["postgres"] is True, 30)
        assert (one.log + two.log).count("the database's schema is now") == 1
        assert "cannot be used" not in one.log + two.log


def test_a_state_directory_that_cannot_be_made(tmp_path: Path, empty_postgres_url: str) -> None:
    (tmp_path / "hx-gateway").write_text("a file where the folder should be")
    with running(tmp_path, empty_postgres_url) as gateway:
        assert chat(gateway.port, "all the same", "tiny").content == "all the same"
        assert "state cannot be kept in" in gateway.log
        assert "the state directory cannot be written" in deps(gateway)["details"]["postgres"]
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log, gateway.log


def test_a_sqlite_file_that_cannot_be_made(tmp_path: Path) -> None:
    with running(tmp_path, f"sqlite:///{tmp_path}/nowhere/own.db") as gateway:
        wait_until(lambda: housekeeper(tmp_path) > 0, 30)
        assert chat(gateway.port, "all the same", "tiny").content == "all the same"
        wait_until(lambda: "the SQLite file cannot be opened: No such file" in deps(gateway)["details"]["postgres"], 30)
        answer = deps(gateway, key="")
        assert answer["postgres"] is None and "nowhere" not in json.dumps(answer)


def test_a_port_that_is_taken_leaves_no_housekeeper(tmp_path: Path) -> None:
    with running(tmp_path / "a") as gateway:
        command = [sys.executable, "-m", "hx_gateway", "serve", str(gateway.path), "--host", "127.0.0.1", "--port", str(gateway.port)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "b")}
        )
        # Its output has come to its end: nobody holds it open.
        assert done.returncode == 1 and "is taken by another program" in done.stderr
        assert not (tmp_path / "b").exists() or housekeeper(tmp_path / "b") == 0
