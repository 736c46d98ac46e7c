"""What the scorer sees of a prompt: hashed words and pairs of words, and its outward shape, in plain Python."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import log2
from zlib import crc32

BITS = 18
_MASK = (1 << BITS) - 1
HEAD_CHARS, TAIL_CHARS = 1024, 512  # of a long prompt: its beginning and its end, so that the cost is bounded
_LANES = int.from_bytes(
    _MASK.to_bytes(4, "little") * 2 * (HEAD_CHARS + TAIL_CHARS + 1), "little"
)  # 32 bits a word; a character has two at most
_PAIR = 7477  # odd, so that a pair's hash differs by its first word; times a hash it stays within its lane
_OTHER = re.compile(r"[^\W\d_\u2e80-\uffff]+|\d+|[^\s]")  # scripts without spaces character by character: pairs are their words
_SMALL = bytes(range(128)).lower() + bytes(128)
_APART = [(bytes([sign]), b" %c " % sign) for sign in range(33, 127) if not chr(sign).isalnum()]
_DIGITS, _CAPITALS = b"0123456789", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NO_SIGNS = _DIGITS + _CAPITALS + b"abcdefghijklmnopqrstuvwxyz \t\r\n"
_CODE = (("`", "```"), ("d", "def "), (";", ";\n"), ("{", "{\n"), ("<", "</"))  # one sign is looked for 20 times faster than two

SHAPES = (
    "length", "word length", "lines", "shortest line", "digits", "signs", "capitals", "formula", "code", "question", "blank", "exception",
    "other scripts", "turns", "tools",
)  # fmt: skip
STEPS = 32
"""Each shape's value is a step from 0 to ``STEPS - 1``; where a quantity grows without end, two steps are a doubling."""
_MEANT = b"\xff"  # packed features that begin with an embedding: no step is so large


class Features:
    """One prompt as the scorer sees it; no text can be read from it.

    Args:
        words: Different hashes, below ``2 ** BITS``, of its words and signs and of pairs of neighbours.
        shape: For each of `SHAPES` the position ``shape * STEPS + step``.
        meaning: Its embedding, as `meaning.packed` made it; empty where there is none.
    """

    __slots__ = ("meaning", "shape", "words")

    def __init__(self, words: tuple[int, ...], shape: tuple[int, ...], meaning: bytes = b"") -> None:
        self.words = words
        self.shape = shape
        self.meaning = meaning

    def pack(self) -> bytes:
        """All of it in bytes, for a log: at most about 5 kB a prompt, usually below 1 kB; and the embedding, a byte a dimension."""
        steps = bytes(position % STEPS for position in self.shape)
        numbers = array("I", sorted(self.words))
        gaps = bytearray()
        last = 0
        for number in numbers:
            gap, last = number - last, number
            while gap >= 128:
                gaps.append(gap & 127 | 128)
                gap >>= 7
            gaps.append(gap)
        meant = _MEANT + len(self.meaning).to_bytes(2, "little") + self.meaning if self.meaning else b""
        return meant + steps + bytes(gaps)

    @classmethod
    def unpack(cls, packed: bytes) -> Features:
        """What `pack` made.

        Raises:
            ValueError: It is not that.
        """
        meaning = b""
        if packed[:1] == _MEANT:
            size = int.from_bytes(packed[1:3], "little")
            meaning, packed = packed[3 : 3 + size], packed[3 + size :]
        if len(packed) < len(SHAPES) or any(step >= STEPS for step in packed[: len(SHAPES)]):
            raise ValueError("these bytes are no packed features")
        words = tuple(_numbers(packed[len(SHAPES) :]))
        if words and words[-1] > _MASK:
            raise ValueError("these bytes are no packed features")
        return cls(words, tuple(shape * STEPS + step for shape, step in enumerate(packed[: len(SHAPES)])), meaning)


def _numbers(gaps: bytes) -> Iterator[int]:
    number = gap = shift = 0
    for byte in gaps:
        gap |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            number += gap
            yield number
            gap = shift = 0


def extract(text: str, turns: int = 1, tools: int = 0, meaning: bytes = b"") -> Features:
    """The features of a prompt.

    Args:
        text: What the user asks, the last message; of a long one the beginning and the end are read.
        turns: Messages in the conversation.
        tools: Tools the request offers.
        meaning: Its embedding, where it is known.
    """
    text = _bounded(text)
    return Features(tuple(set(_hashes(_tokens(text)))), _shape(text, turns, tools), meaning)


def _hashes(words: list[bytes]) -> tuple[int, ...]:
    """The hash of each word, then of each pair of neighbours: all pairs are reckoned at once, as lanes of one long integer."""
    size = 4 * len(words)
    lanes = int.from_bytes(struct.pack(f"<{len(words)}I", *map(crc32, words)), "little") & _LANES
    pairs = (lanes * _PAIR + (lanes >> 32)) & _LANES
    return struct.unpack(f"<{max(0, size // 2 - 1)}I", lanes.to_bytes(size, "little") + pairs.to_bytes(size, "little")[: max(0, size - 4)])


def named(text: str) -> dict[int, str]:
    """The words and pairs of a prompt by their hash: what a hash means, for explanations."""
    words = _tokens(_bounded(text))
    names = [word.decode() for word in words]
    names += [f"{first} {second}" for first, second in pairwise(names)]
    return dict(zip(reversed(_hashes(words)), reversed(names), strict=True))  # where two share a hash the word stands, not the pair


def shape_name(position: int) -> str:
    """What a position in `Features.shape` means, as ``length step 14``."""
    return f"{SHAPES[position // STEPS]} step {position % STEPS}"


def _bounded(text: str) -> str:
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _tokens(text: str) -> list[bytes]:
    """Its words in small letters, and its signs one by one."""
    if not text.isascii():
        return [token.encode() for token in _OTHER.findall(text.lower().encode(errors="replace").decode())]
    plain = text.encode().translate(_SMALL)
    for sign, apart in _APART:  # a third of the time of a regular expression
        plain = plain.replace(sign, apart)
    return plain.split()


def _steps(quantity: float) -> int:
    return min(STEPS - 1, int(2.0 * log2(quantity + 1.0)))


def _shape(text: str, turns: int, tools: int) -> tuple[int, ...]:
    plain = text.encode(errors="replace")
    length, size = len(text), len(plain)
    lines = text.split("\n")
    blanks = text.count(" ") + len(lines)
    code = [sign in text and mark in text for sign, mark in _CODE]
    steps: Iterable[int] = (
        _steps(length),
        min(STEPS - 1, 2 * length // blanks),
        min(STEPS - 1, len(lines)),
        _steps(min(map(len, lines))),
        _steps(size - len(plain.translate(None, _DIGITS))),
        _steps(len(plain.translate(None, _NO_SIGNS))),
        _steps(size - len(plain.translate(None, _CAPITALS))),
        ("$" in text) + 2 * ("\\" in text) + 4 * ("^" in text),
        sum(code),
        ("?" in text) + (text.rstrip().endswith("?")),
        "_" in text and "__" in text,
        (" not " in text) + 2 * (" NOT " in text) + 4 * (" except" in text),
        _steps(size - length),
        _steps(max(0, turns - 1)),
        _steps(max(0, tools)),
    )
    return tuple(shape * STEPS + step for shape, step in enumerate(steps))
