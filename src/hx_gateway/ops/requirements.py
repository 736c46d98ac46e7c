"""What a machine must have before anything is changed on it, each lack with the package that brings it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hx_gateway.ops.release import find_python, python_fault

if TYPE_CHECKING:
    from hx_gateway.ops.bundle import Source
    from hx_gateway.ops.host import Host

# Program, and the packages that bring it: Debian and Ubuntu, Fedora and RHEL.
PROGRAMS = (
    ("systemctl", "systemd", "systemd"),
    ("journalctl", "systemd", "systemd"),
    ("getent", "libc-bin", "glibc-common"),
    ("useradd", "passwd", "shadow-utils"),
    ("userdel", "passwd", "shadow-utils"),
)
_LEAST_FREE = 600 << 20  # bytes: a release with every optional part, and room to unpack it

Which = Callable[[str], "str | None"]


def lacks(host: Host, source: Source, python: Path | None, which: Which = shutil.which, uid: int | None = None) -> Iterator[str]:
    """Everything that keeps the gateway from being installed here, each with its remedy.

    Args:
        host: The machine.
        source: What is to be installed.
        python: The Python asked for; None to find one.
        which: Finds a program.
        uid: Whose rights we have; None for ours.
    """
    if (os.getuid() if uid is None else uid) != 0:
        yield "only root can install a service: run it again with sudo"
    if not (host.root / "run/systemd/system").is_dir():
        yield "this machine was not started by systemd; in a container run `hx-gateway serve` as its program instead"
    for program, debian, fedora in PROGRAMS:
        if which(program) is None:
            yield f"{program} is missing: {_package(which, debian, fedora)}"
    if python is not None:
        if fault := python_fault(python):
            yield fault
            python = None
    elif (python := find_python(source.python)) is None:
        version = source.python or "3.11 or newer"
        package = f"python{source.python}" if source.python else "python3"
        running = python_fault(Path(sys.executable))
        yield f"no Python {version} that the service could run: {_package(which, package, package)}" + (f" ({running})" if running else "")
    if python is not None and source.pip is None and not _has_ensurepip(host, python):
        yield f"{python} cannot make environments: {_package(which, 'python3-venv', 'python3-pip')}"
    place = next(path for path in (host.prefix, *host.prefix.parents) if path.exists())
    if (free := shutil.disk_usage(place).free) < _LEAST_FREE:
        yield f"{place} has {free >> 20} MB free, and {_LEAST_FREE >> 20} MB are needed: remove releases that are no longer used"


def strange(expected: str) -> str:
    """Why this machine is not the one that has the address ``expected``; empty if it is.

    Args:
        expected: An IP address, or a name that stands for one.
    """
    try:
        found = socket.getaddrinfo(expected, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"--expect-address {expected} cannot be resolved: {error.strerror or error}"
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0, *address[2:]))
            except OSError:
                continue
            return ""
    return f"this machine ({socket.gethostname()}) does not have the address {expected}; if it is the right one, say --force or FORCE=1"


def taken(port: int) -> bool:
    """Whether somebody on this machine listens on a TCP port."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
    return False


def _package(which: Which, debian: str, fedora: str) -> str:
    if which("dnf") is not None and which("apt-get") is None:
        return f"dnf install {fedora}"
    return f"apt install {debian}" if which("apt-get") is not None else f"install the package {debian} (Debian) or {fedora} (Fedora)"


def _has_ensurepip(host: Host, python: Path) -> bool:
    return host.run(python, "-c", "import ensurepip, venv").returncode == 0
