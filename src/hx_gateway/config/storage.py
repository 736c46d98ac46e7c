"""The sections of the configuration that describe what is kept: the state directory and the stores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hx_gateway.config.secrets import Secret
from hx_gateway.config.sections import LATER, Settings


class StorageSettings(Settings):
    """What is kept, and the stores that are used when they are there."""

    state_directory: str | None = Field(
        default=None,
        min_length=1,
        description="Folder for everything the gateway keeps itself; none means $STATE_DIRECTORY, else hx-gateway below $XDG_STATE_HOME or ~/.local/state.",
    )
    database_url: Annotated[Secret | None, LATER] = Field(
        default=None, description="Postgres or SQLite URL for keys and usage; none means a SQLite file in the state directory."
    )
    redis_url: Annotated[Secret | None, LATER] = Field(default=None, description="Redis URL for limits and cache shared between machines.")
    qdrant_url: Annotated[Secret | None, LATER] = Field(default=None, description="Qdrant URL for vectors.")
    qdrant_collection: Annotated[str | None, LATER] = Field(default=None, description="Qdrant collection for vectors.")


def state_directory(storage: StorageSettings, environ: Mapping[str, str]) -> Path:
    """Where the gateway keeps its state; the folder need not exist.

    Args:
        storage: The section.
        environ: The environment: ``STATE_DIRECTORY`` as a service manager sets it, ``XDG_STATE_HOME``, ``HOME``.
    """
    if storage.state_directory:
        return Path(storage.state_directory).expanduser()
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]  # a service manager may list several
    if given:
        return Path(given)
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path(environ.get("HOME") or "~").expanduser() / ".local" / "state") / "hx-gateway"
