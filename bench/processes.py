"""What processes use, read from /proc: CPU seconds, memory, children."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, float] | None:
    """Parent and CPU seconds (user and system) of a process; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        found = _stat(int(name))
        if found:
            children.setdefault(found[0], []).append(int(name))
    known: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        known.append(pid)
        todo += children.get(pid, [])
    return known


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds used by all of them so far."""
    return sum((_stat(pid) or (0, 0.0))[1] for pid in pids)


def rss_mb(pids: Iterable[int]) -> float:
    """Resident memory of all of them, in megabytes."""
    total = 0
    for pid in pids:
        try:
            rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Rss:\s+(\d+) kB", rolled, re.MULTILINE)
        total += int(found[1]) if found else 0
    return total / 1024


def busy_s() -> float:
    """CPU seconds the whole machine has worked so far."""
    with open("/proc/stat") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS
