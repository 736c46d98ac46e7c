"""``hx-gateway monitoring``: what Prometheus and Grafana need to watch the gateway, written into a folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

SHIPPED = files("hx_gateway").joinpath("ops", "monitoring")
"""Where they are."""
FILES = ("prometheus.yml", "recording-rules.yml", "alert-rules.yml", "grafana-dashboard.json")
"""Their names."""


def group() -> typer.Typer:
    """The commands."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_root)
    app.command("export")(export)
    return app


def _root() -> None:
    """Rules, alerts and a dashboard for Prometheus and Grafana."""


def export(
    directory: Annotated[Path, typer.Argument(help="Folder to write to; made if it is not there.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there and differ.")] = False,
) -> None:
    """Write Prometheus' configuration, recording and alert rules, and Grafana's dashboard into a folder.

    Files that are there and differ are left alone, and the exit code is 1, unless --force is given.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept = 0
        for name in FILES:
            path, content = directory / name, SHIPPED.joinpath(name).read_bytes()
            if path.exists() and path.read_bytes() != content and not force:
                kept += 1
                typer.echo(f"{path}: differs and is left as it is (--force overwrites it)")
                continue
            path.write_bytes(content)
            typer.echo(f"{path}: written")
    except OSError as error:
        typer.echo(f"hx-gateway: {error.filename or directory}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from None
    if kept:
        raise typer.Exit(1)
