"""A machine below a folder: the programs that a deployment calls do what is needed of them, and each can be broken off."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.ops.bundle import Source
from hx_gateway.ops.host import Host


class BrokenOff(BaseException):
    """Like a power cut: nothing catches it."""


class Pretended:
    """The programs.

    Args:
        root: The machine's root.

    Attributes:
        calls: Every command that was run.
        break_at: The call, counted from 1, at which everything ends; 0 for none.
        failing: A word: commands with it fail.
    """

    def __init__(self, root: Path) -> None:
        self.host = Host(root, self._run)
        (root / "run/systemd/system").mkdir(parents=True)
        self.calls: list[list[str]] = []
        self.break_at = 0
        self.failing = ""
        self.user = self.enabled = self.active = False
        self.pid = 0
        self.keys: list[str] = []
        self.findings: list[str] = []
        self.problems: list[dict[str, str]] = []
        self.port = 18999
        self.schema, self.newest = "0003", "0003"
        self.newest_of: dict[str, str] = {}  # releases that know another schema as the newest

    def _run(
        self, words: list[str], *, input: str = "", env: Mapping[str, str] | None = None, **_: Any
    ) -> subprocess.CompletedProcess[str]:
        self.calls.append(words)
        if self.break_at and len(self.calls) == self.break_at:
            raise BrokenOff
        if self.failing and any(self.failing in word for word in words):
            return subprocess.CompletedProcess(words, 1, "", f"{self.failing}: as planned")
        program, *rest = words
        said: str | None = ""
        if program.endswith("/bin/hx-gateway"):
            said = self._gateway(Path(program), rest, input)
        elif "venv" in rest:
            (Path(rest[-1]) / "bin").mkdir(parents=True)
        elif "install" in rest:
            (Path(program).parent / "hx-gateway").write_text(rest[-1].rpartition("==")[2])
        else:
            said = self._system(program, rest)
        return subprocess.CompletedProcess(words, 1 if said is None else 0, said or "", "" if said is not None else "no")

    def _system(self, program: str, rest: list[str]) -> str | None:
        if program == "getent":
            return "" if self.user else None
        if program in ("useradd", "userdel"):
            self.user = program == "useradd"
        elif program == "systemctl":
            verb = next(word for word in rest if not word.startswith("-"))
            if verb == "is-enabled":
                return "enabled" if self.enabled else "disabled"
            if verb == "is-active":
                return "active" if self.active else "inactive"
            if verb == "show":
                return str(self.pid if self.active else 0)
            if verb in ("enable", "disable"):
                self.enabled = verb == "enable"
                self.active = self.active and "--now" not in rest
            if verb in ("start", "restart", "stop"):
                self.active = verb != "stop"
                self.pid += verb != "stop"
        return ""

    def _gateway(self, program: Path, rest: list[str], given: str) -> str | None:
        if rest == ["--version"]:
            return f"hx-gateway {program.read_text()}"
        if rest[0] == "check":
            checked = {
                "ok": not self.problems, "listen": {"url": f"http://127.0.0.1:{self.port}"}, "settings": [], "warnings": [],
                "problems": self.problems,
                "keys": {"master": False, "names": [], "stored": len(self.keys)}, "default_model": None,
                "live": {"findings": [{"level": "error", "message": finding} for finding in self.findings]},
            }  # fmt: skip
            return json.dumps(checked)
        if rest[0] == "import-litellm":  # the real one
            return str(CliRunner().invoke(application(), list(map(str, rest))).stdout)
        if rest[0] == "db":
            if rest[1] == "revert":
                self.schema = self.newest
            return json.dumps({"schema": self.schema, "newest": self.newest_of.get(program.parent.parent.name, self.newest)})
        if rest[0] == "keys":
            if rest[1] == "create" and rest[2] in self.keys:
                return None
            self.keys.append(rest[2])
            return f"\n{given or 'hx-made-on-this-machine'}\n"
        return None


def source(version: str = "1.0.0", digest: str = "d") -> Source:
    """A release in wheels that nobody looks into."""
    return Source(version, Path("/srv/wheels"), "", ("local",), digest, names=("pip-26.0-py3-none-any.whl",))
