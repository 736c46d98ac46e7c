"""`hx-gateway serve`: start the gateway."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="Configuration file; else HX_CONFIG, ./hx-gateway.yaml, /etc/hx-gateway/config.yaml, or what runs on this machine."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides service.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="TCP port to listen on; overrides service.port.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the port; overrides service.workers.")] = None,
) -> None:
    """Start the gateway and serve until it is told to stop."""
    from hx_gateway.config.load import ConfigError, load
    from hx_gateway.server.run import EXIT_CONFIG
    from hx_gateway.server.run import serve as run

    given = {"HX__SERVICE__HOST": host, "HX__SERVICE__PORT": port, "HX__SERVICE__WORKERS": workers}
    environ = {**os.environ, **{name: str(value) for name, value in given.items() if value is not None}}
    try:
        loaded = load(config, environ)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
    raise typer.Exit(run(loaded, lambda: load(config, environ)))
