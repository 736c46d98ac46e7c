"""Reads metrics in Prometheus' text format, as far as our own commands need them."""

from __future__ import annotations

import re
from collections import defaultdict

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")


class Scrape:
    """One look at the metrics of a gateway.

    Args:
        text: What ``/metrics`` answered.
    """

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
        for line in text.splitlines():
            if (found := _SAMPLE.match(line)) is not None:
                labels = {
                    name: _ESCAPED.sub(lambda one: "\n" if one[1] == "n" else one[1], value)
                    for name, value in _LABEL.findall(found[2] or "")
                }
                self._samples[found[1]].append((labels, float(found[3])))

    def sum(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have those labels; 0 where there is none."""
        return sum(value for own, value in self._samples.get(name, ()) if labels.items() <= own.items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a metric's samples by the value of one label."""
        sums: dict[str, float] = defaultdict(float)
        for own, value in self._samples.get(name, ()):
            sums[own.get(label, "")] += value
        return dict(sums)

    def labels(self, name: str) -> list[dict[str, str]]:
        """The labels of each of a metric's samples."""
        return [own for own, _ in self._samples.get(name, ())]
