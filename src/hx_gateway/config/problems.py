"""What is wrong with a configuration: one finding while it is looked for, one problem once it is located, all of them in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hx_gateway.config.located import Path, Place


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong, by its path in the configuration.

    Args:
        path: The setting.
        message: The rule in plain words, and the remedy.
        level: ``error``; ``blocker`` (loads, but must not be served so); or ``warning``.
        on_key: Whether the name itself is wrong, not its value.
        place: Where it stands, if that is known better than by its path.
        variable: The environment variable at fault, if that is known better than by its path.
        rests_on: Settings without which it cannot be told (``names``, ``keys``); it is left out when they are broken.
    """

    path: Path
    message: str
    level: str = "error"
    on_key: bool = False
    place: Place | None = None
    variable: str = ""
    rests_on: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding with its source.

    Args:
        path: The setting, dotted; empty for the whole file.
        message: The rule in plain words, and the remedy; never a value that could be a secret.
        source: File, or name of the environment variable; empty when it comes from a default.
        line: Line in the file, from 1; 0 if it has none.
        column: Column in the file, from 1; 0 if it has none.
        level: ``error``, ``blocker`` or ``warning``.
    """

    path: str
    message: str
    source: str = ""
    line: int = 0
    column: int = 0
    level: str = "error"

    def __str__(self) -> str:
        where = self.source + (f":{self.line}" if self.line else "") + (f":{self.column}" if self.column else "")
        return ": ".join(part for part in (where, self.path, self.message) if part)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "level": self.level,
            "source": self.source,
            "line": self.line or None,
            "column": self.column or None,
            "path": self.path,
            "message": self.message,
        }


class ConfigError(ValueError):
    """A configuration cannot be used; holds every reason at once.

    Args:
        problems: At least one.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems))
