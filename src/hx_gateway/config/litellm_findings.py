"""What an import from LiteLLM found, one remark for each thing: how well it was carried over, where it stood, and what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

LEVELS = ("unsupported", "manual", "not-imported", "ignored-by-LiteLLM", "approximate", "exact")
"""How well something was carried over, most pressing first."""

OPEN = frozenset(("unsupported", "manual", "not-imported"))
"""Levels that leave something for somebody to look at."""

_MEANING = {
    "unsupported": "the gateway has nothing like it",
    "manual": "somebody has to do something",
    "not-imported": "no key that LiteLLM documents",
    "ignored-by-LiteLLM": "LiteLLM never used it; the gateway does",
    "approximate": "carried over with another shape or effect",
    "exact": "carried over as it is",
}


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing of the file, and what became of it.

    Args:
        level: One of `LEVELS`.
        key: The key, dotted.
        message: What became of it and the remedy, in words; empty where ``target`` says it all. Never a secret.
        target: The setting it became, dotted; empty where there is none.
        file: The file it stands in.
        line: Line in it, from 1; 0 if unknown.
        column: Column in it, from 1; 0 if unknown.
    """

    level: str
    key: str
    message: str = ""
    target: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    @property
    def place(self) -> str:
        """``file:line:column``."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {name: getattr(self, name) or None for name in self.__slots__}


def counts(remarks: Iterable[Remark]) -> dict[str, int]:
    """How many remarks there are of each level; every level is named."""
    found = Counter(remark.level for remark in remarks)
    return {level: found[level] for level in LEVELS}


def rows(remarks: Sequence[Remark]) -> Iterator[tuple[str, str, str, str]]:
    """What is worth reading, most pressing first: level, places, key, and message; equal ones of several keys are one row."""
    together: dict[tuple[str, str], list[Remark]] = {}
    for remark in sorted(remarks, key=lambda one: LEVELS.index(one.level)):
        if remark.message:
            together.setdefault((remark.level, remark.message), []).append(remark)
    for (level, message), several in together.items():
        lines = [f"{one.line}:{one.column}" for one in several[1:4]] + (["…"] if len(several) > 4 else [])
        key = several[0].key + (f" and {len(several) - 1} more" if len(several) > 1 else "")
        yield level, ", ".join([several[0].place, *lines]), key, message


def as_json(remarks: Sequence[Remark], **more: Any) -> str:
    """The whole report for programs."""
    return json.dumps({**more, "counts": counts(remarks), "findings": [remark.as_json() for remark in remarks]}, indent=2) + "\n"


def as_markdown(remarks: Sequence[Remark], title: str) -> str:
    """The whole report for people, every key named."""
    lines = [f"# {title}", "", "| Level | Keys | Meaning |", "|---|---|---|"]
    lines += [f"| {level} | {number} | {_MEANING[level]} |" for level, number in counts(remarks).items()]
    for level in LEVELS:
        chosen = [remark for remark in remarks if remark.level == level]
        if chosen:
            lines += ["", f"## {level}", "", "| Place | Key | Became | What to know |", "|---|---|---|---|"]
            lines += [
                f"| {one.place} | {_cell(one.key)} | {_cell(one.target)} | {one.message.replace('|', chr(92) + '|')} |" for one in chosen
            ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""
