"""`hx-gateway backup` and `restore`: configuration, keys, ledger and vectors in one file, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hx_gateway.cli.configuration import configured

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file; without it the installed service's, else as `serve` finds it.")
]


def backup(file: Annotated[Path, typer.Argument(help="File to write, a tar; it holds secrets.")], config: Config = None) -> None:
    """Copy configuration, keys, ledger and vectors into one file, while the gateway runs.

    A database of Postgres is copied, too; vectors in Qdrant or Postgres are not.
    """
    import os
    from importlib.metadata import version

    from hx_gateway.config.load import find
    from hx_gateway.core.errors import Unavailable
    from hx_gateway.ops.backup import backup as write
    from hx_gateway.ops.host import Refused

    file = file.absolute()
    if _as_service(config, "backup", file, writes=True):
        return
    settings, state = configured(config)
    path = find(config, os.environ)
    files = [path, path.with_name("environment")] if path is not None else []
    try:
        told = write(settings, state, [one for one in files if one.is_file()], file, version("hx-gateway"))
    except (Refused, Unavailable, OSError) as error:
        _end(str(error))
    rows = sum(told["rows"].values())
    typer.echo(f"{file}: {rows:,} rows, {told['journal_segments']} segments of the journal, {sum(told['points'].values()):,} points")


def restore(
    file: Annotated[Path, typer.Argument(help="File that `backup` wrote.")],
    config: Config = None,
    show: Annotated[bool, typer.Option("--show", help="Compare its checksums, show what it holds, and change nothing.")] = False,
    configuration: Annotated[
        bool, typer.Option("--configuration", help="Also bring back configuration and environment file; what is there is kept beside.")
    ] = False,
) -> None:
    """Bring back keys, ledger and vectors from a backup; the gateway must not run."""
    import json

    from hx_gateway.core.errors import Unavailable
    from hx_gateway.ops.backup import opened
    from hx_gateway.ops.backup import restore as bring_back
    from hx_gateway.ops.host import Refused
    from hx_gateway.rag.points import Unfit
    from hx_gateway.stores.vectors.moving import Differs

    file = file.absolute()
    try:
        if show:
            with opened(file) as (_, manifest):
                typer.echo(json.dumps({name: value for name, value in manifest.items() if name != "files"}, indent=2))
            return
        if configuration:
            with opened(file) as (folder, _):
                _configure(folder / "config", config)
        if _as_service(config, "restore", file, writes=False):
            return
        settings, state = configured(config)
        with opened(file) as (folder, manifest):
            for line in bring_back(settings, state, folder, manifest):
                typer.echo(line)
    except (Refused, Unavailable, Unfit, Differs, OSError) as error:
        _end(str(error))


def _as_service(config: Path | None, command: str, file: Path, writes: bool) -> bool:
    """Do it as the service's user, with its environment, where root asks on a machine with the service; False where that is not so."""
    import os
    import pwd
    import shutil

    from hx_gateway.ops.host import USER, Host, Refused, open_unlinked

    host = Host()
    release = host.release()
    if os.getuid() or config is not None or release is None or not host.config.exists():
        return False
    # The service's user reaches neither the place nor, with what it holds, should others.
    there = host.state / f".{command}-{os.getpid()}.tar"
    try:
        if not writes:
            with file.open("rb") as given, open_unlinked(there, os.O_CREAT | os.O_EXCL | os.O_WRONLY, "wb") as stream:
                owner = pwd.getpwnam(USER)
                os.fchmod(stream.fileno(), 0o600)
                os.fchown(stream.fileno(), owner.pw_uid, owner.pw_gid)
                shutil.copyfileobj(given, stream)
        done = host.gateway(release, command, there, "--config", host.config, within_s=24 * 3600)
        if done.returncode:
            raise Refused(done.stderr.strip().removeprefix("hx-gateway: "))
        if writes:
            beside = file.with_name(f".{file.name}.part")  # made anew: what is there may be readable for others
            beside.unlink(missing_ok=True)
            with open_unlinked(there) as given, os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream:
                shutil.copyfileobj(given, stream)
            beside.replace(file)
        typer.echo(done.stdout.strip().replace(str(there), str(file)))
    except (Refused, OSError) as error:
        _end(str(error))
    finally:
        there.unlink(missing_ok=True)
    return True


def _configure(folder: Path, config: Path | None) -> None:
    """Put the files of the configuration in place, those that were there beside them."""
    from hx_gateway.ops.host import USER, Host

    host = Host()
    target = config.absolute().parent if config is not None else host.configuration
    for file in sorted(folder.iterdir()):
        place = target / (config.name if config is not None and file.name != "environment" else file.name)
        if place.exists():
            place.replace(place.with_name(f"{place.name}.before-restore"))
        if config is None and host.user_known():
            host.write(place, file.read_bytes(), 0o640, USER)
        else:
            place.touch(mode=0o600)
            place.write_bytes(file.read_bytes())
        typer.echo(f"{place} brought back")


def _end(message: str) -> NoReturn:
    typer.echo(f"hx-gateway: {message}", err=True)
    raise typer.Exit(1)
