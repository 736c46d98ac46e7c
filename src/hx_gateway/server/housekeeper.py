"""The process that keeps house beside the workers: forked before they are, started again when it dies, gone when they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import state_directory
from hx_gateway.housekeeping import LAST_S, Housekeeping

_LOOK_S = 0.5  # between looks at whether the guard lives
_SETTLE_S = 1.0  # the gateway is let start first
_STEADY_S = 10.0  # one that lived this long is replaced without delay
_LONGEST_PAUSE_S = 30.0
_GRACE_S = LAST_S + 1.5  # after which it is killed
_NICE = 5  # requests come first, yet on a core that is full of them a quarter suffices to ship what they write
_log = logging.getLogger(__name__)


class Housekeeper:
    """The housekeeping process and its guard, as seen by the process that serves.

    Neither is a child of it: they know from a pipe whether it lives, however it ends. Made before any thread, socket or event loop.
    A housekeeper whose guard was killed becomes the guard of another.

    Args:
        config: The configuration.
        listeners: Sockets that were open before it; they are none of its business.
    """

    def __init__(self, config: GatewayConfig, listeners: Sequence[socket.socket] = ()) -> None:
        alive, self._alive = os.pipe()
        self._over, over = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                if not os.fork():
                    os.close(self._alive)
                    os.close(self._over)
                    for listener in listeners:
                        listener.close()
                    _guard(config, alive)
            except Exception:  # blame: the gateway's own; a forked child must end here and not run its parent's code
                _log.exception("the housekeeper could not be started")
            finally:
                logging.shutdown()
                os._exit(0)
        os.waitpid(pid, 0)
        os.close(alive)
        os.close(over)

    def leave(self) -> None:
        """Forget it in a process that was forked later and may outlive the one that serves."""
        os.close(self._alive)
        os.close(self._over)

    def close(self) -> None:
        """Have it finish what it does, and wait for its end, at most some seconds."""
        os.close(self._alive)
        if not select.select([self._over], [], [], _GRACE_S + 1.0)[0]:
            _log.warning("the housekeeper did not end in time")
        os.close(self._over)


def _guard(config: GatewayConfig, alive: int) -> None:
    """Keep a housekeeper running until ``alive`` ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # such a signal may be meant for the whole group: what ends us is the end of the gateway
    _call("hx-guard")
    pause_s = 0.0
    while True:
        born_s, guard = time.monotonic(), os.getpid()
        pid = os.fork()
        if not pid:
            _keep_house(config, alive, guard)
        status = _ended(pid, alive)
        if status is None:
            return
        lived_s = time.monotonic() - born_s
        pause_s = 0.0 if lived_s >= _STEADY_S else min(max(pause_s * 2, 0.25), _LONGEST_PAUSE_S)
        if select.select([alive], [], [], pause_s)[0]:
            return
        _log.error("the housekeeper ended with status %d after %.1f s; another takes its place", os.waitstatus_to_exitcode(status), lived_s)


def _ended(pid: int, alive: int) -> int | None:
    """Wait for the end of the housekeeper: its status, or None when it ended along with the gateway."""
    while not select.select([alive], [], [], 0.25)[0]:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
    give_up_s = time.monotonic() + _GRACE_S
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() >= give_up_s:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    return None


def _keep_house(config: GatewayConfig, alive: int, guard: int) -> None:
    """Be the housekeeper, and where the guard ends the guard of another; does not return."""
    status = 0
    try:
        _call("hx-housekeeper")
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
        if asyncio.run(_work(config, alive, guard)):
            _log.error("the guard of the housekeeper ended; the housekeeper takes its place and starts another")
            _guard(config, alive)
    except Exception:  # blame: the gateway's own; the guard starts another
        _log.exception("housekeeping failed")
        status = 1
    finally:
        logging.shutdown()
        os._exit(status)


async def _work(config: GatewayConfig, alive: int, guard: int) -> bool:
    """Keep house until the gateway ends, or its guard, which is returned."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(alive, stop.set)  # nothing is ever written: it can be read when the gateway is gone
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), _SETTLE_S)
    keeping = asyncio.create_task(Housekeeping(config, state_directory(config.storage, os.environ)).run(stop))
    while not stop.is_set() and os.getppid() == guard:
        await asyncio.wait({keeping}, timeout=_LOOK_S)
        if keeping.done():
            break
    orphaned = not stop.is_set() and not keeping.done()
    # What came within the first second is done all the same: `run` ends with a last round.
    stop.set()
    await keeping
    return orphaned


def _call(name: str) -> None:
    """Name this process for those who list processes, where the system lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
