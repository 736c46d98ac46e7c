"""What administrators did, written down at once and without the store, which the housekeeper brings it into."""

from __future__ import annotations

import logging
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from hx_gateway.core.files import replace
from hx_gateway.core.identifiers import new_id

FOLDER = "audit"
"""Its name in the state directory."""
_MOST = 10_000  # deeds that wait for the store
_log = logging.getLogger(__name__)


class Deed(msgspec.Struct):
    """One thing that was done, as a row of `audit`; ``detail`` is never a secret."""

    id: str
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]
    address: str


def note(
    folder: Path | None, actor: str, action: str, subject: str = "", address: str = "", result: str = "ok", once: str = "", **detail: Any
) -> None:
    """Write a deed down; never raises, and blocks no longer than a small file takes.

    Args:
        folder: The state directory; where there is none, the deed is in the log of the process alone.
        actor: Name of the key that was used, or what else did it.
        action: E.g. ``reload``, ``endpoint.drain``.
        subject: What it was done to.
        address: From where.
        result: ``ok``, or what became of it in a word.
        once: Of several processes that say the same with this word within a minute, one is heard.
        detail: What else there is to say; plain data.
    """
    now_s = time.time()
    id = new_id(now_s)
    if once:  # within a minute; the same id is kept once by the store
        same = blake2b(f"{int(now_s) // 60}\0{actor}\0{action}\0{subject}\0{result}\0{once}".encode(), digest_size=8).hexdigest()
        id = new_id(now_s // 60 * 60)[:10] + same.upper()
    deed = Deed(id, int(now_s * 1000), actor, action, subject, {"result": result, **detail}, address)
    _log.info("audit: %s %s by %s%s: %s", action, subject, actor, f" from {address}" if address else "", result)
    if folder is None:
        return
    try:
        place = folder / FOLDER
        place.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in place.iterdir()) >= _MOST:
            raise OSError(28, "as many deeds as may wait for the store do so")
        replace(place / f"{id}.json", msgspec.json.encode(deed))
    except OSError as error:
        _log.error("the audit log cannot be written to %s: %s", folder, error.strerror or error)


def at_shell() -> str:
    """The actor of what is done on the command line: ``cli:`` and the login."""
    import getpass
    import os

    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"


def waiting(folder: Path) -> list[Path]:
    """Deeds that are not in the store yet, oldest first."""
    return sorted((folder / FOLDER).glob("*.json"))
