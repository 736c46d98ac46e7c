"""The machine that the gateway is installed on: where things lie, files written whole or not at all, commands run and heard."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

USER = "hx-gateway"
"""System user and group of the service."""
SERVICE = "hx-gateway.service"
PORT_LIMIT = 1024  # below it, ports need a right of their own
Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Refused(Exception):
    """Something cannot or must not be done; the message says why and what to do."""


class Host:
    """A machine.

    Args:
        root: What stands for ``/``.
        run: Runs a command, as `subprocess.run`.
    """

    def __init__(self, root: Path = Path("/"), run: Run = subprocess.run) -> None:
        self.root = root
        self._run = run
        self.prefix = root / "opt/hx-gateway"
        self.releases = self.prefix / "releases"
        self.current = self.prefix / "current"
        self.previous = self.prefix / "previous"
        self.record_file = self.prefix / "deployed.json"
        self.configuration = root / "etc/hx-gateway"
        self.config = self.configuration / "config.yaml"
        self.environment = self.configuration / "environment"
        self.state = root / "var/lib/hx-gateway"
        self.log = root / "var/log/hx-gateway"
        self.unit = root / "etc/systemd/system" / SERVICE
        self.drop_ins = root / "etc/systemd/system" / f"{SERVICE}.d"
        self.litellm = self.drop_ins / "zz-litellm.conf"  # read last, so that it wins
        self.command = root / "usr/local/bin/hx-gateway"

    def run(
        self,
        *command: str | Path,
        given: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        within_s: float = 600,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its status is not looked at.

        Args:
            command: Program and arguments.
            given: Its standard input.
            user: Who runs it; None for us.
            env: Its whole environment; None for ours.
            within_s: The longest it may take, in seconds.

        Raises:
            Refused: It cannot be run, or does not end.
        """
        who: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if user else {}
        words = [str(word) for word in command]
        try:
            return self._run(
                words, input=given or "", env=env, text=True, capture_output=True, check=False, timeout=within_s, cwd="/", **who
            )
        except FileNotFoundError:
            raise Refused(f"{words[0]} is not there") from None
        except subprocess.TimeoutExpired:
            raise Refused(f"`{' '.join(words)}` did not end within {within_s:g} s") from None

    def do(self, *command: str | Path, **how: Any) -> str:
        """Run a command that must go well; returns what it wrote to its standard output.

        Raises:
            Refused: It failed; the message has the end of what it said.
        """
        done = self.run(*command, **how)
        if done.returncode:
            raise Refused(f"`{' '.join(str(word) for word in command)}` failed (status {done.returncode}): {last_words(done)}")
        return done.stdout

    def systemctl(self, *words: str) -> str:
        """Have systemd do something.

        Raises:
            Refused: It failed.
        """
        return self.do("systemctl", *words)

    def active(self) -> bool:
        """Whether the service runs."""
        return self.run("systemctl", "is-active", SERVICE).stdout.strip() in ("active", "reloading", "activating")

    def shown(self, name: str) -> str:
        """A property of the service, as systemd writes it."""
        return self.run("systemctl", "show", "--value", "-p", name, SERVICE).stdout.strip()

    def main_pid(self) -> int:
        """Process id of the service; 0 when it does not run."""
        text = self.shown("MainPID")
        return int(text) if text.isdigit() else 0

    def journal(self, since_s: float, lines: int = 30) -> str:
        """The end of what the service wrote since a moment in Unix time."""
        self.run("journalctl", "--sync")  # what it wrote last is still on its way
        said = self.run("journalctl", "-u", SERVICE, "-S", f"@{int(since_s)}", "--no-pager", "-o", "cat").stdout
        return "\n".join(said.rstrip().splitlines()[-lines:])  # given both a time and a number, journalctl tells of the beginning

    def user_known(self) -> bool:
        """Whether the service's user exists."""
        return self.run("getent", "passwd", USER).returncode == 0

    def own(self, path: Path, user: str, group: str, mode: int) -> None:
        """Give a file to somebody; the right to give away is root's, so below another root only the mode is set."""
        path.chmod(mode)
        if self.root == Path("/"):
            shutil.chown(path, user, group)

    def write(self, path: Path, content: bytes, mode: int, group: str = "root") -> None:
        """Write a file of root's whole or not at all: who reads it sees the old content or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        self.own(unfinished, "root", group, mode)
        unfinished.replace(path)

    def link(self, path: Path, target: Path) -> None:
        """Point a symbolic link somewhere else in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        unfinished.symlink_to(target)
        unfinished.replace(path)

    def release(self, link: Path | None = None) -> Path | None:
        """The release that ``link`` (else `current`) points to; None where there is none."""
        link = link or self.current
        return self.releases / os.readlink(link).rpartition("/")[2] if link.is_symlink() else None

    def record(self) -> dict[str, Any]:
        """What the last deployment noted."""
        try:
            found = json.loads(self.record_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, **facts: Any) -> None:
        """Add to what is noted; None takes a fact away."""
        facts = {name: value for name, value in {**self.record(), **facts}.items() if value is not None}
        self.write(self.record_file, json.dumps(facts, indent=2).encode() + b"\n", 0o600)

    def runs(self, release: str) -> str:
        """What tells whether a running service was started with what is there now: release, unit, and environment file."""
        return digest(release.encode(), self.unit, self.environment, self.litellm)

    def started(self) -> str:
        """What must be the same for a running process to hand over to its successor."""
        return digest(self.unit, self.environment, self.litellm)

    def log_line(self, text: str) -> None:
        """Add a line with the time (UTC) to the log of deployments, where its folder is there."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
        flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
        with contextlib.suppress(OSError), open_unlinked(self.log / "deploy.log", flags, "ab") as stream:
            stream.write(line.encode())

    def variables(self) -> dict[str, str]:
        """The environment file as the service gets it, with where it keeps its state."""
        found = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent", "STATE_DIRECTORY": str(self.state)}
        with contextlib.suppress(OSError):
            found |= environment_of(self.environment.read_text(encoding="utf-8"))
        return found

    def gateway(self, release: Path, *words: str | Path, secret: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a release's own command as the service's user, in the service's environment, with ``secret`` as the key it asks with."""
        user = USER if self.root == Path("/") else None
        env = {**self.variables(), **({"HX_API_KEY": secret, "MASTER_KEY": secret} if secret else {})}
        return self.run(release / "bin/hx-gateway", *words, user=user, env=env, **how)


def open_unlinked(path: Path, flags: int = os.O_RDONLY, mode: str = "rb") -> IO[bytes]:
    """Open a file in a folder of the service's user: a link there could lead root to what that user may not touch.

    Args:
        path: The file; one that is made is readable for its owner and group.
        flags: As `os.open` takes them.
        mode: As `os.fdopen` takes it.

    Raises:
        OSError: It is a link, or cannot be opened.
    """
    return os.fdopen(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640), mode)


def last_words(done: subprocess.CompletedProcess[str], lines: int = 6) -> str:
    """What a command said at its end."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-lines:]
    return "\n".join(said).removeprefix("hx-gateway: ") or "it said nothing"


def environment_of(text: str) -> dict[str, str]:
    """The variables in the text of an environment file; systemd leaves out what has another kind of name."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name.strip().isidentifier():
            quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
            found[name.strip()] = value[1:-1] if quoted else value
    return found


def digest(*contents: bytes | Path) -> str:
    """SHA-256 in hex over contents, or over files that may be missing."""
    whole = hashlib.sha256()
    for content in contents:
        data = content if isinstance(content, bytes) else content.read_bytes() if content.exists() else b""
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 in hex over a file of any size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def owner_of(path: Path) -> tuple[str, str, int]:
    """User, group and mode of a file; numbers where they have no name."""
    found = path.lstat()
    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = str(found.st_uid)
    try:
        import grp

        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return user, group, found.st_mode & 0o7777
