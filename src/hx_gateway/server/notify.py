"""What a service manager and the gateway tell each other: readiness, the watchdog, and listening sockets that outlive a process."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence

_FIRST_FD = 3  # where passed descriptors begin, by the protocol
_NAME = "hx-gateway"  # of sockets that the service manager keeps for us
_log = logging.getLogger(__name__)


def notify(state: str, descriptors: Sequence[int] = ()) -> bool:
    """Tell the service manager something; True when it was sent.

    Args:
        state: Lines such as ``READY=1``.
        descriptors: File descriptors that go with it.
    """
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return False
    address = "\0" + place[1:] if place.startswith("@") else place  # an abstract one is written with an @
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as messenger:
            messenger.connect(address)
            if descriptors:
                socket.send_fds(messenger, [state.encode()], list(descriptors))
            else:
                messenger.send(state.encode())
    except OSError as error:
        _log.warning("the service manager cannot be told %s: %s", state.partition("\n")[0], error)
        return False
    return True


def ready(listeners: Sequence[socket.socket], status: str) -> None:
    """Say that requests are taken, as the main process of the service, and have the sockets kept for the next one.

    With the sockets kept, whoever connects while the gateway is being started again waits instead of being refused.
    """
    if notify(f"MAINPID={os.getpid()}\nREADY=1\nSTATUS={status}") and listeners:
        notify(f"FDSTORE=1\nFDNAME={_NAME}", [listener.fileno() for listener in listeners])


def reloading() -> None:
    """Say that the configuration is read again; `reloaded` must follow."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def reloaded(status: str = "") -> None:
    """Say that reading it again has ended, well or not."""
    notify("READY=1" + (f"\nSTATUS={status}" if status else ""))


def watchdog_s() -> float:
    """Seconds within which the service manager wants to hear from this process; 0.0 for never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with contextlib.suppress(ValueError):
        return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    return 0.0


class Watchdog:
    """Tells the service manager that this process lives, as often as it wants to hear it; to be called more often than that."""

    def __init__(self) -> None:
        self._every_s = watchdog_s() / 3
        self._next_s = 0.0

    def __call__(self, now_s: float) -> None:
        if self._every_s and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            notify("WATCHDOG=1")


def inherited(port: int) -> list[socket.socket]:
    """Listening sockets that were passed to this process: by socket activation, by a predecessor, or kept from an earlier start.

    Args:
        port: The configured TCP port; 0 for any. Sockets on another one are closed and no longer kept.
    """
    environ = os.environ
    given, pid = environ.pop("LISTEN_FDS", "0"), environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not given.isdigit():
        return []
    found = []
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(given)):
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        if listener.family in (socket.AF_INET, socket.AF_INET6) and (not port or listener.getsockname()[1] == port):
            found.append(listener)
            continue
        _log.warning("a passed socket is not on the configured port %d and is closed", port)
        listener.close()
    if len(found) < int(given):
        notify(f"FDSTOREREMOVE=1\nFDNAME={_NAME}")  # all of them: those that are used are kept anew when we are ready
    return found
