"""Releases beside each other, each with a Python environment of its own, and links to the one in use and the one before."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hx_gateway.ops.host import Host, Refused, last_words

if TYPE_CHECKING:
    from hx_gateway.ops.bundle import Source
    from hx_gateway.ops.plan import Undo

COMPLETE = "release.json"
"""Written last into a release: without it, the release was never finished."""
_HOMES = ("home", "root")  # first part of paths that the service cannot see
_KEPT = 3  # releases that stay, the one in use among them
_PLACES = ("/usr/bin", "/usr/local/bin")


def python_fault(path: Path) -> str:
    """Why the service cannot run this Python; empty if it can."""
    if not path.exists():
        return f"{path} does not exist"
    real = Path(os.path.realpath(path))
    if real.parts[1:2] and real.parts[1] in _HOMES or real.parts[1:3] == ("run", "user"):
        return (
            f"{path} is {real}, below a home directory, which the service does not see (it would end with 203/EXEC); "
            "name another with --python, such as /usr/bin/python3"
        )
    return ""


def find_python(wanted: str) -> Path | None:
    """A Python that the service can run.

    Args:
        wanted: Its version, such as ``3.11``; empty for 3.11 or newer.
    """
    names = [f"python{wanted}"] if wanted else [f"python3.{minor}" for minor in range(14, 10, -1)]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(folder) / name for name in names for folder in _PLACES]
    if not wanted or wanted == running:
        places.append(Path(sys.executable))
    return next((place for place in places if not python_fault(place)), None)


def contents(release: Path) -> dict[str, Any]:
    """What was noted when a release was finished; empty for one that is not complete."""
    try:
        found = json.loads((release / COMPLETE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def installed(host: Host) -> list[Path]:
    """The complete releases, oldest first."""
    found = [path for path in host.releases.iterdir() if contents(path)] if host.releases.is_dir() else []
    return sorted(found, key=lambda path: (contents(path).get("installed", 0), path.name))


def place_of(host: Host, source: Source) -> Path:
    """Where a source is installed: below its version, or where another build of the same version is, below that and its digest."""
    path = host.releases / source.version
    found = contents(path)
    return path if not found or found.get("digest") == source.digest else host.releases / f"{source.version}+{source.digest[:8]}"


def install(host: Host, source: Source, python: Path) -> Undo:
    """Install a release beside the others; what an earlier run left half done of it is made anew. Returns what removes it.

    Raises:
        Refused: It cannot be installed.
    """
    path = place_of(host, source)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pip = source.pip
        host.do(python, "-m", "venv", *(["--without-pip"] if pip is not None else []), path)
        inside = path / "bin/python"
        tool: list[str | Path] = [inside, pip / "pip"] if pip is not None else [inside, "-m", "pip"]
        options: list[str | Path] = ["--quiet", "--disable-pip-version-check", "--no-input"]
        if source.wheels is not None:
            options += ["--no-index", "-f", source.wheels]
        extras = f"[{','.join(source.extras)}]" if source.extras else ""
        # An index may have a password in its address, which all may read in the list of processes.
        env = {**os.environ, "PIP_INDEX_URL": source.index} if source.index else None
        host.do(*tool, "install", *options, f"hx-gateway{extras}=={source.version}", env=env, within_s=1800)
        said = host.do(path / "bin/hx-gateway", "--version").strip()
        if said != f"hx-gateway {source.version}":
            raise Refused(f"what was installed says it is {said!r}, not {source.version}")
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    order = max((contents(other).get("installed", 0) for other in installed(host)), default=0) + 1
    facts = {"version": source.version, "digest": source.digest, "extras": list(source.extras), "installed": order}
    host.write(path / COMPLETE, json.dumps(facts, indent=2).encode() + b"\n", 0o644)
    return partial(shutil.rmtree, path)


def switch(host: Host, release: Path) -> Undo:
    """Make a release the one in use, and the one in use the one before; returns what takes that back."""
    before = {link: os.readlink(link) if link.is_symlink() else None for link in (host.current, host.previous)}
    if (used := host.release()) is not None and used != release:
        host.link(host.previous, Path("releases") / used.name)
    host.link(host.current, Path("releases") / release.name)

    def undo() -> None:
        for link, target in before.items():
            if target is None:
                link.unlink(missing_ok=True)
            else:
                host.link(link, Path(target))

    return undo


def surplus(host: Host) -> list[Path]:
    """Releases that are neither in use nor the one before nor among the latest."""
    linked = {host.release(), host.release(host.previous)}
    return [path for path in installed(host)[:-_KEPT] if path not in linked]


def schema_fault(host: Host, release: Path) -> str:
    """Why a release cannot work with the database as it is; empty if it can. A database that does not answer is no reason."""
    done = host.gateway(release, "db", "status", host.config, "--json")
    try:
        found = json.loads(done.stdout)
    except ValueError:
        return ""
    schema, newest = str(found.get("schema", "")), str(found.get("newest", ""))
    if not schema or schema == newest or _number(schema) <= _number(newest):
        return ""
    return f"the database has schema {schema}, and release {release.name} knows up to {newest}"


def upgrades(host: Host, release: Path) -> bool:
    """Whether a release changes the schema of the database, or may, so that it must not start beside the one that runs."""
    try:
        found = json.loads(host.gateway(release, "db", "status", host.config, "--json").stdout)
    except ValueError:
        return True
    return bool(found["schema"]) and found["schema"] != found["newest"]


def revert(host: Host, release: Path) -> None:
    """Have a release that changed the schema of the database put back the copy from before; the service must not run.

    Raises:
        Refused: There is none.
    """
    done = host.gateway(release, "db", "revert", host.config)
    if done.returncode:
        raise Refused(f"the database stays as it is: {last_words(done)}")
    host.log_line(done.stdout.partition("\n")[0])


def schema_back(host: Host, release: Path) -> None:
    """After a release failed that changed the schema: have the one before find the database that it knows. What is in the way is logged."""
    before = host.release(host.previous)
    if before is not None and schema_fault(host, before):
        host.run("systemctl", "stop", host.unit.name)
        try:
            revert(host, release)
        except Refused as error:
            host.log_line(str(error))


def _number(revision: str) -> int:
    """Place of a schema in the order of schemas, which their names begin with."""
    found = re.search(r"\d+", revision)
    return int(found[0]) if found else 0
