"""`hx-gateway db`: look at the database that keys and usage are kept in, and bring it to the newest schema."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hx_gateway.cli.configuration import Config, File, chosen, configured


class Action(StrEnum):
    """What to do."""

    STATUS = "status"
    UPGRADE = "upgrade"
    REVERT = "revert"


def db(
    action: Annotated[
        Action, typer.Argument(help="Show schema, rows and size; bring the schema up to this release; or put back the copy from before.")
    ],
    file: File = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Look at the database, or upgrade it; a running gateway upgrades it by itself, and a SQLite file is copied before.

    `revert` puts that copy back, for an earlier release; the gateway must not run. What was there is kept beside it.
    """
    import asyncio
    import json
    from dataclasses import asdict
    from urllib.parse import urlsplit

    from hx_gateway.config.storage import database_url
    from hx_gateway.ops.backup import revert
    from hx_gateway.ops.host import Refused
    from hx_gateway.stores.sql.engine import StoreError
    from hx_gateway.stores.sql.status import status
    from hx_gateway.stores.sql.upgrade import upgrade

    settings, state = configured(chosen(file, config))
    url = database_url(settings.storage, state)
    parts = urlsplit(url)
    place = url.removeprefix("sqlite:///") if parts.scheme == "sqlite" else f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    done = None
    try:
        if action is Action.REVERT:
            typer.echo(revert(url, state), err=as_json)
        if action is Action.UPGRADE:
            if parts.scheme == "sqlite" and settings.storage.database_url is None:
                Path(place).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            done = asyncio.run(upgrade(url))
        found = asyncio.run(status(url))
    except (StoreError, Refused, OSError) as error:
        typer.echo(f"hx-gateway: {place}: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        changed = {"before": done.before, "backup": str(done.backup) if done.backup else None} if done else {}
        typer.echo(json.dumps({"place": place, **asdict(found), **changed}, indent=2))
        return
    if done is not None:
        said = f"upgraded from {done.before or 'nothing'}" if done.before != done.after else "nothing to do"
        typer.echo(said + (f"; the copy from before is {done.backup}" if done.backup else ""))
    typer.echo(f"database  {found.kind}, {place}")
    typer.echo(f"schema    {found.schema or 'none yet'}{'' if found.schema == found.newest else f'; this release needs {found.newest}'}")
    typer.echo(f"size      {found.size_bytes / 1_000_000:,.1f} MB")
    for name, rows in found.rows.items():
        typer.echo(f"  {name:<20}{rows:>14,} rows")
