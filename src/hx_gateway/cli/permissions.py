"""`hx-gateway permissions`: who owns what of an installation, compared or put right."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hx_gateway.cli.deploy import need_root


class Action(StrEnum):
    """What to do."""

    CHECK = "check"
    PRODUCTION = "production"
    DEVELOPMENT = "development"


def permissions(
    action: Annotated[Action, typer.Argument(help="Compare with production, or put right for production or for somebody's work.")],
    user: Annotated[str, typer.Option(help="Who works on it, for development, or for a check of that.", envvar="SUDO_USER")] = "",
    as_development: Annotated[bool, typer.Option("--development", help="Compare with development instead.")] = False,
) -> None:
    """Compare owners and modes of what is installed, or set them.

    Production: configuration and secrets belong to root and are read by the service alone. Development: they belong to a user, who may change them.
    """
    import os

    from hx_gateway.ops.host import Host
    from hx_gateway.ops.permissions import deviations, put_right

    host = Host()
    development = action is Action.DEVELOPMENT or as_development
    if development and not user:
        raise typer.BadParameter("say who works on it", param_hint="--user")
    if action is not Action.CHECK:
        need_root(os.getuid())
    if not host.prefix.exists():
        typer.echo("hx-gateway: nothing is installed here: hx-gateway deploy does that", err=True)
        raise typer.Exit(1)
    developer = user if development else ""
    found = list(deviations(host, developer)) if action is Action.CHECK else put_right(host, developer)
    for one in found:
        typer.echo(f"{one.path}: {one.found}, {'should be' if action is Action.CHECK else 'now'} {one.wanted}")
    if not found:
        typer.echo(f"everything is as it should be in {'development' if development else 'production'}")
    elif action is Action.CHECK:
        raise typer.Exit(1)
