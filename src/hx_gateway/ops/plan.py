"""A plan of steps that can be shown before it is run, run twice, broken off anywhere and run again, and taken back when it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hx_gateway.ops.host import Refused

Undo = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Step:
    """One step.

    Args:
        name: One word, for logs.
        goal: What is so afterwards, for people.
        pending: Why it is not so yet; empty when it is. Looks and changes nothing.
        apply: Makes it so; what is half done when it is broken off, it mends the next time. Returns what takes it back, or None.
        test: Whether it only tests and changes nothing: it is run every time, and not looked at again.
    """

    name: str
    goal: str
    pending: Callable[[], str]
    apply: Callable[[], Undo | None]
    test: bool = False


class Failed(Exception):
    """A step failed; the message says which and why. What was changed before has been taken back."""


def shown(steps: Sequence[Step]) -> list[tuple[str, str, str]]:
    """Each step's name, its goal, and why there is something to do for it; empty where there is not."""
    return [(step.name, step.goal, "it is tested every time" if step.test else step.pending()) for step in steps]


def carry_out(steps: Sequence[Step], say: Callable[[str], object], recover: Callable[[], object] = lambda: None) -> int:
    """Run a plan; returns how many steps changed something.

    Args:
        steps: In order.
        say: Told one line for every step.
        recover: Called after a failure when the steps are taken back.

    Raises:
        Failed: A step could not be done.
    """
    undos: list[tuple[str, Undo]] = []
    changes = 0
    for step in steps:
        try:
            why = "" if step.test else step.pending()
            if not step.test and not why:
                say(f"{step.name:<14} nothing to do: {step.goal}")
                continue
            undo = step.apply()
            if undo is not None:
                undos.append((step.name, undo))
            if not step.test and (still := step.pending()):
                raise Refused(f"it was done, and yet {still}")
            changes += not step.test
            say(f"{step.name:<14} {'good' if step.test else 'done'}: {step.goal}" + (f" ({why})" if why else ""))
        except (Refused, OSError) as error:
            say(f"{step.name:<14} FAILED: {error}")
            _take_back(undos, say, recover if changes else lambda: None)
            raise Failed(f"{step.name}: {error}") from error
        except BaseException:
            say(f"{step.name:<14} broken off; run it again to go on from here")
            raise
    return changes


def _take_back(undos: list[tuple[str, Undo]], say: Callable[[str], object], recover: Callable[[], object]) -> None:
    for name, undo in [*reversed(undos), ("recovery", recover)]:
        try:
            undo()
            if name != "recovery":
                say(f"{name:<14} taken back")
        except (Refused, OSError) as error:  # the rest is taken back all the same
            say(f"{name:<14} could not be taken back: {error}")
