"""Cutting texts: nothing is lost, nothing is too large, structure is kept, and time grows with the length alone."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hx_gateway.rag.chunking import Piece, Sizes, cut, tokens

SMALL = Sizes(target=24, most=40, overlap=6)
PARTS = ["# One\n", "### Three ##\n", "Title\n===\n", "\n", "\n\n", "- item\n", "  more of it\n", "```\n", "~~~~\n", "code = 1\n", "| a | b |\n", "---\n",
         "A sentence. And another! Really? ", "word ", "的的的。", "e\u0301", "👩‍💻", "\r\n", "\t", "0123456789", "#" * 50, "x" * 70, "\x1c", "\u2028"]  # fmt: skip
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=20), max_size=60).map("".join)
formats = st.sampled_from(["text", "markdown"])


@settings(max_examples=300, deadline=None)
@given(texts, formats)
def test_nothing_is_lost_nothing_is_too_large_and_the_same_comes_again(text: str, format: Any) -> None:
    pieces = cut(text, format, SMALL)
    assert cut(text, format, SMALL) == pieces
    reached = 0
    for piece in pieces:
        assert piece.text and piece.text == text[piece.start : piece.end].strip()
        assert tokens(piece.text) <= SMALL.most
        assert not text[reached : piece.start].strip(), "signs that are in no chunk"
        assert tokens(text[piece.start : max(reached, piece.start)].strip()) <= SMALL.overlap
        assert piece.end > reached
        reached = piece.end
    assert not text[reached:].strip()


def shown(pieces: list[Piece]) -> list[tuple[list[str], str]]:
    return [(piece.metadata.get("headings", []), piece.text) for piece in pieces]


def test_sections_know_the_headings_above_them() -> None:
    body = "Some ten words that are there to fill the section up."
    text = f"# Book\n\n## First #\n\n{body}\n\nSecond\n------\n\n{body}\n\n### Deep\n\n{body}\n\n# Other\n\n{body}\n"
    assert shown(cut(text, "markdown", Sizes(24, 40, 6))) == [
        (["Book", "First"], f"# Book\n\n## First #\n\n{body}"),
        (["Book", "Second"], f"Second\n------\n\n{body}"),
        (["Book", "Second", "Deep"], f"### Deep\n\n{body}"),
        (["Other"], f"# Other\n\n{body}"),
    ]
    assert all(not piece.metadata for piece in cut(text, "text", SMALL))


def test_code_and_tables_stay_whole_where_they_fit_and_are_cut_between_lines_where_not() -> None:
    code = "```python\n# no heading\n\nvalue = compute(1)\n```"
    before = "Twenty words come before it, so that it would not fit into the same chunk any more, at all. " * 2
    pieces = cut(f"{before}\n\n{code}\n", "markdown", Sizes(24, 60, 6))
    assert pieces[-1].text == code
    rows = [f"| row {number} | some value |" for number in range(40)]
    table = cut("\n".join(rows), "markdown", SMALL)
    assert len(table) > 5
    assert [row for piece in table for row in piece.text.split("\n")] == rows, "rows are whole, and none is repeated"


def test_a_chunk_begins_with_the_end_of_the_one_before_it() -> None:
    sentences = [f"This is sentence number {number} of the text." for number in range(30)]
    first, second, *_ = cut(" ".join(sentences), "text", Sizes(40, 60, 16))
    assert second.start < first.end
    assert second.text.split(". ")[0] == first.text.split(". ")[-1].rstrip("."), "a whole sentence is repeated"


def test_an_accent_stays_with_its_letter() -> None:
    for piece in cut("e\u0301" * 500, "text", SMALL):
        assert piece.text.startswith("e") and piece.text.endswith("\u0301")


def test_a_short_text_is_one_chunk() -> None:
    assert shown(cut("  One.\n\nTwo.\n")) == [([], "One.\n\nTwo.")]
    assert cut(" \n\t\n") == []


@pytest.mark.parametrize("format", ["text", "markdown"])
@pytest.mark.parametrize(
    "part", ["a", " ", "#\n", "# x\n", "```\n", "|\n", "- a\n", ". ", "!\"'", "\u0301", "的。", "a\n===\n", "word ", "\n", "x\n\n"]
)
def test_twice_the_text_is_twice_the_work(part: str, format: Any) -> None:
    def work(text: str) -> int:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            cut(text, format)
        finally:
            sys.setprofile(None)
        return calls

    length = 12_000 // len(part)
    assert work(part * (2 * length)) <= 2.3 * work(part * length) + 400
