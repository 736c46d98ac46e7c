"""What stands behind a worker and may fail without it: the state directory and what is kept there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.storage import state_directory

_log = logging.getLogger(__name__)


class Backing:
    """The parts of one worker that keep something.

    Each may be missing or fail; requests are served all the same.

    Args:
        config: The configuration.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.folder: Path | None = None  # the state directory; None until `start`, and where it cannot be written

    async def start(self) -> None:
        """Open what is kept in the state directory."""
        self.folder = _folder(state_directory(self.config.storage, os.environ))

    async def stop(self) -> None:
        """Close everything, with nothing lost."""
        self.folder = None


def _folder(path: Path) -> Path | None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".writable-{os.getpid()}"
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        _log.warning(
            "state cannot be kept in %s: %s; requests are served, but usage, keys made at run time and limits do not outlive this process "
            "(storage.state_directory names another folder)",
            path,
            error.strerror or error,
        )
        return None
    return path
