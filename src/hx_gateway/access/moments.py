"""Reads spans and moments as people write them, and writes moments as they read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_LAST_MS = 253_402_300_799_000  # the end of the year 9999


def span_ms(text: str) -> int:
    """Milliseconds of a span such as ``90d``, ``12h``, ``30m``, ``45s`` or ``2w``; a bare number is seconds.

    Raises:
        ValueError: It is none.
    """
    found = _SPAN.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("should be a number with s, m, h, d or w behind it, e.g. 90d")
    return min(round(float(found[1]) * _SECONDS[found[2]] * 1000), _LAST_MS)


def moment_ms(text: str, now_ms: int) -> int:
    """Unix time in milliseconds of a span from now or a moment such as ``2030-01-31`` or ``2030-01-31T12:00:00Z`` (UTC without a zone).

    Raises:
        ValueError: It is neither.
    """
    try:
        return min(now_ms + span_ms(text), _LAST_MS)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError("should be a span such as 90d or 12h, or a moment such as 2030-01-31T12:00:00Z") from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def written(at_ms: float) -> str:
    """A moment in Unix milliseconds as text, in UTC to the second."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).isoformat().replace("+00:00", "Z")
