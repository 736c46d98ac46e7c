"""Separates thinking from answer where an old template leaves ``<think>`` tags in the text."""

from __future__ import annotations

_OPEN, _CLOSE = "<think>", "</think>"


def _held(text: str, tag: str) -> int:
    """Length of the end of ``text`` that may be the beginning of ``tag``."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0


class ThinkTags:
    """Splits text, piece by piece, into thinking and answer; tags may be cut anywhere between pieces.

    Only a tag at the very beginning counts, so that an answer may speak about tags.
    """

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """The thinking and the answer that are certain after ``text``."""
        if self._state == "answer":
            return "", text
        text = self._held + text
        self._held = ""
        if self._state == "start":
            bare = text.lstrip()
            if len(bare) < len(_OPEN) and _OPEN.startswith(bare):
                self._held = text
                return "", ""
            if not bare.startswith(_OPEN):
                self._state = "answer"
                return "", text
            self._state = "thinking"
            text = bare[len(_OPEN) :]
        if self._state == "thinking":
            thinking, closed, answer = text.partition(_CLOSE)
            if closed:
                self._state = "gap"
                return thinking, self._after_gap(answer)
            keep = _held(text, _CLOSE)
            self._held = text[len(text) - keep :]
            return text[: len(text) - keep], ""
        return "", self._after_gap(text)

    def _after_gap(self, text: str) -> str:
        """Drops the blank lines that templates put between thinking and answer."""
        text = text.lstrip("\r\n")
        if text:
            self._state = "answer"
        return text

    def finish(self) -> tuple[str, str]:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "thinking" else ("", held)
