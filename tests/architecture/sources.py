"""The files the architecture tests look at."""

from __future__ import annotations

import ast
import shutil
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src" / "hx_gateway"


def modules() -> list[Path]:
    """Every Python file of the product."""
    return sorted(SOURCES.rglob("*.py"))


def shown(path: Path) -> str:
    """A path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    """The parsed module."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def tracked() -> tuple[Path, ...]:
    """Every file under version control, or about to be; without git (a source archive), every file that is not hidden or built."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run(
            [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True, text=True
        )
        return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())
    skipped = {".git", ".venv", "__pycache__", "node_modules", "build", "dist"}
    return tuple(path for path in sorted(ROOT.rglob("*")) if path.is_file() and not skipped & set(path.relative_to(ROOT).parts))


def text(path: Path) -> str | None:
    """The text of a file; None for anything that is not text."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None
