"""Reads traces of requests, as published ones are, and fits them to a fleet."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

_TIME = ("timestamp", "arrival_time")
_INPUT = ("input_length", "contexttokens", "prompt_tokens")
_OUTPUT = ("output_length", "generatedtokens", "completion_tokens")
_SHARED = -1  # stands for the block that all requests begin with


class TraceError(ValueError):
    """A trace cannot be read; says where and what to do."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace.

    Args:
        at_s: When it arrives, in seconds from the first.
        prompt_tokens: Length of its prompt.
        output_tokens: Length of the answer it will get; the router is not told.
        model: Name of the model; empty for the fleet's first.
        blocks: Hashes of the prompt's leading blocks, each covering all before it.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    model: str = ""
    blocks: tuple[int, ...] = ()


def read(path: Path, limit: int = 0, unit: str = "") -> list[Arrival]:
    """The requests of a file, in the order of their arrival, from second 0 on.

    CSV with a header line, or one JSON object a line; ``.gz`` is unpacked. Columns: ``timestamp`` (or ``TIMESTAMP``),
    ``input_length`` (or ``ContextTokens``), ``output_length`` (or ``GeneratedTokens``), and where there are any
    ``hash_ids`` (equal leading ids stand for an equal prefix) and ``model``.

    Args:
        path: The file.
        limit: Most requests to read; 0 for all.
        unit: What a number in ``timestamp`` counts: ``s`` or ``ms``. Empty takes milliseconds for JSON lines with
            ``hash_ids`` and whole timestamps, as Mooncake's are, else seconds. Dates with time need none.

    Raises:
        TraceError: It cannot be read, or a line lacks something.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError:
        raise TraceError(f"{path}: is not UTF-8 text") from None
    rows = _json_rows(path, text) if text.lstrip()[:1] == "{" else _csv_rows(text)
    found = [_arrival(f"{path}:{line}", row, unit) for line, row in islice(rows, limit or None)]
    if not found:
        raise TraceError(f"{path}: has no requests; it needs a header line and rows (CSV), or one JSON object a line")
    found.sort(key=lambda one: one.at_s)
    start_s = found[0].at_s
    return [replace(one, at_s=one.at_s - start_s) for one in found]


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise TraceError(f"{path}:{number}: is not JSON ({error}); write one object a line") from None
            if not isinstance(row, dict):
                raise TraceError(f"{path}:{number}: is no JSON object; write one object a line")
            yield number, {str(name).lower(): value for name, value in row.items()}


def _csv_rows(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(csv.DictReader(io.StringIO(text)), 2):
        yield number, {name.strip().lower(): value for name, value in row.items() if name}


def _arrival(where: str, row: dict[str, Any], unit: str) -> Arrival:
    ids = row.get("hash_ids") or ()
    if isinstance(ids, str):
        ids = ids.strip("[] ").replace(",", " ").replace(";", " ").split()
    try:
        blocks = chained([int(one) for one in ids])
    except (TypeError, ValueError):
        raise TraceError(f"{where}: hash_ids should be whole numbers, as a JSON list or separated by blanks") from None
    prompt, output = _count(where, row, _INPUT), _count(where, row, _OUTPUT)
    return Arrival(_seconds(where, row, unit), max(prompt, 1), max(output, 1), str(row.get("model") or ""), blocks)


def _field(where: str, row: dict[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if row.get(name) not in (None, ""):
            return row[name]
    raise TraceError(f"{where}: {names[0]} is missing; a trace has timestamp, input_length and output_length")


def _count(where: str, row: dict[str, Any], names: Sequence[str]) -> int:
    value = _field(where, row, names)
    try:
        count = int(value)
    except (TypeError, ValueError, OverflowError):
        count = -1
    if not 0 <= count <= 100_000_000:
        raise TraceError(f"{where}: {names[0]} should be a whole number of tokens, 0 or more")
    return count


def _seconds(where: str, row: dict[str, Any], unit: str) -> float:
    value = _field(where, row, _TIME)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            try:
                moment = datetime.fromisoformat(value.strip())
            except ValueError:
                raise TraceError(f"{where}: timestamp should be a number, or a date with time such as 2023-11-16 18:17:03.97") from None
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    milliseconds = unit == "ms" or (not unit and isinstance(value, int) and "hash_ids" in row)
    if not isinstance(value, int | float) or not abs(value) < 1e15:
        raise TraceError(f"{where}: timestamp should be a finite number of {'milliseconds' if milliseconds else 'seconds'}")
    return value / 1000.0 if milliseconds else float(value)


def chained(ids: Iterable[int]) -> tuple[int, ...]:
    """Hashes of which each covers all ids up to it; the same in every process."""
    found = []
    covered = 0
    for one in ids:
        covered = hash((covered, one))
        found.append(covered)
    return tuple(found)


def with_shared_first_block(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """The same requests, all with the same first block, as a system prompt makes them.

    Raises:
        TraceError: The trace does not say which prompts share blocks.
    """
    if not any(one.blocks for one in arrivals):
        raise TraceError("the trace has no hash_ids, so there is no first block to share")
    first = chained((_SHARED,))[0]
    # What follows keeps its own hashes: they still differ wherever the prompts did.
    return [replace(one, blocks=(first, *one.blocks[1:])) if one.blocks else one for one in arrivals]


def stretched(arrivals: Sequence[Arrival], factor: float) -> list[Arrival]:
    """The same requests with all times multiplied by ``factor``."""
    return [replace(one, at_s=one.at_s * factor) for one in arrivals]
