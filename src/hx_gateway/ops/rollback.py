"""Back to an earlier release, or to the LiteLLM that was there before, with the way forward left open."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

from hx_gateway.ops import release as releases
from hx_gateway.ops.host import Host, Refused
from hx_gateway.ops.plan import Step, Undo
from hx_gateway.ops.service import restart, start, stop
from hx_gateway.ops.unit import litellm_text


def target_of(host: Host, version: str) -> Path:
    """The release to go back to: the one before, or the latest build of a version.

    Raises:
        Refused: There is none.
    """
    known = releases.installed(host)
    names = ", ".join(path.name for path in known) or "none"
    if version:
        found = [path for path in known if version in (path.name, releases.contents(path)["version"])]
        if not found:
            raise Refused(f"release {version} is not installed here; there are: {names}")
        return found[-1]
    if host.litellm.exists() and (used := host.release()) is not None:
        return used  # from LiteLLM back to where one was
    previous = host.release(host.previous)
    if previous is None or not releases.contents(previous):
        raise Refused(f"there is no release before this one; there are: {names}")
    return previous


def to_release(host: Host, release: Path, with_database: bool = False) -> list[Step]:
    """The plan of going back to a release; ``with_database`` to the database from before its latest upgrade, too, where that is needed."""

    def schema() -> None:
        fault = releases.schema_fault(host, release)
        if fault and not with_database:
            raise Refused(
                f"{fault}. Say --with-database to put back the copy that the upgrade made of a SQLite file: what was recorded since "
                "is then in a file beside it. Of another database restore your own backup from before the upgrade"
            )
        if fault:
            stop(host, confirm_s=0.0)
            try:
                releases.revert(host, host.release() or release)
            except Refused:
                start(host)
                raise

    goal = "a database that the release can work with"
    return [
        Step("database", goal, partial(releases.schema_fault, host, release), schema)
        if with_database
        else Step("database", goal, lambda: "", schema, test=True),
        Step("litellm", "the unit without LiteLLM", partial(_litellm_pending, host, False), partial(_without_litellm, host)),
        Step(
            "switch",
            f"release {release.name} in use",
            lambda: "" if host.release() == release else "another one is",
            partial(releases.switch, host, release),
        ),
        _running(host),
    ]


def to_litellm(host: Host, program: str, config: Path | None, address: str, port: int) -> list[Step]:
    """The plan of going back to LiteLLM's own command line, in the same unit.

    Args:
        host: The machine.
        program: LiteLLM's command; empty to find it.
        config: Its configuration; None for the one that was given to ``deploy --litellm``.
        address: Where it listens.
        port: TCP port it listens on.

    Raises:
        Refused: LiteLLM or its configuration is not here.
    """
    found = program or shutil.which("litellm") or ""
    if not found or not Path(found).exists():
        raise Refused("LiteLLM's command is not here: name it with --litellm-program")
    kept = config or host.configuration / "litellm.yaml"
    if not kept.exists():
        raise Refused(f"{kept} is not here: name LiteLLM's configuration with --litellm-config")
    text = litellm_text(found, str(kept), address, port)
    place = host.litellm

    def write() -> Undo:
        host.write(place, text.encode(), 0o644)
        host.systemctl("daemon-reload")
        return partial(_without_litellm, host)

    return [
        Step("litellm", f"the unit starting {found}", lambda: "" if place.exists() and place.read_text() == text else "it does not", write),
        _running(host),
    ]


def _litellm_pending(host: Host, wanted: bool) -> str:
    return "" if host.litellm.exists() == wanted else "it starts LiteLLM"


def _without_litellm(host: Host) -> None:
    host.litellm.unlink(missing_ok=True)
    host.systemctl("daemon-reload")


def _running(host: Host) -> Step:
    """The service running with what is there now."""

    def name() -> str:
        release = host.release()
        return release.name if release is not None else ""

    def pending() -> str:
        return "" if host.active() and host.record().get("runs") == host.runs(name()) else "it does not run, or with something else"

    def apply() -> Undo:
        before: dict[str, Any] = host.record()
        release = host.release()
        if host.active() and before.get("started") == host.started() and release is not None and not releases.upgrades(host, release):
            restart(host)
        else:  # stopped first, so that sockets are kept for nobody else
            stop(host, confirm_s=0.0)
            start(host, try_on=False)
        host.note(runs=host.runs(name()), started=host.started())
        return lambda: host.note(**{"runs": None, "started": None, **before})

    return Step("start", "the service running with it", pending, apply)


def recover(host: Host) -> None:
    """After a failure, when the steps are taken back: have the service run as before."""
    if not host.active() or host.record().get("started") != host.started():
        restart(host, full=True)
