"""`hx-gateway service`: start, stop and restart the installed service, and look at it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from hx_gateway.cli.deploy import need_root

if TYPE_CHECKING:
    from hx_gateway.ops.host import Host


class Action(StrEnum):
    """What to do."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    STATUS = "status"
    RUN = "run"


def service(
    action: Annotated[Action, typer.Argument(help="What to do; start, stop and restart are confirmed for five seconds.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(help="For run, a command of the gateway's, such as -- keys list: by the service's user, with its settings."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Restart by stopping first, so that a changed unit or environment file counts; who connects meanwhile waits."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON, for programs.")] = False,
) -> None:
    """Start, stop or restart the service and confirm that it is so, or show how it is.

    A restart hands the port over to a new process: nobody is refused, and running answers finish. What fails shows the end of the journal.
    """
    import json
    import os

    from hx_gateway.ops import service as services
    from hx_gateway.ops.host import Host, Refused

    host = Host()
    try:
        if action is not Action.STATUS:
            need_root(os.getuid())
            if action is Action.RUN:
                raise typer.Exit(_run(host, words or ["--help"]))
            if action is Action.START:
                services.start(host)
            elif action is Action.STOP:
                services.stop(host)
            else:
                typer.echo(services.restart(host, full))
        found = services.status(host)
    except Refused as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            told = {None: "-", True: "yes", False: "no"}.get(value, value) if value is None or isinstance(value, bool) else value
            typer.echo(f"{name.replace('_', ' '):<12} {told}")
    if action is Action.STATUS and not found["active"]:
        raise typer.Exit(3)


def _run(host: Host, words: list[str]) -> int:
    """Be the gateway's command for the service: what root makes in its folders, the service could not use."""
    import os
    import subprocess

    from hx_gateway.ops.host import USER

    environ = {**host.variables(), "HX_CONFIG": str(host.config), "TERM": os.environ.get("TERM", "dumb")}
    program = host.current / "bin/hx-gateway"
    return subprocess.run([str(program), *words], user=USER, group=USER, extra_groups=[], env=environ, cwd="/", check=False).returncode
