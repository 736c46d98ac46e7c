"""Heads that differ from one the strict parser took only in values that decide nothing about the message they stand in."""

from __future__ import annotations

from collections.abc import Sequence

from hx_gateway.core.headers import FRAMING, disposition

LONGEST = 2048  # bytes of a value that may differ
_TEXT = bytes(range(32, 127))
_STEADY = frozenset((b"proxy-connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings", b"content-encoding"))
# These and the framing ones say how a message is read or what becomes of its connection: their values are never free.


class Pattern:
    """Matches heads that equal one the parser took, but for the digits of the content length and the values of some headers.

    What matches has the same start line, the same header names in the same order and spelling, and the same values but for
    the ``free`` ones (numbers of headers, ascending), which are printable ASCII with no blank at an end. The parser would
    take such a head, and read just that in it.
    """

    __slots__ = ("first", "fixed", "free", "head", "length_at", "lines", "rest", "size", "values", "width")

    def __init__(self, lines: list[bytes], names: Sequence[bytes], length: int, free: Sequence[int]) -> None:
        self.lines = lines
        self.free = free
        self.values: list[bytes] = []
        holes = sorted((*free, length))
        self.length_at = holes.index(length)
        fixed, piece = [], lines[0]
        for number, name in enumerate(names):
            line = lines[number + 1]
            if number in holes:
                fixed.append(b"%b\r\n%b" % (piece, line[: len(name) + 2]))
                piece = b""
            else:
                piece += b"\r\n" + line
        self.first = fixed[0]
        self.rest = (*fixed[1:], piece + b"\r\n\r\n")
        self.fixed = len(self.first) + len(self.rest[0])  # bytes of a head without free values, its digits aside
        self.size, self.head = -1, b""  # of the last message: its bytes, and the head that this means
        self.width = 1  # digits of its content length

    def match(self, message: bytes) -> bytes | None:
        """The body; None unless the head matches and the body is all there, and nothing more. Leaves the free values in `values`."""
        if not self.free:
            size = len(message)
            if size != self.size:
                # How long a whole message is says what length its head must give.
                left, width = size - self.fixed, self.width
                digits = b"%d" % (left - width)
                if len(digits) != width:
                    width = len(digits)
                    digits = b"%d" % (left - width)
                    if len(digits) != width:
                        return None
                self.size, self.width, self.head = size, width, self.first + digits + self.rest[0]
            return message[len(self.head) :] if message.startswith(self.head) else None
        if not message.startswith(self.first):
            return None
        at = len(self.first)
        values = []
        for piece in self.rest:
            end = message.find(b"\r", at, at + LONGEST)
            if not message.startswith(piece, end):
                return None
            values.append(message[at:end])
            at = end + len(piece)
        digits = values.pop(self.length_at)
        for value in values:
            if not value or value.translate(None, _TEXT) or value.strip() != value:
                return None
        self.values = values
        if digits.isdigit() and len(digits) < 11 and int(digits) == len(message) - at:
            return message[at:]
        return None


def worthwhile(misses: int) -> bool:
    """Whether to `learn` from a head, by how many did not match lately: heads that are never alike cost no more than the parser."""
    return misses < 4 or not misses % 32


def learn(message: bytes, headers: Sequence[tuple[bytes, bytes]], before: Pattern | None) -> Pattern | None:
    """The pattern of a message that the parser took.

    Args:
        message: The whole message.
        headers: Its headers as the parser read them.
        before: The pattern that it did not match; where the two differ only in values, these become free.

    Returns:
        None where the head is not plainly ``name: value`` line by line, or the body is not as long as the head says.
    """
    end = message.find(b"\r\n\r\n")
    lines = message[:end].split(b"\r\n")
    if len(lines) != len(headers) + 1:
        return None
    names = []
    length = -1
    for number, (name, value) in enumerate(headers):
        spelt, _, said = lines[number + 1].partition(b": ")
        lower = name.lower()
        if said != value or spelt.lower() != lower:
            return None
        names.append(lower)
        if lower == b"content-length":
            if length >= 0 or not value.isdigit() or int(value) != len(message) - end - 4:
                return None
            length = number
    if length < 0:
        return None
    free: list[int] = []
    if before is not None and len(before.lines) == len(lines) and before.lines[0] == lines[0]:
        known = before.free
        for number, name in enumerate(names):
            line, other = lines[number + 1], before.lines[number + 1]
            if line[: len(name) + 2] != other[: len(name) + 2]:
                free = []
                break
            if (number in known or line != other) and name not in _STEADY and disposition(name) != FRAMING:
                free.append(number)
    return Pattern(lines, names, length, free)
