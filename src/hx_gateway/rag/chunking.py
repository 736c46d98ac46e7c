"""Cuts texts into chunks by their structure, so that each can be embedded and means something by itself."""

from __future__ import annotations

import array
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any, Literal

_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+|(?<=[。！？])")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_WORD = re.compile(r"\S+")
_ITEM = re.compile(r"[-*+•] |\d{1,9}[.)] ")
_TITLE = 200  # characters of a heading that are remembered
_RUN = 8192  # signs that are weighed at once: less than a millisecond
_CLUSTER = 16  # signs that are looked back over so as not to part an accent from its letter


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large chunks are, in tokens as `tokens` estimates them.

    Args:
        target: What a chunk should come near to.
        most: What no chunk exceeds; a code block or table up to this stays whole. Small embedding models read 512.
        overlap: How much of a chunk's end the next one begins with, where they part within a section.
    """

    target: int = 240
    most: int = 380
    overlap: int = 40


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk: a part of the text, as it stands there.

    Args:
        text: Without blanks around it; never empty.
        start, end: Where it is in the text; it may begin before the end of the piece before it.
        metadata: ``{"headings": [...]}``, the headings above it from the outermost on; empty where there are none.
    """

    text: str
    start: int
    end: int
    metadata: dict[str, Any] = field(default_factory=dict)


_Way = Callable[[str, int, int], Iterator[tuple[int, int]]]
"""Parts of a text between two places, in order."""


@dataclass(slots=True)
class _Block:
    start: int
    end: int
    kind: str  # text, item, code, table, heading
    path: tuple[str, ...] = ()


@dataclass(slots=True)
class _Chunk:
    start: int
    end: int
    size: int
    path: tuple[str, ...]
    first: str  # kinds of what it begins and ends with
    last: str


class _Weights(dict[str, int]):
    """Quarters of tokens of signs: an ASCII letter or blank is one, a digit or another Latin letter two, everything else four."""

    def __missing__(self, sign: str) -> int:
        light = sign.isascii() and (sign.isalpha() or sign.isspace())
        weight = self[sign] = 1 if light else 2 if sign.isdecimal() or (sign.isalpha() and sign < "\u0250") else 4
        return weight


class _Text:
    """A text, of which any part can be weighed at once."""

    def __init__(self, signs: str) -> None:
        self.signs = signs
        self._sums, weigh = array.array("Q", (0,)), _Weights().__getitem__
        for start in range(0, len(signs), _RUN):  # one call for all would keep every other thread waiting until it is done
            self._sums.extend(islice(accumulate(map(weigh, signs[start : start + _RUN]), initial=self._sums[-1]), 1, None))

    def weight(self, start: int, end: int) -> int:
        return self._sums[end] - self._sums[start]

    def least(self, end: int, weight: int) -> int:
        """The first place from which what is before ``end`` weighs at most ``weight``."""
        return bisect_left(self._sums, self._sums[end] - weight)


def tokens(text: str) -> int:
    """About how many tokens a text has for an embedding model, rather too many than too few."""
    return -(-sum(map(_Weights().__getitem__, text)) // 4)


def cut(text: str, format: Literal["text", "markdown"] = "text", sizes: Sizes | None = None) -> list[Piece]:
    """Cut a text into chunks, the same ones whenever it is cut.

    Sections are kept apart unless they are tiny; paragraphs, list items, code blocks and tables stay whole where they fit, else they are cut
    between lines, sentences, words, and at last between signs. Everything but blanks is in at least one chunk. Takes time in proportion to
    the text's length.

    Args:
        text: The text.
        format: Whether headings, lists, code and tables of Markdown are looked for.
        sizes: How large the chunks should be.

    Returns:
        In order; none where there is nothing but blanks.
    """
    sizes = sizes or Sizes()
    target, most, overlap = 4 * sizes.target, 4 * sizes.most, 4 * sizes.overlap
    whole = _Text(text)
    blocks = _markdown(text) if format == "markdown" else _paragraphs(text)
    atoms = [atom for block in blocks for atom in _atoms(whole, block, target, most)]
    chunks = _tails(whole, _packed(whole, atoms, target, most), target, most)
    pieces = []
    before: _Chunk | None = None
    for chunk in chunks:
        start = chunk.start
        if before is not None and before.path == chunk.path and {before.last, chunk.first} <= {"text", "item"}:
            start = _back(whole, before, chunk, min(overlap, most - chunk.size))
        metadata = {"headings": list(chunk.path)} if chunk.path else {}
        pieces.append(Piece(text[start : chunk.end].strip(), start, chunk.end, metadata))
        before = chunk
    return pieces


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _LINE.finditer(text, start, end))


def _paragraphs(text: str) -> Iterator[_Block]:
    block: _Block | None = None
    for start, end in _lines(text, 0, len(text)):
        if text[start:end].isspace():
            if block is not None:
                yield block
            block = None
        elif block is None:
            block = _Block(start, end, "text")
        else:
            block.end = end
    if block is not None:
        yield block


def _markdown(text: str) -> Iterator[_Block]:
    path: list[tuple[int, str]] = []
    block: _Block | None = None
    fence = ""
    for start, end in _lines(text, 0, len(text)):
        line = text[start : min(end, start + 1024)].strip()
        indent = len(text[start : start + 8]) - len(text[start : start + 8].lstrip(" \t"))
        if fence:
            assert block is not None
            block.end = end
            if line.startswith(fence) and not line.strip(fence[0]):
                yield block
                block, fence = None, ""
            continue
        if not line and text[start:end].isspace():
            if block is not None:
                yield block
            block = None
            continue
        level = _level(line) if indent < 4 else 0
        if (
            block is not None
            and block.kind == "text"
            and line in ("", *_underlines(line))
            and text.count("\n", block.start, block.end) <= 1
        ):
            level, block.end = (1 if line[0] == "=" else 2), end  # the line before was a heading
            yield _heading(text, block, path, level)
            block = None
        elif level:
            if block is not None:
                yield block
            yield _heading(text, _Block(start, end, "heading"), path, level)
            block = None
        elif line.startswith(("```", "~~~")) or (start == 0 and line == "---"):
            if block is not None:
                yield block
            fence = line[: len(line) - len(line.lstrip(line[0]))]
            block = _Block(start, end, "code", tuple(title for _, title in path))
        else:
            kind = "table" if line.startswith("|") else "item" if _ITEM.match(line) is not None else "text"
            goes_on = block is not None and (block.kind == kind != "item" or (block.kind == "item" and kind == "text"))
            if goes_on and block is not None:
                block.end = end
            else:
                if block is not None:
                    yield block
                block = _Block(start, end, kind, tuple(title for _, title in path))
    if block is not None:
        yield block


def _underlines(line: str) -> tuple[str, ...]:
    return (line,) if line and (not line.strip("=") or not line.strip("-")) else ()


def _level(line: str) -> int:
    marks = len(line) - len(line.lstrip("#"))
    return marks if 1 <= marks <= 6 and line[marks : marks + 1] in ("", " ", "\t") else 0


def _heading(text: str, block: _Block, path: list[tuple[int, str]], level: int) -> _Block:
    """The block as a heading; ``path`` leads to it from then on."""
    title = " ".join(text[block.start : min(block.end, block.start + 2 * _TITLE)].splitlines()[0].strip().strip("#").split())[:_TITLE]
    while path and path[-1][0] >= level:
        path.pop()
    if title:
        path.append((level, title))
    return _Block(block.start, block.end, "heading", tuple(title for _, title in path))


def _atoms(text: _Text, block: _Block, target: int, most: int) -> Iterator[_Block]:
    """A block, or what it has to be cut into: each part weighs at most ``most``."""
    size = text.weight(block.start, block.end)
    if size <= (most if block.kind in ("code", "table") else target):
        yield block
        return
    ways: tuple[_Way, ...] = (_lines, _sentences, _words, _signs)
    yield from _cut_by(text, block, ways[0 if block.kind in ("code", "table") else 1 :], target, most)


def _cut_by(text: _Text, block: _Block, ways: tuple[_Way, ...], target: int, most: int) -> Iterator[_Block]:
    for start, end in ways[0](text.signs, block.start, block.end):
        part = _Block(start, end, block.kind, block.path)
        if len(ways) > 1 and text.weight(start, end) > (target if block.kind in ("text", "item") else most):
            yield from _cut_by(text, part, ways[1:], target, most)
        else:
            yield part


def _sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for place in range(start, end, _RUN):  # as in `_Text`: where no sentence ends, one search looks at all
        for match in _SENTENCE.finditer(text, place, min(place + _RUN, end)):
            if match.end() > start:
                yield start, match.end()
                start = match.end()
    if start < end:
        yield start, end


def _words(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _WORD.finditer(text, start, end))


def _signs(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of 32 signs; what belongs to the sign before it stays with it."""
    while start < end:
        place = min(start + 32, end)
        back = place
        while back > start + _CLUSTER and back < end and _joins(text, back):
            back -= 1
        place = back if back > start + _CLUSTER else place
        yield start, place
        start = place


def _joins(text: str, place: int) -> bool:
    return (
        text[place] == "\u200d"
        or text[place - 1] == "\u200d"
        or unicodedata.category(text[place])[0] == "M"
        or "\U0001f3fb" <= text[place] <= "\U0001f3ff"
    )


def _packed(text: _Text, atoms: list[_Block], target: int, most: int) -> Iterator[_Chunk]:
    """Atoms put together while they stay below the target; a heading goes with what it is above."""
    chunk: _Chunk | None = None
    only_headings = False
    for number, atom in enumerate(atoms):
        if text.signs[atom.start : atom.end].isspace():
            continue
        if chunk is not None:
            grown = chunk.size + text.weight(chunk.end, atom.end)
            needed = grown
            if atom.kind == "heading" and number + 1 < len(atoms):
                following = grown + text.weight(atom.end, atoms[number + 1].end)
                needed = following if following - chunk.size <= target else grown
            new_section = atom.kind == "heading" and chunk.size >= target // 4 and not only_headings
            if not new_section and needed <= (most if only_headings else target):
                chunk.end, chunk.size, chunk.last = atom.end, grown, atom.kind
                only_headings = only_headings and atom.kind == "heading"
                chunk.path = atom.path if only_headings else _common(chunk.path, atom.path) if atom.kind == "heading" else chunk.path
                continue
            yield chunk
        chunk = _Chunk(atom.start, atom.end, text.weight(atom.start, atom.end), atom.path, atom.kind, atom.kind)
        only_headings = atom.kind == "heading"
    if chunk is not None:
        yield chunk


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return one[:length]


def _tails(text: _Text, chunks: Iterator[_Chunk], target: int, most: int) -> Iterator[_Chunk]:
    """Chunks, a small one put to that before it where they are of one section."""
    before: _Chunk | None = None
    for chunk in chunks:
        if before is not None:
            joined = before.size + text.weight(before.end, chunk.end)
            if chunk.size < target // 4 and before.path == chunk.path and joined <= most:
                before.end, before.size, before.last = chunk.end, joined, chunk.last
                continue
            yield before
        before = chunk
    if before is not None:
        yield before


def _back(text: _Text, before: _Chunk, chunk: _Chunk, most: int) -> int:
    """Where a chunk begins that repeats the end of the one before it: at a sentence, or a word, that weighs at most ``most``."""
    start = max(before.start, text.least(chunk.start, most))
    window = text.signs[start : chunk.start]
    if not window.strip():
        return chunk.start
    sentences = [place for place, _ in _sentences(window, 0, len(window))][1:]
    words = [match.start() for match in _WORD.finditer(window)][1:]
    found = next((place for place in sentences if window[place:].strip()), None)
    return start + found if found is not None else start + words[0] if words else chunk.start
