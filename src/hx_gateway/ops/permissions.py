"""Who owns what of an installation: for a server in production, and for a machine where somebody works on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hx_gateway.ops.host import USER, Host, owner_of


@dataclass(frozen=True, slots=True)
class Rule:
    """How one file, or everything below one folder, is to be.

    Args:
        path: It.
        user: Its owner.
        group: Its group.
        mode: Its mode, of files; folders may be entered where files may be read.
        below: Whether this is so for everything below it.
    """

    path: Path
    user: str
    group: str
    mode: int
    below: bool = False

    def wanted(self, path: Path) -> tuple[str, str, int]:
        """Owner, group and mode of ``path``, which is this or below it."""
        return self.user, self.group, self.mode | (self.mode & 0o444) >> 2 if path.is_dir() else self.mode


@dataclass(frozen=True, slots=True)
class Deviation:
    """A file that is not as it should be; owners and modes as ``user:group 0640``."""

    path: Path
    found: str
    wanted: str


def rules(host: Host, developer: str = "") -> list[Rule]:
    """How everything is to be.

    Args:
        host: The machine.
        developer: Who works on configuration and data; empty for production.
    """
    who, group = developer or "root", USER
    more = 0o020 if developer else 0
    return [
        Rule(host.prefix, "root", "root", 0o644),
        Rule(host.record_file, "root", "root", 0o600),
        Rule(host.configuration, who, group, 0o640 | more, below=True),
        Rule(host.state, USER, group, 0o640 | more),
        Rule(host.log, USER, group, 0o640 | more),
        Rule(host.unit, "root", "root", 0o644),
    ]


def deviations(host: Host, developer: str = "") -> Iterator[Deviation]:
    """Every file that is not as the rules say."""
    for path, (user, group, mode) in _each(host, developer):
        found = owner_of(path)
        if found != (user, group, mode):
            yield Deviation(path, _text(*found), _text(user, group, mode))


def put_right(host: Host, developer: str = "") -> list[Deviation]:
    """Make everything as the rules say; returns what was not."""
    found = list(deviations(host, developer))
    for path, (user, group, mode) in _each(host, developer):
        host.own(path, user, group, mode)
    return found


def _each(host: Host, developer: str) -> Iterator[tuple[Path, tuple[str, str, int]]]:
    for rule in rules(host, developer):
        if rule.path.exists():
            yield rule.path, rule.wanted(rule.path)
            if rule.below:
                for path in sorted(rule.path.rglob("*")):
                    if not path.is_symlink():
                        yield path, rule.wanted(path)


def _text(user: str, group: str, mode: int) -> str:
    return f"{user}:{group} {mode:04o}"
