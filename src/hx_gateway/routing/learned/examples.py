"""What a scorer learns from: prompts with each model's score, read from JSON lines."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hx_gateway.routing.learned.features import Features, extract

_LONGEST_LINE = 4 * 1024 * 1024


class ExampleError(Exception):
    """A file of examples cannot be read; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt that was answered and judged.

    Args:
        features: Of the prompt.
        scores: For each model that answered it how good the answer was, 0 to 1.
        text: The prompt, so that heavy words have names in explanations; empty where only features were kept.
    """

    features: Features
    scores: Mapping[str, float]
    text: str = ""


def read(paths: Sequence[Path]) -> list[Example]:
    """Every example in JSON-lines files, also gzipped ones: objects with ``prompt`` and ``scores`` (model to 0..1).

    ``turns`` and ``tools`` are numbers and may be left out; other keys are passed over.

    Raises:
        ExampleError: A file cannot be read, or a line is no example.
    """
    return [example for path in paths for example in _lines(path)]


def _lines(path: Path) -> Iterator[Example]:
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            while line := file.readline(_LONGEST_LINE):
                number += 1
                if line.strip():
                    yield _example(json.loads(line))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ExampleError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ExampleError(f'{path}, line {number}: {error}; a line is {{"prompt": "...", "scores": {{"model": 0.0 to 1.0}}}}') from None


def _example(row: object) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError("prompt is no text")
    scores, turns, tools = row.get("scores"), row.get("turns", 1), row.get("tools", 0)
    if not isinstance(scores, dict) or not scores:
        raise ValueError("scores is no object of models")
    for model, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0.0 <= score <= 1.0:
            raise ValueError(f"scores.{model} is no number from 0 to 1")
    if not isinstance(turns, int) or not isinstance(tools, int):
        raise ValueError("turns and tools are whole numbers")
    return Example(extract(row["prompt"], turns, tools), {model: float(score) for model, score in scores.items()}, row["prompt"])
