"""`hx-gateway rollback`: back to an earlier release, or to LiteLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hx_gateway.cli.deploy import DryRun, need_root, print_plan


def rollback(
    to: Annotated[str, typer.Option("--to", help="Release to go back to; without, the one before.")] = "",
    to_litellm: Annotated[bool, typer.Option("--to-litellm", help="Have the service start LiteLLM instead.")] = False,
    litellm_program: Annotated[str, typer.Option(help="LiteLLM's command; found without.")] = "",
    litellm_config: Annotated[Path | None, typer.Option(help="Its configuration; without, the one given to deploy --litellm.")] = None,
    litellm_host: Annotated[str, typer.Option(help="Address LiteLLM listens on.")] = "0.0.0.0",
    litellm_port: Annotated[int, typer.Option(min=1, max=65535, help="TCP port LiteLLM listens on.")] = 4000,
    with_database: Annotated[
        bool,
        typer.Option("--with-database", help="Where the release does not know the schema: put back the copy from before the upgrade, too."),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Go back to the release before, to another one, or to LiteLLM's own command line; the same command goes forward again.

    A release that does not know the schema of the database is refused, unless --with-database.
    """
    import os

    from hx_gateway.ops.host import Host, Refused
    from hx_gateway.ops.install import alone
    from hx_gateway.ops.plan import Failed, carry_out
    from hx_gateway.ops.rollback import recover, target_of, to_release
    from hx_gateway.ops.rollback import to_litellm as litellm_steps

    if to and to_litellm:
        raise typer.BadParameter("--to and --to-litellm exclude each other")
    need_root(os.getuid())
    host = Host()

    def say(line: str) -> None:
        host.log_line(line)
        typer.echo(line)

    try:
        if to_litellm:
            steps = litellm_steps(host, litellm_program, litellm_config, litellm_host, litellm_port)
        else:
            steps = to_release(host, target_of(host, to), with_database)
        print_plan(steps)
        if not dry_run:
            with alone(host):
                carry_out(steps, say, lambda: recover(host))
    except (Refused, Failed) as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(1) from None
