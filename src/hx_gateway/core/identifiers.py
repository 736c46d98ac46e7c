"""Request ids: ULIDs made in well under a microsecond, unique over workers and restarts, in order of time."""

from __future__ import annotations

import os
from collections.abc import Callable
from math import floor

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32
_COUNTER_BITS = 30


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> shift) & 31] for shift in range(5 * (length - 1), -1, -5))


def new_id(wall_s: float) -> str:
    """One ULID, for what is made seldom: 48 bits of milliseconds since the Unix epoch, 80 random bits; 26 characters."""
    return _base32(int(wall_s * 1000), 10) + _base32(int.from_bytes(os.urandom(10), "big"), 16)


def time_of(id: str) -> int:
    """The Unix milliseconds in a ULID; -1 where ``id`` is none."""
    if len(id) != 26 or not set(id) <= set(_ALPHABET):
        return -1
    value = 0
    for character in id[:10]:
        value = value << 5 | _ALPHABET.index(character)
    return value if value < 1 << 48 else -1


class RequestIds:
    """Makes ULIDs: 48 bits of milliseconds, 50 random bits per process, 30 bits of counter.

    The counter starts at random and the process part is drawn anew on wrap-around, so two processes,
    or two lives of one process, do not collide.

    Args:
        wall: Returns seconds since the Unix epoch.
    """

    __slots__ = ("_counter", "_digits", "_millisecond", "_process", "_time_text", "_wall")

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._digits = [_base32(value, 3) for value in range(1 << 15)]
        self._millisecond = -1
        self._time_text = ""
        self._draw()

    def _draw(self) -> None:
        self._process = _base32(int.from_bytes(os.urandom(7), "big") & ((1 << 50) - 1), 10)
        self._counter = int.from_bytes(os.urandom(3), "big")

    def __call__(self) -> str:
        """The next id, 26 characters."""
        wall = self._wall
        millisecond = floor(wall() * 1000.0)
        digits = self._digits
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._time_text = "".join((
                digits[millisecond >> 35], digits[millisecond >> 20 & 32767], digits[millisecond >> 5 & 32767],
                _ALPHABET[millisecond & 31], self._process,
            ))  # fmt: skip
        self._counter = counter = self._counter + 1
        if counter >> _COUNTER_BITS:
            self._draw()
            self._millisecond = -1
            return self()
        return self._time_text + digits[counter >> 15] + digits[counter & 32767]
