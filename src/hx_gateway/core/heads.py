"""Heads of HTTP messages that differ in nothing but the digits of their content length."""

from __future__ import annotations

import re

NEVER = b"\0\0"
"""Where no head is remembered: no message starts like this; two bytes, so that no single byte found at an end matches."""
_length = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,10})(?=\r\n)")


def around_length(message: bytes) -> tuple[bytes, bytes] | None:
    """The head of a whole message before and after the digits of its content length; None unless its body is just as long."""
    end = message.find(b"\r\n\r\n") + 4
    found = _length.search(message, 0, end)
    if found is None or int(found.group(1)) != len(message) - end:
        return None
    first, last = found.span(1)
    return message[:first], message[last:end]
