"""Deploys the gateway on this machine, and takes it away again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from hx_gateway.ops.host import USER, Host, Refused
from hx_gateway.ops.plan import Step, carry_out
from hx_gateway.ops.release import find_python
from hx_gateway.ops.requirements import lacks, strange
from hx_gateway.ops.steps import Deployment

Say = Callable[[str], object]


def prepare(host: Host, expected: str, force: bool, deployment: Callable[[Path], Deployment], python: Path | None) -> Deployment:
    """See that this is the right machine and has what is needed.

    Args:
        host: The machine.
        expected: An address it must have; empty for any.
        force: Whether a wrong address is no matter.
        deployment: Makes the deployment with a Python.
        python: The Python asked for; None to find one.

    Raises:
        Refused: With everything that is in the way.
    """
    if expected and not force and (why := strange(expected)):
        raise Refused(why)
    made = deployment(python or Path())
    if found := list(lacks(host, made.source, python)):
        raise Refused("this machine is not ready:\n" + "\n".join(f"  - {one}" for one in found))
    made.python = python or find_python(made.source.python) or Path()
    return made


def deploy(made: Deployment, say: Say) -> int:
    """Carry a deployment out; returns how many steps changed something.

    Raises:
        Failed: It failed, and everything is as it was.
        Refused: Another deployment is under way.
    """
    host = made.host

    def logged(line: str) -> None:
        host.log_line(line)
        say(line)

    with alone(host):
        host.log_line(f"deployment of {made.release.name} begins")
        changes = carry_out(made.steps(), logged, made.recover)
        host.log_line(f"deployment of {made.release.name} ends, {changes} changes")
    return changes


@contextlib.contextmanager
def alone(host: Host) -> Iterator[None]:
    """Keep other deployments on this machine out.

    Raises:
        Refused: There is one.
    """
    folder = host.root / "run"
    folder.mkdir(exist_ok=True)
    lock = os.open(folder / "hx-gateway-deploy.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Refused("another deployment is under way on this machine: wait for it") from None
    finally:
        os.close(lock)


def removal(host: Host, keep_data: bool) -> list[Step]:
    """The plan of taking everything away; with ``keep_data`` configuration, keys, ledger and vectors stay, and the user they belong to."""

    def gone(*paths: Path) -> Step:
        def pending() -> str:
            return "it is there" if any(path.is_symlink() or path.exists() for path in paths) else ""

        def apply() -> None:
            for path in paths:
                if path.is_symlink() or path.is_file():
                    path.unlink()
                elif path.exists():
                    shutil.rmtree(path)

        return Step(paths[0].name, f"{', '.join(str(path) for path in paths)} gone", pending, apply)

    def stop() -> None:
        host.run("systemctl", "disable", "--now", host.unit.name)

    def reload() -> None:
        host.systemctl("daemon-reload")
        host.run("systemctl", "reset-failed", host.unit.name)

    steps = [
        Step(
            "service",
            "the service stopped, and not started with the machine",
            lambda: "it is there" if host.unit.exists() and _up(host) else "",
            stop,
        ),
        gone(host.unit, host.drop_ins),
        Step("systemd", "systemd without it", lambda: "", reload, test=True),
        gone(host.command),
        gone(host.prefix),
        gone(host.root / "run/hx-gateway-deploy.lock"),
    ]
    if not keep_data:
        steps += [
            gone(host.configuration),
            gone(host.state),
            gone(host.log),
            Step("user", f"no user {USER}", lambda: "there is one" if host.user_known() else "", partial(_without_user, host)),
        ]
    return steps


def _up(host: Host) -> bool:
    return host.active() or host.run("systemctl", "is-enabled", host.unit.name).stdout.strip() == "enabled"


def _without_user(host: Host) -> None:
    host.do("userdel", USER)
    host.run("groupdel", USER)  # most systems remove it along with the user
