"""One trained scorer in one file: a line of JSON that people can read, then its columns, under one checksum."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 2  # 2: pairs of words are hashed otherwise
_MAGIC = "hx-gateway-router"
_MOST_BYTES = 256 * 1024 * 1024  # of a file that is read at all


class ArtifactError(Exception):
    """A file is no artifact, a damaged one, or one of a version that this gateway does not read; the message says which."""


def write(path: Path, facts: Mapping[str, Any], columns: Sequence[bytes]) -> str:
    """Write an artifact, whole or not at all.

    Args:
        path: Where to; what was there is replaced.
        facts: What is written as JSON.
        columns: One byte for each hash, a column each.

    Returns:
        Its checksum, in hex.
    """
    packed = zlib.compress(b"".join(columns), 6)
    checksum = _checksum(facts, packed)
    head = json.dumps({"magic": _MAGIC, "format": FORMAT, "sha256": checksum, "columns": len(columns), "facts": facts}, ensure_ascii=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(head.encode() + b"\n" + packed)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return checksum


def read(path: Path) -> tuple[dict[str, Any], list[bytes], str]:
    """An artifact's facts, columns and checksum.

    Raises:
        ArtifactError: It cannot be read, is damaged or is no artifact.
    """
    try:
        with path.open("rb") as file:
            whole = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from None
    line, _, packed = whole.partition(b"\n")
    try:
        head = json.loads(line)
        if head["magic"] != _MAGIC:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ArtifactError(f"{path}: no router artifact; hx-gateway router train makes one") from None
    if head.get("format") != FORMAT:
        raise ArtifactError(f"{path}: format {head.get('format')}, this gateway reads {FORMAT}; train it again")
    try:
        facts, count = head["facts"], head["columns"]
        if len(whole) > _MOST_BYTES or head["sha256"] != _checksum(facts, packed):
            raise ValueError
        together = zlib.decompress(packed)
        size, rest = divmod(len(together), count)
        if rest:
            raise ValueError
    except (ValueError, TypeError, KeyError, ZeroDivisionError, zlib.error):
        raise ArtifactError(f"{path}: damaged, its checksum does not match; train it again or copy it again") from None
    return facts, [together[number * size : (number + 1) * size] for number in range(count)], head["sha256"]


def _checksum(facts: Mapping[str, Any], packed: bytes) -> str:
    plain = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode() + b"\n" + packed).hexdigest()
