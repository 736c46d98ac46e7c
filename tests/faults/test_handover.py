"""A successor takes over while requests come: none is refused, running streams finish, and a successor that fails changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.faults.conftest import wait_until
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.server.notify import notify

CONFIG = 'models:\n  tiny: {{endpoint: "{address}", upstream_model: "tiny:1b"}}\n'


class ServiceManager:
    """The other end of NOTIFY_SOCKET: collects what it is told, and the sockets it is given to keep."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self.kept: list[int] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 4096, 16)
                self.kept += descriptors
                self.said.append(data.decode())

    @property
    def main_pids(self) -> list[int]:
        """Who said to be the main process, in order."""
        return [int(line[8:]) for said in list(self.said) for line in said.splitlines() if line.startswith("MAINPID=")]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    made = ServiceManager(tmp_path / "notify")
    yield made
    made.socket.close()
    for descriptor in made.kept:
        os.close(descriptor)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"  # nobody here waits for orphans


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 60)


class Load:
    """Requests one after another, each on a connection of its own or all on one, until told to stop."""

    def __init__(self, port: int, kept: bool) -> None:
        self.port, self.kept = port, kept
        self.good, self.over = 0, False
        self.failures: list[str] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
        while not self.over:
            try:
                connection.request(
                    "POST", "/v1/chat/completions", body, {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 200, answer.status
                self.good += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.failures.append(repr(error))
                connection.close()
            if not self.kept or answer.getheader("connection") == "close":
                connection.close()

    def stop(self) -> None:
        self.over = True
        self.thread.join()


def stream(port: int, tokens: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    words = " ".join(str(number) for number in range(tokens))
    body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": words}]})
    connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {KEY}", "content-type": "application/json"})
    return connection.getresponse()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_successor_under_load(workers: int, tmp_path: Path, manager: ServiceManager) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "STATE_DIRECTORY": str(tmp_path / "state")}
    with scripted(token_s=0.02) as backend:
        gateway = GatewayProcess(CONFIG.format(address=backend.url), environment, workers)
        with gateway:
            wait_until(lambda: manager.main_pids == [gateway.pid] and bool(manager.kept), 60)
            loads = [Load(gateway.port, kept) for kept in (True, True, False, False)]
            running = stream(gateway.port, 100)
            first = running.readline()
            before = sum(load.good for load in loads)
            os.kill(gateway.pid, signal.SIGUSR2)
            wait_until(lambda: len(manager.main_pids) == 2, 60)
            successor = manager.main_pids[1]
            try:
                assert gateway.process is not None and gateway.process.poll() is None, "the stream is still running"
                rest = running.read().decode()
                assert first.startswith(b"data:") and rest.count("data:") >= 100 and rest.rstrip().endswith("data: [DONE]")
                assert gateway.process.wait(60) == 0
                handed = sum(load.good for load in loads)
                wait_until(lambda: sum(load.good for load in loads) > handed + 20, 60)
            finally:
                for load in loads:
                    load.stop()
                end(successor)
            assert [load.failures for load in loads] == [[], [], [], []]
            assert handed > before
        assert "Traceback" not in gateway.log, gateway.log


def test_a_successor_that_fails_changes_nothing(tmp_path: Path, manager: ServiceManager) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "STATE_DIRECTORY": str(tmp_path / "state")}
    with scripted() as backend, GatewayProcess(CONFIG.format(address=backend.url), environment) as gateway:
        good = gateway.path.read_text()
        gateway.path.write_text("modls: {}\n")
        os.kill(gateway.pid, signal.SIGUSR2)
        wait_until(lambda: "the successor ended before it was ready" in gateway.log, 60)
        assert stream(gateway.port, 3).read().endswith(b"[DONE]\n\n")
        gateway.path.write_text(good)
        os.kill(gateway.pid, signal.SIGUSR2)
        wait_until(lambda: len(manager.main_pids) == 2, 60)
        assert gateway.process is not None and gateway.process.wait(60) == 0
        end(manager.main_pids[1])


def test_sockets_that_are_kept_wait_for_the_next_start(tmp_path: Path, manager: ServiceManager) -> None:
    """As after a crash: who connects meanwhile is answered by the next gateway that is given the sockets."""
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "STATE_DIRECTORY": str(tmp_path / "state")}
    with scripted() as backend:
        gateway = GatewayProcess(CONFIG.format(address=backend.url), environment).start()
        wait_until(lambda: bool(manager.kept), 60)
        gateway.stop(signal.SIGKILL)
        waiting = socket.create_connection(("127.0.0.1", gateway.port), 60)
        waiting.sendall(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        code = (
            "import os, sys\nos.dup2(int(sys.argv[1]), 3)\nos.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'hx_gateway', *sys.argv[2:]])"
        )
        words = gateway._command
        gateway._command = [words[0], "-c", code, str(manager.kept[0]), *words[3:]]
        os.set_inheritable(manager.kept[0], True)
        gateway.process = subprocess.Popen(gateway._command, env=gateway._environment, pass_fds=manager.kept[:1])
        try:
            answer = b""
            give_up_s = time.monotonic() + 60
            while time.monotonic() < give_up_s and (piece := waiting.recv(4096)):
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200"), answer
        finally:
            waiting.close()
            gateway.stop()


def test_a_worker_that_stands_still_is_replaced(tmp_path: Path, manager: ServiceManager) -> None:
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000", "STATE_DIRECTORY": str(tmp_path / "state")}
    with scripted() as backend, GatewayProcess(CONFIG.format(address=backend.url), environment, 2) as gateway:
        wait_until(lambda: manager.main_pids == [gateway.pid] and "WATCHDOG=1" in manager.said, 60)
        still = max(psutil.Process(gateway.pid).children(), key=lambda child: child.pid)
        still.suspend()
        wait_until(lambda: "does not answer for" in gateway.log and "another takes its place" in gateway.log, 60)
        wait_until(lambda: not still.is_running() or still.status() == psutil.STATUS_ZOMBIE, 60)
        wait_until(lambda: len(psutil.Process(gateway.pid).children()) == 2, 60)


def test_a_service_manager_behind_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"hx-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("READY=1")
        assert listener.recv(100) == b"READY=1"
    assert not notify("READY=1"), "nobody listens any more"
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify("READY=1")
