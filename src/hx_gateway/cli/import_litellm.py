"""`hx-gateway import-litellm`: a LiteLLM config.yaml made into a configuration of the gateway, with a report of what became of each key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hx_gateway.config.litellm import Imported
    from hx_gateway.config.load import Loaded

_OPEN = 3
_WIDTH = 200  # of tables that no terminal shows
_STYLES = {
    "unsupported": "red",
    "manual": "red",
    "not-imported": "yellow",
    "ignored-by-LiteLLM": "yellow",
    "approximate": "cyan",
    "exact": "green",
}


def import_litellm(
    file: Annotated[Path, typer.Argument(help="LiteLLM's config.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Where the configuration goes, and beside it, with .env, its environment file; else it is printed."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Where the whole report goes: .json for programs, else Markdown.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also ask each server what it really has; no token is generated.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
) -> None:
    """Make a configuration of the gateway of a LiteLLM config.yaml, and say of each key what became of it.

    Secrets that are written out in the file go to the environment file alone. Ends with 0 when everything was carried over, 3 when something is
    left to look at (manual, unsupported, not-imported), 1 when the file cannot be read, nothing could be written, or --verify found an error.
    """
    import os

    from hx_gateway.cli.check import examined
    from hx_gateway.config import litellm
    from hx_gateway.config.litellm_findings import as_json as report_json
    from hx_gateway.config.litellm_findings import as_markdown
    from hx_gateway.config.load import ConfigError

    try:
        imported = litellm.load(file, os.environ)
        loaded = _checked(imported, os.environ)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        typer.echo("nothing was imported", err=True)
        raise typer.Exit(1) from None
    environment = out.with_name(f"{out.name}.env") if out is not None else None
    there = [path for path in (out, environment, report) if path is not None and path.exists()]
    if there and not force:
        typer.echo(f"hx-gateway: {', '.join(map(str, there))}: is there already; --force writes over it", err=True)
        raise typer.Exit(1)
    live, found = examined(loaded) if verify else (None, [])
    more = {"file": str(file), "out": str(out) if out else None, "verified": live, "problems": [one.as_json() for one in found]}
    try:
        if out is not None and environment is not None:
            _write(environment, imported.environment_text(), 0o600)
            _write(out, imported.text(), 0o640)
        if report is not None:
            json_wanted = report.suffix == ".json"
            _write(
                report,
                report_json(imported.remarks, **more) if json_wanted else as_markdown(imported.remarks, f"Import of {file.name}"),
                0o644,
            )
    except OSError as error:
        typer.echo(f"hx-gateway: {error.filename}: cannot be written: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(report_json(imported.remarks, **more), nl=False)
    else:
        if out is None:
            typer.echo(imported.text(), nl=False)
        _tell(imported, out, environment, live)
    for problem in found:
        typer.echo(f"{'warning' if problem.level == 'warning' else 'problem'}: {problem}", err=True)
    if any(problem.level == "error" for problem in found):
        raise typer.Exit(1)
    if imported.open:
        raise typer.Exit(_OPEN)


def _checked(imported: Imported, environ: Mapping[str, str]) -> Loaded:
    """The configuration as the gateway reads it, with stand-ins for secrets that are to be set."""
    from hx_gateway.config.load import load_text

    # Only what belongs to the file: overrides of this shell are not part of it.
    stand_ins = {name: f"to-be-set-{name}" for name in imported.variables}
    storage = imported.data.get("storage", {})
    for setting, address in (("redis_url", "redis://to-be-set"), ("database_url", "postgresql://to-be-set/db")):
        for name in {setting.upper(), str(storage.get(setting, "")).removeprefix("env:")} & stand_ins.keys():
            stand_ins[name] = address
    known = {name: environ[name] for name in imported.variables if name in environ}
    return load_text(imported.text(), f"{imported.file} (imported)", {**stand_ins, **imported.environ(known)}, imported.file.parent)


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file so that nobody else can read it before its mode is set."""
    import os

    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as stream:
        stream.write(text)


def _tell(imported: Imported, out: Path | None, environment: Path | None, live: dict[str, Any] | None) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hx_gateway.cli.check import tables
    from hx_gateway.config.litellm_findings import counts, rows

    console = Console(stderr=out is None, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table("level", "where", "key", "what became of it", title=f"import of {imported.file}", show_lines=True)
    for level, where, key, message in rows(imported.remarks):
        table.add_row(Text(level, style=_STYLES[level]), where, key, message)
    console.print(table if table.row_count else f"import of {imported.file}: every key was carried over as it is")
    console.print(", ".join(f"{number} {level}" for level, number in counts(imported.remarks).items() if number) or "the file is empty")
    if live is not None:
        tables(live["endpoints"], stderr=out is None)
    empty = [name for name, value in imported.variables.items() if value is None]
    if environment is not None:
        console.print(f"configuration: {out}; environment, with the secrets: {environment}")
        if empty:
            console.print(f"to be set there: {', '.join(empty)}")
        console.print(f"next: set -a; . {environment}; set +a; hx-gateway check --live {out}; hx-gateway serve {out}")
    elif imported.variables:
        console.print(f"variables it needs: {', '.join(imported.variables)}; with --out they are written to a file beside it")
