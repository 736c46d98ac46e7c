"""`hx-gateway migrate`: moves keys, audit log, usage and the rest from one database into another, and proves it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_AGAIN = 3


def migrate(
    source: Annotated[
        str, typer.Option("--from", envvar="HX_MIGRATE_FROM", help="Database to move from: postgresql://… or sqlite:///path.")
    ],
    target: Annotated[
        str, typer.Option("--to", envvar="HX_MIGRATE_TO", help="Database to move to; empty, or begun by the same migration.")
    ],
    hold: Annotated[
        Path | None,
        typer.Option(
            help="State directory of the gateway: wait until the running one has ended, and let the next write nothing before all is moved."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what there is to move, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Move everything from one database into another, SQLite or Postgres, and prove it by counts and checksums.

    May be interrupted and run again at any moment. Ends with 0 when the target equals the source, 3 when the source has grown meanwhile (run it
    again), 1 when it failed or was refused.
    """
    import asyncio
    import contextlib
    import json
    from dataclasses import asdict

    from hx_gateway.config.storage import database_fault, plain_url
    from hx_gateway.housekeeping import alone
    from hx_gateway.stores.sql import migrate as migration
    from hx_gateway.stores.sql.engine import StoreError

    for option, url in (("--from", source), ("--to", target)):
        if fault := database_fault(url):
            raise typer.BadParameter(fault, param_hint=option)
    source, target = plain_url(source), plain_url(target)

    async def look() -> migration.Outlook:
        async with migration.between(source, target, dry=True) as (old, new):
            return await migration.outlook(old, new)

    async def run() -> list[migration.Moved]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        async with migration.between(source, target) as (old, new):
            assert new is not None
            columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
                tasks = {name: bar.add_task(name, total=rows) for name, (rows, _) in (await migration.outlook(old, new)).rows.items()}
                return await migration.move(old, new, lambda table, rows: bar.advance(tasks[table], rows))

    try:
        if dry_run:
            found = asyncio.run(look())
            if as_json:
                typer.echo(json.dumps(asdict(found), indent=2))
                return
            typer.echo("the target was begun by this migration, which goes on" if found.begun else "the target is empty")
            typer.echo(f"{'table':<16}{'source':>14}{'target':>14}")
            for name, (before, after) in found.rows.items():
                typer.echo(f"{name:<16}{before:>14,}{after:>14,}")
            return
        with contextlib.ExitStack() as held:
            if hold is not None:
                typer.echo(f"waiting until no gateway uses {hold}", err=True)
                held.enter_context(alone(hold))
            moved = asyncio.run(run())
    except (StoreError, OSError) as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from None
    wrong = [one.table for one in moved if one.source != one.target]
    later = [one.table for one in moved if one.later]
    if as_json:
        rows = [
            {"table": one.table, "rows": one.target.rows, "copied": one.copied, "later": one.later, "checksum": str(one.target)}
            for one in moved
        ]
        typer.echo(json.dumps({"equal": not wrong, "wrong": wrong, "later": later, "tables": rows}, indent=2))
    else:
        typer.echo(f"{'table':<16}{'rows':>14}{'copied now':>14}  checksum of both")
        for one in moved:
            typer.echo(f"{one.table:<16}{one.target.rows:>14,}{one.copied:>14,}  {one.target if one.source == one.target else 'DIFFERENT'}")
    if wrong:
        typer.echo(f"hx-gateway: {', '.join(wrong)}: what is read back is not what was read; run it again", err=True)
        raise typer.Exit(1)
    if later:
        typer.echo(f"{', '.join(later)} grew meanwhile: run it again, at last when the gateway has ended (or with --hold)", err=True)
        raise typer.Exit(_AGAIN)
