"""Brings the test suites that others wrote for their clients, in an environment of their own, and runs them against a gateway."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[3]
CACHE = ROOT / ".hx" / "suites"
REQUIREMENTS = Path(__file__).with_name("suite-requirements.txt")
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
_SETTINGS = """\
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
asyncio_default_test_loop_scope = session
"""

# Without what takes a third of the time: source lines around each failure, and a plug-in of LangSmith that nothing here uses.
_LEAN = ("-p", "no:cacheprovider", "-p", "no:langsmith_plugin", "--tb=native")


class Unavailable(Exception):
    """pip could not bring what is needed; the message is pip's."""


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(map(str, command[:5]))} … ended with status {done.returncode}: {done.stderr.strip()[-1500:]}")


def environment() -> Path:
    """The Python of an environment with everything in the requirements; made the first time, and when they change.

    Raises:
        Unavailable: pip could not install it.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + CONSTRAINTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = CACHE / f"venv-{wanted}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for old in CACHE.glob("venv-*"):
            shutil.rmtree(old, ignore_errors=True)
        _run(sys.executable, "-m", "venv", folder)
        install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        _run(*install, "-c", CONSTRAINTS, "-r", REQUIREMENTS)
        complete.touch()
    return python


def openai_sources() -> Path:
    """The source archive of OpenAI's SDK, of the version installed here, unpacked: its tests are in no wheel.

    Raises:
        Unavailable: pip could not fetch it.
    """
    version = importlib.metadata.version("openai")
    folder = CACHE / f"openai-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fetched:
            download = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
            _run(*download, "--no-deps", "--no-binary", "openai", "--dest", fetched, f"openai=={version}")
            (archive,) = Path(fetched).glob("openai-*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(fetched, filter="data")
            os.replace(Path(fetched) / f"openai-{version}", folder)
    return folder


@dataclass(frozen=True)
class Result:
    """How a suite ended.

    Args:
        passed: Names of tests.
        failed: Names of tests, and what each said.
        skipped: Names of tests.
        output: What pytest wrote.
    """

    passed: frozenset[str]
    failed: dict[str, str]
    skipped: frozenset[str]
    output: str


def run(python: Path, folder: Path, environ: dict[str, str], *arguments: str | Path) -> Result:
    """Run pytest in ``folder``, without any settings of ours or theirs.

    Args:
        python: Of the suites' environment.
        folder: Where to run.
        environ: Variables added to the environment.
        arguments: Files to run, and options.
    """
    with tempfile.TemporaryDirectory() as made:
        settings, report = Path(made) / "pytest.ini", Path(made) / "report.xml"
        settings.write_text(_SETTINGS)
        done = subprocess.run(
            [python, "-m", "pytest", "-q", *_LEAN, "-c", settings, "--rootdir", folder, "--junitxml", report, *arguments],
            cwd=folder,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert report.exists(), done.stdout
        cases = ElementTree.parse(report).getroot().iter("testcase")
        passed, skipped, failed = set(), set(), {}
        for case in cases:
            name = f"{case.get('classname')}.{case.get('name')}"
            faults = [fault for kind in ("failure", "error") for fault in case.findall(kind)]
            if faults:
                failed[name] = "\n".join(f"{fault.get('message')}\n{fault.text}" for fault in faults)
            elif case.find("skipped") is not None:
                skipped.add(name)
            else:
                passed.add(name)
    return Result(frozenset(passed), failed, frozenset(skipped), done.stdout)


@dataclass(frozen=True)
class Expected:
    """A failure that is not the gateway's.

    Args:
        tests: Regular expression for the whole name.
        count: How many tests there are.
        says: What each says, or the failure is another one.
        reason: Why.
    """

    tests: str
    count: int
    says: str
    reason: str


def unexplained(result: Result, expected: Sequence[Expected]) -> list[str]:
    """What differs from the expectation: failures without explanation, and explanations without their failures."""
    found = []
    left = dict(result.failed)
    for rule in expected:
        matching = [name for name, text in left.items() if re.fullmatch(rule.tests, name) and rule.says in text]
        if len(matching) != rule.count:
            found.append(f"{len(matching)} tests, not {rule.count}, fail because {rule.reason}")
        for name in matching:
            del left[name]
    return found + [f"{name}: {text.strip()[:2000]}" for name, text in left.items()]
