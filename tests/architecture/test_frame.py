"""The frame: pins agree with each other, and make and the build server say what they do."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from tests.architecture.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in PROJECT["dependencies"] + [line for extra in extras for line in extra]]


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in pins(), f"{name} is not in constraints.txt: make constraints"
        assert requirement.specifier.contains(pins()[name]), f"{name}=={pins()[name]} is outside of {requirement.specifier}"


def test_everything_a_dependency_brings_along_is_pinned_too() -> None:
    pinned = pins()
    for name in pinned:
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # pinned for another platform
        for requirement in map(Requirement, required):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                brought = re.sub(r"[-_.]+", "-", requirement.name).lower()
                assert brought in pinned or brought in {"pip", "setuptools", "wheel"}, f"{name} brings {brought}, which is not pinned"


def test_what_the_door_is_built_on_is_pinned_exactly() -> None:
    exact = {requirement.name: str(requirement.specifier) for requirement in requirements()}
    for name in ("uvicorn", "httptools", "xllamacpp"):
        assert exact[name].startswith("=="), f"{name} must be pinned exactly in pyproject.toml"


def test_each_dependency_has_its_defence() -> None:
    page = (ROOT / "docs" / "explanation" / "decisions" / "0002-dependencies.md").read_text(encoding="utf-8")
    local_and_base = PROJECT["dependencies"] + [
        line for extra, lines in PROJECT["optional-dependencies"].items() if extra != "dev" for line in lines
    ]
    for line in local_and_base:
        assert f"**{Requirement(line).name}**" in page, f"{line}: say in 0002-dependencies.md why it is needed"


def test_make_lists_every_target_with_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    declared = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())  # type: ignore[index]
    listed = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert listed == declared
    shown = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in shown for target in declared)


def test_an_old_python_is_refused_with_a_readable_sentence(tmp_path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = subprocess.run(["make", "venv", f"PYTHON={old}", f"VENV={tmp_path}/venv"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.9.2; HX Gateway needs Python 3.11 or newer" in done.stdout


def test_the_build_server_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_this_python_is_one_the_project_supports() -> None:
    assert sys.version_info >= (3, 11)
    assert PROJECT["requires-python"] == ">=3.11"
