"""Reload while serving: when the file changes, on SIGHUP, or by the API; validated first, refused with its reasons."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hx_gateway.config.load import ConfigError, Loaded, stamp_of
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.plugins import UnknownPlugin
from hx_gateway.gateway import ReloadRefused
from hx_gateway.ledger.audit import note
from hx_gateway.server.notify import reloaded, reloading

if TYPE_CHECKING:
    from hx_gateway.gateway import Gateway
    from hx_gateway.server.hall import Hall

_LOOK_S = 0.5
_TRIES = 3
_FIXED = ("service", "cors", "monitoring", "storage", "ledger")
_FREE = (
    ("monitoring", "log_level"),
    ("monitoring", "access_log_per_second"),
    ("monitoring", "observers"),
    ("ledger", "bodies"),
    ("ledger", "end_user_keys"),
    ("ledger", "end_user_header"),
)
_log = logging.getLogger(__name__)


def _fixed(config: GatewayConfig, section: str) -> dict[str, object]:
    """What of a section takes effect at the next start only."""
    found: dict[str, object] = dict(getattr(config, section))
    return {name: value for name, value in found.items() if (section, name) not in _FREE}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reload ended.

    Args:
        ok: Whether the new configuration is in use.
        problems: Why not; with ``ok`` what was found worth a warning.
        restart: Sections that changed and take effect at the next start only.
        wall_s: When, in Unix time.
    """

    ok: bool
    problems: tuple[str, ...]
    restart: tuple[str, ...]
    wall_s: float


class Reloading:
    """Reloads the gateway of one worker.

    Args:
        gateway: The gateway.
        hall: What its doors share.
        again: Loads the configuration anew.
        loaded: The configuration in use; its file is watched.
    """

    def __init__(self, gateway: Gateway, hall: Hall, again: Callable[[], Loaded], loaded: Loaded) -> None:
        self.gateway = gateway
        self.hall = hall
        self.again = again
        self.path = loaded.path
        self.last: Outcome | None = None
        self._seen = loaded.stamp
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen for SIGHUP and watch the file."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._task = loop.create_task(self._watch(), name="configuration")

    def stop(self) -> None:
        """Watch no longer."""
        if self._task is not None:
            self._task.cancel()

    def everywhere(self) -> Outcome:
        """Reload here, and where that went well in all other workers too."""
        outcome = self.reload(False)
        if outcome.ok and self.gateway.workers > 1:
            os.kill(os.getppid(), signal.SIGHUP)
        return outcome

    def reload(self, signalled: bool = True) -> Outcome:
        """Load, check and take into use; a configuration that cannot be used leaves everything as it is."""
        self._seen = stamp_of(self.path)
        reloading()
        gateway = self.gateway
        before = gateway.config
        problems: tuple[str, ...]
        restart: tuple[str, ...] = ()
        try:
            loaded = self._loaded()
            problems = tuple(str(problem) for problem in loaded.blockers)
            if not problems:
                gateway.reload(loaded.config)
                self._widen(loaded.config)
                gateway.telemetry.adopt(before.monitoring, loaded.config.monitoring)
                restart = tuple(name for name in _FIXED if _fixed(before, name) != _fixed(loaded.config, name))
        except ConfigError as error:
            problems = tuple(str(problem) for problem in error.problems)
        except (UnknownPlugin, ReloadRefused) as error:
            problems = (str(error),)
        ok = not problems
        if ok:
            problems = tuple(str(warning) for warning in loaded.warnings)
        reloaded()
        if signalled:  # by a file that changed, or SIGHUP; all workers hear of it
            word = str(self._seen)
            note(gateway.backing.folder, "the file or a signal", "reload", "", "", "ok" if ok else "refused", word, problems=list(problems))
        self.last = outcome = Outcome(ok, problems, restart, gateway.clock.wall())
        if ok:
            later = f"; at the next start: {', '.join(restart)}" if restart else ""
            _log.info("the configuration was reloaded, serving %s%s", ", ".join(sorted(gateway.registry.targets)) or "no model", later)
        else:
            _log.error("the new configuration is refused and the old one stays: %s", "; ".join(problems))
        return outcome

    def _loaded(self) -> Loaded:
        """The configuration, read while nobody was writing it."""
        for _ in range(_TRIES):
            loaded = self.again()
            now = stamp_of(self.path)
            if loaded.stamp == now:
                break
        else:
            raise ReloadRefused("the file changes faster than it can be read; write it beside and move it into place")
        if now is not None and now[1] == 0:
            raise ReloadRefused("the file is empty: it is being written, or its disk is full")
        self._seen = now
        return loaded

    def _widen(self, config: GatewayConfig) -> None:
        http, hall = config.http, self.hall
        hall.max_head, hall.max_body = http.max_head_bytes, http.max_body_bytes
        hall.head_s, hall.body_s, hall.idle_s = http.head_timeout_seconds, http.body_timeout_seconds, http.keep_alive_seconds

    async def _watch(self) -> None:
        before = self._seen
        while self.path is not None:
            await asyncio.sleep(_LOOK_S)
            state = stamp_of(self.path)
            # A file that is gone is being replaced, or its disk is: the configuration in use is good either way.
            # One that changed since the last look is perhaps still being written.
            settled, before = state == before, state
            if state is not None and settled and state != self._seen:
                try:
                    self.reload()
                except Exception:  # blame: the gateway's own; the next change must be seen
                    _log.exception("reloading the configuration failed")
