"""A successor takes over the listening sockets while this process still serves: nobody is refused, and running answers finish."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

from hx_gateway.ops.service import NO_SUCCESSOR
from hx_gateway.server.notify import notify

_PIPE = "HX_HANDOVER_FD"
_FIRST_FD = 3
_HIGH_FD = 200  # out of the way of what is put in place
_SERVES = b"serves\n"
_LONGEST_S = 180.0  # a successor may have to load models first
_log = logging.getLogger(__name__)


class Handover:
    """Starts the next gateway beside this one when SIGUSR2 asks for it, with the same command line and its sockets.

    The successor is no child of this process, but of whoever inherits orphans, as a service manager wants it of a main process. What is
    installed under the path of the command by then is what starts: that is how a release follows another. When it fails, nothing changes.

    Args:
        listeners: The sockets it takes over; they stay open here.
    """

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._asked = False
        self._reading = -1
        self._said = b""
        self._give_up_s = 0.0
        signal.signal(signal.SIGUSR2, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def done(self) -> bool:
        """Whether a successor serves, so that this process may end. To be called every now and then; never waits."""
        if self._reading < 0:
            if self._asked:
                self._start()
            return False
        while select.select([self._reading], [], [], 0)[0]:
            said = os.read(self._reading, 64)
            self._said += said
            if self._said.endswith(_SERVES):
                os.close(self._reading)
                return True
            if not said:
                _log.error("the successor ended before it was ready, and this gateway goes on; the log says why")
                self._forget()
                return False
        if time.monotonic() >= self._give_up_s:
            _log.error("the successor was not ready after %.0f s and is ended, and this gateway goes on", _LONGEST_S)
            with contextlib.suppress(ValueError, OSError):
                os.kill(int(self._said), signal.SIGKILL)
            self._forget()
        return False

    def _forget(self) -> None:
        notify(f"STATUS={NO_SUCCESSOR}: the journal says why; this process goes on")
        os.close(self._reading)
        self._reading, self._said, self._asked = -1, b"", False

    def _start(self) -> None:
        _log.info("a successor is started")
        notify("STATUS=a successor is started")
        self._give_up_s = time.monotonic() + _LONGEST_S
        self._reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                if not os.fork():
                    _become(self._listeners, writing)
            finally:
                os._exit(1)
        os.close(writing)
        os.waitpid(pid, 0)


def _become(listeners: Sequence[socket.socket], writing: int) -> None:
    """Turn this process into the successor; does not return."""
    # First out of the way, then to where they belong: no descriptor overwrites another that is still needed.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, _HIGH_FD) for number in (*(one.fileno() for one in listeners), writing)]
    for place, number in enumerate(high, _FIRST_FD):
        os.dup2(number, place, inheritable=True)
        os.close(number)
    pid = str(os.getpid())
    os.write(_FIRST_FD + len(listeners), pid.encode() + b"\n")
    environ = {**os.environ, "LISTEN_FDS": str(len(listeners)), "LISTEN_PID": pid, _PIPE: str(_FIRST_FD + len(listeners))}
    if "WATCHDOG_PID" in environ:
        environ["WATCHDOG_PID"] = pid
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    command = sys.argv if os.access(sys.argv[0], os.X_OK) else [sys.executable, *sys.orig_argv[1:]]
    os.execve(command[0], command, environ)  # noqa: S606 # the command line we were started with


def arrived() -> None:
    """Tell the predecessor, where there is one, that requests are taken here."""
    pipe = os.environ.pop(_PIPE, "")
    if pipe:
        os.write(int(pipe), _SERVES)
        os.close(int(pipe))
