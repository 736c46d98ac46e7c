"""A real gateway in a process of its own, started by the command line from YAML text."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tests.support.warm import Forked, warm

KEY = "test-key-of-the-suite"
"""The master key in the configurations of tests."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody has now, and that neither a connection nor a test process beside this one is given meanwhile."""
    first = 12000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        try:
            with socket.create_server(("127.0.0.1", random.SystemRandom().randrange(first, 29000, beside))) as listener:
                return int(listener.getsockname()[1])
        except OSError:
            pass  # somebody's


class GatewayProcess:
    """``hx-gateway serve`` on 127.0.0.1, stopped by its process id.

    Args:
        config: YAML text without ``service`` host and port, which are set by the environment.
        environment: Further environment variables.
        workers: Processes that share the port.
        key: Value of ``MASTER_KEY``; empty for none.
        verify: PEM file of the authority of its certificate, where it speaks TLS.
        cold: Whether it needs an interpreter of its own, because of its memory, its command line or what it inherits.
    """

    def __init__(
        self,
        config: str,
        environment: dict[str, str] | None = None,
        workers: int = 1,
        key: str = KEY,
        verify: str = "",
        cold: bool = False,
    ) -> None:
        self.port = free_port()
        self.key = key
        self.url = f"{'https' if verify else 'http'}://127.0.0.1:{self.port}"
        self._tls = ssl.create_default_context(cafile=verify) if verify else None
        self._folder = tempfile.TemporaryDirectory(prefix="hx-test-")
        self.path = Path(self._folder.name) / "gateway.yaml"
        self.path.write_text(config)
        self.log_path = Path(self._folder.name) / "log"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("HX_") and name not in ("MASTER_KEY", "DATABASE_URL")
        }
        self._environment = {**kept, **({"MASTER_KEY": key} if key else {}), **(environment or {})}
        self._command = [sys.executable, "-m", "hx_gateway", "serve", str(self.path), "--host", "127.0.0.1", "--port", str(self.port)]
        if workers > 1:
            self._command += ["--workers", str(workers)]
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self._cold = cold
        self._workers = workers if workers > 1 and "log_level" not in config else 0

    @property
    def pid(self) -> int:
        """Process id of the gateway (of the parent, with several workers)."""
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, within_s: float = 60.0) -> GatewayProcess:
        """Start it and wait until ``/readyz`` says so, and all workers serve."""
        if not self._cold and warm().can(self._command, self._environment):
            self.process = warm().start(self._command, self._environment, self._folder.name, self.log_path)
        else:
            with self.log_path.open("wb") as log:
                self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log, cwd=self._folder.name)
        give_up_s = time.monotonic() + within_s
        while time.monotonic() < give_up_s:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway ended with status {self.process.returncode}:\n{self.log}")
            connection = (
                http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=self._tls)
                if self._tls
                else http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
            )
            try:
                connection.request("GET", "/readyz")
                # Until the last worker serves, what is asked is asked of the others.
                if connection.getresponse().status == 200 and (self._workers == 0 or f"all {self._workers} workers serve" in self.log):
                    return self
            except (OSError, http.client.HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.03)
        raise AssertionError(f"the gateway was not ready within {within_s} s:\n{self.log}")

    def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Signal it and wait for its end; returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        else:
            print(f"the gateway had ended with status {self.process.returncode}:\n{self.log}")  # shown where the test fails
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not end within {within_s} s:\n{self.log}") from None

    def __enter__(self) -> GatewayProcess:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self._folder.cleanup()
