"""`hx-gateway deploy` and `uninstall`: install the gateway as a service on this machine, and take it away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from hx_gateway.ops.bundle import Source
    from hx_gateway.ops.plan import Step

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and what each step would do, and change nothing.")]


def deploy(
    dry_run: DryRun = False,
    bundle: Annotated[Path | None, typer.Option(help="Bundle made by `make bundle`, as its tar or unpacked: no network is needed.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Instead, a folder with wheels of the gateway and all it needs.")] = None,
    index: Annotated[str, typer.Option(help="Instead, the address of a package index; without any of the three, pip's own setting.")] = "",
    version: Annotated[str, typer.Option(help="Release to install from an index; without, the one of this command.")] = "",
    extras: Annotated[
        str | None, typer.Option(help="Optional parts, with commas: local,postgres,qdrant,rag,redis. Of a bundle: all it has.")
    ] = None,
    python: Annotated[Path | None, typer.Option(help="Python 3.11 or newer for it, outside of home directories; found without.")] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration to take where the machine has none yet.")] = None,
    litellm: Annotated[
        Path | None, typer.Option(help="LiteLLM config.yaml to take as configuration where the machine has none yet.")
    ] = None,
    expect_address: Annotated[str, typer.Option(help="Address this machine must have, so that the wrong one is left alone.")] = "",
    force: Annotated[
        bool, typer.Option("--force", envvar="FORCE", help="Go on where the address is another, or back ends do not answer.")
    ] = False,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start the service and validate it.")] = True,
    master_key: Annotated[
        str, typer.Option(envvar="MASTER_KEY", help="Admin key, better given by MASTER_KEY in the environment; made where there is none.")
    ] = "",
) -> None:
    """Install or upgrade the gateway as a systemd service; safe to run twice, and taken back when it fails.

    Needs root. The first run writes a configuration, makes an admin key and shows it once. An upgrade takes over from the release that runs:
    no connection is refused, and running answers finish.
    """
    from hx_gateway.config.weak_keys import fault
    from hx_gateway.ops.host import Host, Refused
    from hx_gateway.ops.install import deploy as carry_out
    from hx_gateway.ops.install import prepare
    from hx_gateway.ops.plan import Failed
    from hx_gateway.ops.steps import Deployment

    if master_key and (why := fault(master_key)):
        _end(f"MASTER_KEY {why}")
    host = Host()
    try:
        with _source(bundle, wheels, index, version, extras) as source:
            made = prepare(
                host,
                expect_address,
                force,
                lambda found: Deployment(host, source, found, config, litellm, master_key, lenient=force, start=start),
                python,
            )
            print_plan(made.steps())
            if dry_run:
                return
            changes = carry_out(made, typer.echo)
    except (Refused, Failed) as error:
        _end(str(error))
    for line in made.told:
        typer.echo(line)
    typer.echo(f"{changes} changes; release {made.release.name}" if changes else f"nothing to change; release {made.release.name}")
    if made.made_key:
        typer.echo("This is the admin key. It is shown this once; the store keeps only its hash.", err=True)
        typer.echo(made.made_key)


def uninstall(
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Leave configuration, keys, ledger and vectors, and their user.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Take the service away: releases, unit, and unless --keep-data its configuration, data, logs and user."""
    import os

    from hx_gateway.ops.host import Host
    from hx_gateway.ops.install import removal
    from hx_gateway.ops.plan import Failed, carry_out

    host = Host()
    steps = removal(host, keep_data)
    print_plan(steps)
    if dry_run:
        return
    need_root(os.getuid())
    if not yes and not typer.confirm("Configuration, keys, ledger and vectors are deleted for good. Go on?" if not keep_data else "Go on?"):
        raise typer.Exit(1)
    try:
        carry_out(steps, typer.echo)
    except Failed as error:
        _end(str(error))


def _source(bundle: Path | None, wheels: Path | None, index: str, version: str, extras: str | None) -> AbstractContextManager[Source]:
    from contextlib import nullcontext
    from importlib.metadata import version as version_of

    from hx_gateway.ops.bundle import Source, of_wheels, opened
    from hx_gateway.ops.host import Refused

    if sum((bundle is not None, wheels is not None, bool(index))) > 1:
        raise Refused("--bundle, --wheels and --index exclude each other")
    parts = None if extras is None else tuple(sorted(part.strip() for part in extras.split(",") if part.strip()))
    if bundle is not None:
        return opened(bundle, parts)
    if wheels is not None:
        return nullcontext(of_wheels(wheels, parts or ()))
    version = version or version_of("hx-gateway")
    return nullcontext(Source(version, extras=parts or (), digest=f"index {version} {parts}", index=index))


def print_plan(steps: Sequence[Step]) -> None:
    """Print what each step is for and whether it has something to do."""
    from hx_gateway.ops.plan import shown

    typer.echo("plan")
    for name, goal, why in shown(steps):
        typer.echo(f"  {name:<14} {goal}: {why or 'nothing to do'}")
    typer.echo("")


def need_root(uid: int) -> None:
    """End the command where it was not started by root."""
    if uid:
        _end("only root can do that: run it again with sudo")


def _end(message: str) -> NoReturn:
    typer.echo(f"hx-gateway: {message}", err=True)
    raise typer.Exit(1)
