"""Processes that begin at the same moment."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def together(command: Sequence[str], many: int = 3) -> list[list[str]]:
    """Run a program so many times at once; the words of what each said after ``ready``.

    Args:
        command: A program that says ``ready``, then waits for a line.
        many: How many times.
    """
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(many)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    return [child.communicate()[0].split() for child in children]
