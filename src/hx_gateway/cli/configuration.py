"""How commands are told their configuration file: ``--config`` everywhere, and as an argument where that is free for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hx_gateway.config.schema import GatewayConfig

_HELP = "Configuration file; without it HX_CONFIG, ./hx-gateway.yaml, /etc/hx-gateway/config.yaml."
Config = Annotated[Path | None, typer.Option("--config", "-c", help=_HELP)]
File = Annotated[Path | None, typer.Argument(metavar="FILE", help="The same as --config.")]


def chosen(file: Path | None, config: Path | None) -> Path | None:
    """The file that one of argument and option names; a usage error where they name two."""
    if file is not None and config is not None and file != config:
        raise typer.BadParameter(f"names another file than the argument {file}; give one of them", param_hint="--config")
    return file or config


def configured(config: Path | None) -> tuple[GatewayConfig, Path]:
    """The configuration of that file, or of the usual places, and its state directory; one that cannot be used ends the command with 78."""
    import os

    from hx_gateway.config.load import ConfigError, load
    from hx_gateway.config.storage import state_directory
    from hx_gateway.server.run import EXIT_CONFIG

    try:
        found = load(config, os.environ).config
        return found, state_directory(found.storage, os.environ)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(EXIT_CONFIG) from None
