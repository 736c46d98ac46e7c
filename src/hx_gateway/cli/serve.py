"""`hx-gateway serve`: start the gateway."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hx_gateway.cli.configuration import Config, File, chosen


def serve(
    file: File = None,
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides service.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port to listen on; overrides service.port.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the port; overrides service.workers.")] = None,
) -> None:
    """Start the gateway and serve until it is told to stop; without a configuration it serves what runs on this machine."""
    from hx_gateway.config.load import ConfigError, load
    from hx_gateway.server.run import EXIT_CONFIG
    from hx_gateway.server.run import serve as run

    path = chosen(file, config)
    given = {"HX__SERVICE__HOST": host, "HX__SERVICE__PORT": port, "HX__SERVICE__WORKERS": workers}
    environ = {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
    try:
        loaded = load(path, environ)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    raise typer.Exit(run(loaded, lambda: load(path, environ)))
