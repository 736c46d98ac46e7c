"""Scripted model servers as processes of their own, which can be killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import TracebackType


class ServerProcess:
    """``python -m hx_gateway.testing.backend``, as a ``with``.

    Args:
        options: Further words of its command line.
        port: TCP port; 0 for a free one.
    """

    def __init__(self, *options: str, port: int = 0) -> None:
        self._command = [sys.executable, "-m", "hx_gateway.testing.backend", "--port", str(port), *options]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> ServerProcess:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url, "the scripted server did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGKILL)
        assert self._process is not None and self._process.stdout is not None
        self._process.wait()
        self._process.stdout.close()

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.url.rpartition(":")[2])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        process = self._process
        assert process is not None
        if process.poll() is None:
            os.kill(process.pid, number)
        if number is signal.SIGKILL:
            process.wait()
