"""Starts gateways out of a process that has imported what they need: each then costs a fork instead of a second of imports.

What runs is the command line's own `main` with the same arguments, environment, folder and log. ``HX_COLD=1`` starts each with
an interpreter of its own instead, as users do.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

COLD = bool(os.environ.get("HX_COLD"))
STARTS = ("-m", "hx_gateway", "serve")
# What is loaded in a gateway that serves with SQLite, the default.
_LOADED = (
    "hx_gateway.cli.serve",
    "hx_gateway.control.app",
    "hx_gateway.server.app",
    "hx_gateway.stores.sql.engine",
    "aiosqlite",
    "hiredis",
)
_NOT_WARM = ("PYTHON", "LD_", "MALLOC_")  # such variables are read when an interpreter starts


class Warm:
    """A process out of which others are forked, started when it is first needed; it ends with the one that asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._starting = threading.Lock()

    def can(self, command: Sequence[str], environment: dict[str, str]) -> bool:
        """Whether such a command is a gateway that may be forked."""
        ours = {name: value for name, value in environment.items() if name.startswith(_NOT_WARM)}
        same = ours == {name: value for name, value in os.environ.items() if name.startswith(_NOT_WARM)}
        return same and command[0] == sys.executable and tuple(command[1:4]) == STARTS and not COLD

    def start(self, command: Sequence[str], environment: dict[str, str], folder: str, log: Path) -> Forked:
        """Start a gateway."""
        with self._starting:
            if self._folder is None:
                self._begin()
            assert self._folder is not None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(f"{self._folder.name}/socket")
        words = {"command": list(command), "environment": environment, "folder": folder, "log": str(log)}
        connection.sendall(json.dumps(words).encode() + b"\n")
        return Forked(connection)

    def _begin(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hx-warm-")
        # Its name says what its children are, as theirs is the same.
        command = [sys.executable, __file__, f"{self._folder.name}/socket", "serve"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"warm\n"
        atexit.register(self.close)

    def close(self) -> None:
        """End it; what was forked out of it lives on."""
        if self._process is not None and self._folder is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._folder.cleanup()


@cache
def warm() -> Warm:
    """The one of this process."""
    return Warm()


class Forked:
    """What `subprocess.Popen` is for a process of one's own, as far as tests use it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.returncode: int | None = None
        self.pid = int(self._line())

    def _line(self) -> bytes:
        found = b""
        while not found.endswith(b"\n"):
            piece = self._connection.recv(1)
            if not piece:
                raise ConnectionError("the process that gateways are forked from has ended")
            found += piece
        return found

    def poll(self) -> int | None:
        """Its exit status, once it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("hx-gateway serve", timeout or 0.0)
            self.returncode = int(self._line())
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


def _fork_on_demand(address: str) -> dict[str, object]:
    """Fork for every request; returns in each child alone, with what it was asked to be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    there: dict[int, socket.socket] = {}
    print("warm", flush=True)
    while True:
        found, _, _ = select.select([listener, woken, 0], [], [])
        if 0 in found:
            os._exit(0)
        if woken in found:
            os.read(woken, 4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if not pid:
                    break
                with contextlib.suppress(OSError):
                    there[pid].sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                there.pop(pid).close()
        if listener in found:
            connection = listener.accept()[0]
            words = json.loads(connection.makefile("rb").readline())
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in [listener.detach(), connection.detach(), woken, wake, *(one.detach() for one in there.values())]:
                    os.close(number)
                return words  # type: ignore[no-any-return]
            there[pid] = connection
            connection.sendall(b"%d\n" % pid)


def _become(words: dict[str, object]) -> None:
    """Be what was asked for."""
    log = os.open(str(words["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for given, number in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(given, number)
    os.close(log)
    os.close(nothing)
    os.chdir(str(words["folder"]))
    os.environ.clear()
    os.environ.update(words["environment"])  # type: ignore[arg-type]
    time.tzset()
    command = words["command"]
    assert isinstance(command, list)
    import hx_gateway.__main__ as program
    from hx_gateway.cli.main import main

    sys.path[0] = str(words["folder"])
    sys.orig_argv, sys.argv = command, [str(program.__file__), *command[3:]]
    main()


if __name__ == "__main__":
    for module in _LOADED:
        importlib.import_module(module)
    _become(_fork_on_demand(sys.argv[1]))
