"""The service as systemd runs it: start, stop and restart it, wait, and confirm that it is so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from hx_gateway.ops.host import SERVICE, Host, Refused

CONFIRM_S = 5.0
"""How long what was asked for must hold before it is believed."""
_HANDOVER_S = 200.0
_POLL_S = 0.1
NO_SUCCESSOR = "no successor"
"""How the service's status begins when it could not be handed over."""


def start(host: Host, confirm_s: float = CONFIRM_S, try_on: bool = True) -> None:
    """Start the service and see that it stays; unless ``try_on``, systemd is not left trying when it does not.

    Raises:
        Refused: It does not run; the message has the end of the journal.
    """
    if not host.unit.exists():
        raise Refused("the service is not installed: hx-gateway deploy does that")
    began_s = time.time()
    host.run("systemctl", "reset-failed", SERVICE)
    try:
        host.systemctl("start", SERVICE)
        _confirm(host, confirm_s)
    except Refused as error:
        told = _with_journal(host, str(error), began_s)
        if not try_on:
            host.run("systemctl", "stop", SERVICE)
        raise told from None


def stop(host: Host, confirm_s: float = CONFIRM_S) -> None:
    """Stop the service: running answers finish within the drain timeout.

    Raises:
        Refused: It still runs.
    """
    host.systemctl("stop", SERVICE)
    _hold(confirm_s, lambda: not host.active(), "it was stopped, and runs again: something else starts it")


def restart(host: Host, full: bool = False, confirm_s: float = CONFIRM_S) -> str:
    """Start the service anew without refusing anybody; returns how.

    The new process takes over the sockets while the old one finishes. It has the old one's environment and unit: where those are to change,
    ``full`` stops it first, and who connects meanwhile waits.

    Raises:
        Refused: It did not work; unless ``full``, the old process goes on.
    """
    before, began_s = host.main_pid(), time.time()
    if not before:
        start(host, confirm_s)
        return "started"
    if full:
        try:
            host.systemctl("restart", SERVICE)
            _confirm(host, confirm_s)
        except Refused as error:
            raise _with_journal(host, str(error), began_s) from None
        return "stopped and started; who connected meanwhile waited"
    os.kill(before, signal.SIGUSR2)
    give_up_s = time.monotonic() + _HANDOVER_S
    asked = False
    while (now := host.main_pid()) == before:
        status = host.shown("StatusText")
        asked = asked or not status.startswith(NO_SUCCESSOR)
        if (asked and status.startswith(NO_SUCCESSOR)) or time.monotonic() >= give_up_s:
            raise _with_journal(host, "the next process could not take over, and the one before goes on", began_s)
        time.sleep(_POLL_S)
    if not now:
        raise _with_journal(host, "the service ended while it was handed over", began_s)
    _confirm(host, confirm_s)
    return "handed over to a new process; running answers finish in the old one"


def status(host: Host) -> dict[str, Any]:
    """What there is to know of the service, as plain data."""
    names = (
        "ActiveState",
        "SubState",
        "MainPID",
        "NRestarts",
        "ActiveEnterTimestamp",
        "MemoryCurrent",
        "StatusText",
        "UnitFileState",
        "Result",
    )
    said = host.run("systemctl", "show", "-p", ",".join(names), SERVICE).stdout
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    release, previous = host.release(), host.release(host.previous)
    memory = found.get("MemoryCurrent", "")
    return {
        "installed": host.unit.exists(),
        "active": found.get("ActiveState") in ("active", "reloading"),
        "state": f"{found.get('ActiveState', 'unknown')} ({found.get('SubState', '')})",
        "since": found.get("ActiveEnterTimestamp") or None,
        "pid": int(found.get("MainPID") or 0) or None,
        "restarts": int(found.get("NRestarts") or 0),
        "memory_mb": round(int(memory) / 1e6, 1) if memory.isdigit() and int(memory) < 1 << 60 else None,
        "says": found.get("StatusText") or None,
        "result": found.get("Result") or None,
        "at_boot": found.get("UnitFileState") == "enabled",
        "release": release.name if release is not None else None,
        "previous": previous.name if previous is not None else None,
        "litellm": host.litellm.exists(),
    }


def _confirm(host: Host, confirm_s: float) -> None:
    pid = host.main_pid()
    _hold(confirm_s, lambda: host.active() and host.main_pid() == pid != 0, "it was started, and did not stay")


def _hold(confirm_s: float, holds: Callable[[], bool], otherwise: str) -> None:
    """See that something holds from now on for a while."""
    until_s = time.monotonic() + confirm_s
    while True:
        if not holds():
            raise Refused(otherwise)
        if time.monotonic() >= until_s:
            return
        time.sleep(min(0.5, confirm_s or 0.5))


def _with_journal(host: Host, message: str, began_s: float) -> Refused:
    tail = host.journal(began_s)
    return Refused(f"{message}\n--- the end of the journal ---\n{tail}" if tail else message)
