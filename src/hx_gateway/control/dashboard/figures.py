"""Rates of the whole machine: what all workers have counted, and how fast it grows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hx_gateway.telemetry.metrics import COMPLETION, COUNT, PROMPT

if TYPE_CHECKING:
    from hx_gateway.control.dependencies import Gateway

WINDOW_S = 10.0
"""Seconds that a rate is a mean of."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What an endpoint does in a second.

    Args:
        requests: Requests that came to an end.
        read: Tokens of prompts.
        written: Tokens of answers.
    """

    requests: float = 0.0
    read: float = 0.0
    written: float = 0.0


def counted(gateway: Gateway) -> dict[str, tuple[float, float, float]]:
    """Requests, tokens read and tokens written since the start, by endpoint; what never reached one under the empty name."""
    sums: dict[str, tuple[float, float, float]] = {}
    for entries, _ in gateway.telemetry.book.pages():
        for name, labels, cells in entries:
            if name == "requests":
                endpoint, cached = labels[3], labels[6] != "engine"
                requests, read, written = sums.get(endpoint, (0.0, 0.0, 0.0))
                tokens = (0.0, 0.0) if cached else (cells[PROMPT], cells[COMPLETION])
                sums[endpoint] = (requests + cells[COUNT], read + tokens[0], written + tokens[1])
    return sums


class Rates:
    """Rates by endpoint, as of the samples taken within the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, dict[str, tuple[float, float, float]]]] = deque()

    def of(self, gateway: Gateway) -> dict[str, Rate]:
        """Take a sample, and what has grown since the oldest; nothing from the first."""
        now_s, now = gateway.clock.monotonic(), counted(gateway)
        self._samples.append((now_s, now))
        while now_s - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        then_s, then = self._samples[0]
        if now_s <= then_s:
            return {}
        nothing = (0.0, 0.0, 0.0)
        return {
            name: Rate(*((value - before) / (now_s - then_s) for value, before in zip(sums, then.get(name, nothing), strict=True)))
            for name, sums in now.items()
        }
