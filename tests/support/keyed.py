"""Gateways with keys in a store: made by the command line and by the API, tried in every worker by itself."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{tiny: {{endpoint: one, upstream_model: "tiny:1b"}}, other: {{endpoint: one, upstream_model: "tiny:1b"}}}}
load_balancer: {{health_check_interval: 3600}}
storage: {{state_directory: {state}}}
"""


class Keyed:
    """One gateway with a state directory of its own.

    Args:
        url: Of the model server.
        state: The state directory.
        database: Address of its store; empty for the file in the state directory.
        workers: How many.
        key: The master key; empty for none.
    """

    def __init__(self, url: str, state: Path, database: str = "", workers: int = 1, key: str = KEY) -> None:
        self.state = state
        self.workers = workers
        self._environ = {"DATABASE_URL": database} if database else {}
        self.process = GatewayProcess(CONFIG.format(url=url, state=state), self._environ, workers, key)

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.process.log

    def command(self, *words: str, fails: bool = False) -> Any:
        """``hx-gateway keys …`` on its configuration; returns what ``--json`` printed, or standard error where it is to fail."""
        done = subprocess.run(
            [sys.executable, "-m", "hx_gateway", "keys", *words, "--config", str(self.process.path), "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **self._environ},
        )
        assert (done.returncode != 0) == fails and "Traceback" not in done.stderr, done.stderr + done.stdout
        return done.stderr if fails else json.loads(done.stdout)

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any]:
        """Status and JSON of an answer, on a connection of its own."""
        return asked(http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=30), method, path, body, key, close=True)

    def chat(self, key: str, model: str = "tiny") -> tuple[int, str]:
        """Status and code (``ok`` for none) of a chat."""
        return chatted(http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=30), key, model, close=True)

    @contextmanager
    def each_worker(self) -> Iterator[list[http.client.HTTPConnection]]:
        """One open connection to each worker."""
        pids = {child.pid for child in psutil.Process(self.process.pid).children()} if self.workers > 1 else {self.process.pid}
        found: dict[int, http.client.HTTPConnection] = {}
        with ExitStack() as opened:
            for _ in range(500):
                connection = http.client.HTTPConnection("127.0.0.1", self.process.port, timeout=30)
                connection.connect()
                opened.callback(connection.close)
                ours = connection.sock.getsockname()[1]
                connection.request("GET", "/healthz")  # it is accepted
                connection.getresponse().read()
                for pid in pids - found.keys():
                    if any(one.raddr and one.raddr.port == ours for one in psutil.Process(pid).net_connections("tcp")):
                        found[pid] = connection
                if len(found) == self.workers:
                    break
            assert len(found) == self.workers
            yield list(found.values())


def asked(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, key: str = KEY, close: bool = False
) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    try:
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        if close:
            connection.close()


def chatted(connection: http.client.HTTPConnection, key: str, model: str = "tiny", close: bool = False) -> tuple[int, str]:
    """Status and code (``ok`` for none) of a chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "ping"}]}
    status, answer = asked(connection, "POST", "/v1/chat/completions", body, key, close)
    return status, answer["error"]["code"] if "error" in answer else "ok"


def delay_s(condition: Callable[[], bool], within_s: float = 30.0) -> float:
    """Seconds until the condition holds; fails the test when it never does."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < within_s, "what was waited for did not come"
        time.sleep(0.01)
    return time.monotonic() - began_s


@contextmanager
def keyed(state: Path, database: str = "", workers: int = 1, key: str = KEY) -> Iterator[Keyed]:
    """A gateway in front of a scripted model server."""
    with scripted("openai", models=("tiny:1b",)) as backend:
        gateway = Keyed(backend.url, state, database, workers, key)
        with gateway.process:
            yield gateway
            assert "Traceback" not in gateway.log, gateway.log
