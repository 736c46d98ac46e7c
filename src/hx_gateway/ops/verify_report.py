"""What `verify` found: one result a check, as a report for people, for programs (JSON) and for continuous integration (JUnit)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


class Fault(Exception):
    """A check failed; the message says what was seen, and what should have been."""


class Skipped(Exception):
    """A check could not be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """One check.

    Args:
        check: What was looked at, e.g. ``stream``.
        subject: Of what: a model, a group, an endpoint, a route; empty for the whole gateway.
        state: ``passed``, ``failed`` or ``skipped``.
        detail: What was seen.
        taken_s: Seconds it took.
    """

    check: str
    subject: str
    state: str
    detail: str
    taken_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.check}{f' of {self.subject}' if self.subject else ''}: {self.detail}"


@dataclass(slots=True)
class Report:
    """All results, in the order of the checks.

    Args:
        url: What was verified.
        version: Its version, where it told.
        at_s: When, in Unix time.
        results: One a check.
        counters: For each name: requests sent to it, and those answered well.
        on_result: Called with each result as it comes.
    """

    url: str
    version: str = ""
    at_s: float = field(default_factory=time.time)
    results: list[Result] = field(default_factory=list)
    counters: dict[str, list[int]] = field(default_factory=dict)
    on_result: Callable[[Result], object] = lambda result: None

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and anything was checked."""
        return not self.failures and any(one.state == PASSED for one in self.results)

    @property
    def failures(self) -> list[Result]:
        """The checks that failed."""
        return [one for one in self.results if one.state == FAILED]

    def count(self, state: str) -> int:
        """How many checks ended so."""
        return sum(one.state == state for one in self.results)

    def counted(self, name: str, well: bool) -> None:
        """Count one request to a name."""
        sent = self.counters.setdefault(name, [0, 0])
        sent[0] += 1
        sent[1] += well

    def check(self, check: str, subject: str, work: Callable[[], str | None]) -> bool:
        """Make one check: ``work`` returns what it saw, or raises `Fault` or `Skipped`. Returns whether it passed."""
        began_s = time.monotonic()
        try:
            state, detail = PASSED, work() or ""
        except Fault as fault:
            state, detail = FAILED, str(fault)
        except Skipped as reason:
            state, detail = SKIPPED, str(reason)
        result = Result(check, subject, state, detail, round(time.monotonic() - began_s, 4))
        self.results.append(result)
        self.on_result(result)
        return state == PASSED

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "ok": self.ok,
            "url": self.url,
            "version": self.version,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at_s)),
            "summary": {state: self.count(state) for state in (PASSED, FAILED, SKIPPED)},
            "counters": {name: {"requests": sent, "ok": well} for name, (sent, well) in self.counters.items()},
            "checks": [
                {"check": one.check, "subject": one.subject, "state": one.state, "detail": one.detail, "seconds": one.taken_s}
                for one in self.results
            ],
        }

    def as_junit(self) -> str:
        """The report as JUnit XML: one test case a check."""
        suite = ElementTree.Element(
            "testsuite",
            name="hx-gateway verify",
            tests=str(len(self.results)),
            failures=str(self.count(FAILED)),
            skipped=str(self.count(SKIPPED)),
            errors="0",
            time=f"{sum(one.taken_s for one in self.results):.3f}",
            timestamp=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.at_s)),
        )
        for one in self.results:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=f"verify.{one.check.replace(' ', '_')}",
                name=one.subject or one.check,
                time=f"{one.taken_s:.3f}",
            )
            text = "".join(character for character in one.detail if character.isprintable())  # XML knows no control characters
            if one.state == PASSED:
                ElementTree.SubElement(case, "system-out").text = text
            else:
                ElementTree.SubElement(case, "failure" if one.state == FAILED else "skipped", message=text)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
