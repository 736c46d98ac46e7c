"""The last hour in steps of ten seconds: each worker writes what it counted into its page of the book, and any of them shows the sum."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.core.files import replace
from hx_gateway.telemetry.book import Book, Cells, Entry
from hx_gateway.telemetry.families import SECONDS
from hx_gateway.telemetry.metrics import COMPLETION, COUNT, FIRST, PACE, PROMPT

if TYPE_CHECKING:
    from hx_gateway.telemetry.exposition import Observed

EVERY_S = 10
"""Seconds of a step."""
STEPS = 360
"""Steps that are kept."""
NAME = "history"
"""With which its series in the book begin: one of all requests (``history_all``), and one of each endpoint."""
SETTLED_S = 2
"""Seconds after which every worker has written a step that is over."""
FILE = "history.json"
"""In the state directory: the last hour, for who starts next."""
_KEPT_STEPS = 30  # from one writing of it to the next
_RING = STEPS + 1  # the one that is being written is not read
_MOST_ENDPOINTS = 32  # of which each worker keeps a history; 17 kB each
# Numbers of a step. The first says which it is; that of all requests goes on with the buckets of response times and of times to the first token.
_STEP, _IN_FLIGHT, _REQUESTS, _ERRORS, _READ, _WRITTEN, _TIMES = range(7)
_WIDTH = _TIMES + PACE


class Recorder:
    """Writes the history of one worker.

    Args:
        book: The worker's.
    """

    __slots__ = ("_before", "_book", "_mine", "_rings", "_seen", "_step")

    def __init__(self, book: Book) -> None:
        self._book = book
        self._step = 0
        self._before: dict[str, list[float]] = {}
        self._rings: dict[str, Cells] = {}
        self._mine: list[Entry] = []
        self._seen = 0  # of the series of our page

    def tick(self, wall_s: float, observed: Observed) -> None:
        """Write down what was counted since the last step, if another has begun.

        Args:
            wall_s: Unix time.
            observed: For what is under way.
        """
        step, last = int(wall_s) // EVERY_S, self._step
        if step == last:
            return
        entries = self._book.page(self._book.number)
        self._mine += [entry for entry in entries[self._seen :] if entry.name in ("requests", "times")]
        self._seen = len(entries)
        before, now = self._before, _counted(self._mine)
        self._before, self._step = now, step
        folder = observed.backing.folder if self._book.number == 0 else None
        if not last:
            if folder is not None and not any(entry.name.startswith(NAME) for entry in entries):
                self._take_up(folder / FILE, step, observed)
            return
        under_way = {name: endpoint.in_flight for name, endpoint in observed.registry.endpoints.items()}
        for name, in_flight in {"": observed.proxy.in_flight, **under_way}.items():
            ring = self._ring(name)
            if ring is not None:
                width = len(ring) // _RING
                sums = now.get(name, [0.0] * width)
                grown = array("d", (after - then for after, then in zip(sums, before.get(name, [0.0] * width), strict=True)))
                grown[_IN_FLIGHT] = in_flight
                at = last % _RING * width
                ring[at + 1 : at + width] = grown[1:]
                ring[at] = last
        if folder is not None and step % _KEPT_STEPS == 0:
            threading.Thread(target=keep, args=(self._book, folder, wall_s), name="history", daemon=True).start()

    def _take_up(self, file: Path, now: int, observed: Observed) -> None:
        """Begin with what `keep` wrote, as if it were this worker's; a file that is damaged or from elsewhere is passed over."""
        with suppress(OSError, msgspec.DecodeError):
            for name, known in msgspec.json.decode(file.read_bytes(), type=dict[str, dict[int, list[float]]]).items():
                ring = self._ring(name) if not name or name in observed.registry.endpoints else None
                width = len(ring) // _RING if ring is not None else 0
                for step, values in known.items():
                    if ring is not None and now - STEPS <= step < now and len(values) == width:
                        at = step % _RING * width
                        ring[at : at + width] = array("d", (step, *values[1:]))

    def _ring(self, name: str) -> Cells | None:
        ring = self._rings.get(name)
        if ring is None:
            if not name:
                ring = self._book.cells(f"{NAME}_all", (), _RING * _WIDTH)
            elif len(self._rings) <= _MOST_ENDPOINTS and not self._book.full:
                ring = self._book.cells(NAME, (name,), _RING * _TIMES)
            else:
                return None
            self._rings[name] = ring
        return ring


def _counted(entries: Iterable[Entry]) -> dict[str, list[float]]:
    """What a worker has counted since its page began, by endpoint; of all requests under the empty name."""
    every = [0.0] * _WIDTH
    found = {"": every}
    for name, labels, cells in entries:
        if name == "requests":
            engine = labels[6] == "engine"
            for sums in (every, found.setdefault(labels[3], [0.0] * _TIMES)) if labels[3] else (every,):
                sums[_REQUESTS] += cells[COUNT]
                sums[_ERRORS] += cells[COUNT] if labels[5] else 0.0
                sums[_READ] += cells[PROMPT] if engine else 0.0
                sums[_WRITTEN] += cells[COMPLETION] if engine else 0.0
        else:
            for number, value in enumerate(cells[:PACE], _TIMES):
                every[number] += value
    return found


def course(book: Book, wall_s: float, steps: int = STEPS) -> dict[str, Any]:
    """What all workers have written of the latest steps that are over; takes a while with many of them, so rather in a thread.

    Args:
        book: Of any worker.
        wall_s: Unix time.
        steps: How many at most.

    Returns:
        ``times`` (ends of the steps, in Unix seconds, evenly spaced), ``all`` and ``endpoints`` by name: lists by the name of a
        figure, one value a time, None where no worker was there or no request came to an end.
    """
    last = int(wall_s - SETTLED_S) // EVERY_S - 1
    wanted = range(last - min(steps, STEPS) + 1, last + 1)
    found = _gathered(book, wanted)
    every = found.pop("")
    shown = range(min(every, default=last + 1), last + 1)
    return {
        "times": [(step + 1) * EVERY_S for step in shown],
        "all": {**_rates(every, shown), **_waits(every, shown)},
        "endpoints": {name: _rates(known, shown) for name, known in found.items()},
    }


def keep(book: Book, folder: Path, wall_s: float) -> None:
    """Write what all workers have written of the hour before ``wall_s`` (Unix time) to `FILE` in ``folder``, the state directory."""
    now = int(wall_s) // EVERY_S
    found = _gathered(book, range(now - STEPS, now))
    if found[""]:
        with suppress(OSError):  # a full disk costs no more than the beginning of the plots
            replace(folder / FILE, msgspec.json.encode(found))


def _gathered(book: Book, wanted: range) -> dict[str, dict[int, list[float]]]:
    """Numbers of the wanted steps, of all workers, by endpoint; of all requests under the empty name."""
    found: dict[str, dict[int, list[float]]] = {"": {}}
    for entries, _ in book.pages():
        for name, labels, ring in entries:
            if name.startswith(NAME):
                known, width = found.setdefault("".join(labels), {}), len(ring) // _RING
                numbers: Sequence[float] = ring.tolist() if len(wanted) > 1 else ring
                for step in wanted:
                    at = step % _RING * width
                    if numbers[at] == step:
                        values = list(numbers[at : at + width])
                        before = known.get(step)
                        known[step] = values if before is None else list(map(add, before, values))
    return found


def _rates(known: dict[int, list[float]], shown: range) -> dict[str, list[float | None]]:
    def of(number: int, over: int = EVERY_S) -> list[float | None]:
        return [round(known[step][number] / over, 3) if step in known else None for step in shown]

    return {
        "requests_per_s": of(_REQUESTS),
        "errors_per_s": of(_ERRORS),
        "prompt_tokens_per_s": of(_READ),
        "completion_tokens_per_s": of(_WRITTEN),
        "in_flight": of(_IN_FLIGHT, 1),
    }


def _waits(known: dict[int, list[float]], shown: range) -> dict[str, list[float | None]]:
    def of(start: int, end: int, share: float) -> list[float | None]:
        return [quantile(known[step][_TIMES + start : _TIMES + end - 1], share) if step in known else None for step in shown]

    return {
        "response_p50_s": of(0, FIRST, 0.5),
        "response_p95_s": of(0, FIRST, 0.95),
        "first_token_p50_s": of(FIRST, PACE, 0.5),
        "first_token_p95_s": of(FIRST, PACE, 0.95),
    }


def quantile(counts: Sequence[float], share: float) -> float | None:
    """A quantile of a histogram over `SECONDS`, as Prometheus' ``histogram_quantile`` estimates it; None of nothing.

    Args:
        counts: Of each bucket, and last of what is above the last bound.
        share: From 0 to 1.
    """
    left = share * sum(counts)
    if not left:
        return None
    lower = 0.0
    for bound, count in zip(SECONDS, counts, strict=False):
        if count >= left:
            return round(lower + (bound - lower) * left / count, 4)
        left -= count
        lower = bound
    return lower
