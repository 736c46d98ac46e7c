"""The sections of the configuration that describe what is kept: the state directory and the stores."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from hx_gateway.config.secrets import Secret
from hx_gateway.config.sections import Settings

_POSTGRES = re.compile(r"postgres(?:ql)?(?:\+\w+)?://")

_MALFORMED = "is no address: its host or port is malformed; in a password write / as %2F, @ as %40, : as %3A, # as %23"


def database_fault(url: str) -> str:
    """Why ``url`` cannot be the address of the SQL store; empty if it can. Never repeats the address."""
    if url.startswith("sqlite:"):
        path = url.removeprefix("sqlite:///")
        if path == url or not path or path == ":memory:" or "?" in path:
            return "should be sqlite:/// followed by the path of a file, e.g. sqlite:////var/lib/hx-gateway/hx-gateway.db"
        return ""
    if not _POSTGRES.match(url):
        return "should start with postgresql:// or sqlite:///"
    return "" if "," in url or _port(url) else _MALFORMED  # several hosts are the driver's own way of writing


def _port(url: str) -> bool:
    """Whether the port can be one, if there is any."""
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _database(secret: Secret) -> Secret:
    if fault := database_fault(secret.reveal()):
        raise ValueError(fault)
    return secret


def redis_fault(url: str) -> str:
    """Why ``url`` cannot be the address of Redis; empty if it can. Never repeats the address."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        return "should start with redis://, rediss:// or unix://"
    return "" if _port(url) else _MALFORMED


def _redis(url: Secret | None) -> Secret | None:
    if url is not None and (fault := redis_fault(url.reveal())):
        raise ValueError(fault)
    return url


def _qdrant(url: Secret | None) -> Secret | None:
    if url is not None and not url.reveal().startswith(("http://", "https://")):
        raise ValueError("should start with http:// or https://")
    return url


class StorageSettings(Settings):
    """What is kept, and the stores that are used when they are there."""

    state_directory: str | None = Field(
        default=None,
        min_length=1,
        description="Folder for everything the gateway keeps itself; none means $STATE_DIRECTORY, else hx-gateway below $XDG_STATE_HOME or ~/.local/state.",
    )
    database_url: Annotated[Secret, AfterValidator(_database)] | None = Field(
        default=None,
        description="Postgres or SQLite URL for keys and usage: `postgresql://…` or `sqlite:///path`; none means the file `hx-gateway.db` in the state directory.",
    )
    redis_url: Annotated[Secret | None, AfterValidator(_redis)] = Field(
        default=None,
        description="Redis URL (redis://, rediss:// or unix://) for limits and cached answers shared between gateways.",
    )
    redis_budget_seconds: Annotated[float, Field(ge=0.001, le=1.0)] = Field(
        default=0.02,
        description="Seconds a request waits for Redis at most; the first answer that is late makes the gateway go on without it.",
    )
    qdrant_url: Annotated[Secret | None, AfterValidator(_qdrant)] = Field(
        default=None, description="Qdrant URL (http:// or https://) for vectors; none keeps them in the state directory (rag.store)."
    )
    qdrant_api_key: Secret | None = Field(default=None, description="API key of that Qdrant.")
    qdrant_collection: str | None = Field(
        default=None, min_length=1, description="Collection of documents where a request names none, in any store; none means `documents`."
    )


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


def database_url(storage: StorageSettings, folder: Path) -> str:
    """Address of the SQL store, as its driver takes it.

    Args:
        storage: The section.
        folder: The state directory.
    """
    if storage.database_url is None:
        return f"sqlite:///{folder / 'hx-gateway.db'}"
    return plain_url(storage.database_url.reveal())


def plain_url(url: str) -> str:
    """An address that `database_fault` lets pass, as the driver takes it."""
    return _POSTGRES.sub("postgresql://", url, count=1)
