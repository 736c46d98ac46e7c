"""Feedback on answers, written down before it is confirmed and without the store, which the housekeeper brings it into."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

import msgspec

FOLDER = "feedback"
"""Its name in the state directory."""
MOST = 10_000
"""Most that wait for the store."""


class Feedback(msgspec.Struct):
    """How good an answer was.

    Args:
        id: Of the request.
        at_ms: When it was said, in milliseconds of Unix time.
        score: From 0, useless, to 1, good.
        key_name: Name of the key that says so; empty where no key is asked for.
        admin: Whether it may judge requests of others.
        comment: In words; empty for none.
    """

    id: str
    at_ms: int
    score: float
    key_name: str
    admin: bool
    comment: str = ""


class Full(OSError):
    """As much feedback waits for the store as may."""


def note(folder: Path, given: Feedback) -> Feedback:
    """Write feedback down so that it survives the machine; a second one of the same key on the same request changes nothing. Blocks.

    Returns:
        What is written down now: the first that came.

    Raises:
        Full: Too much waits for the store.
        OSError: It cannot be written.
    """
    place = folder / FOLDER
    place.mkdir(mode=0o700, exist_ok=True)
    who = blake2b(given.key_name.encode(), digest_size=6).hexdigest()  # what one key says does not stand in another's way
    path = place / f"{given.id}-{who}.json"
    if len(waiting(folder)) >= MOST and not path.exists():
        raise Full("too much feedback waits for the store")
    unready = place / f".{given.id}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        descriptor = os.open(unready, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(given))
            file.flush()
            os.fsync(file.fileno())
        os.link(unready, path)  # unlike a rename, this never replaces what is there
    except FileExistsError:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Feedback)
        except FileNotFoundError:
            return note(folder, given)  # it reached the store this moment, which will tell
    finally:
        unready.unlink(missing_ok=True)
    directory = os.open(place, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return given


def waiting(folder: Path) -> list[Path]:
    """Feedback that is not in the store yet."""
    return sorted((folder / FOLDER).glob("*.json"))
