"""``hx-gateway verify``: everything a running gateway promises, asked for once from outside, with a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hx_gateway.ops.verify_report import Report, Result

_SIGNS = {"passed": ("green", "ok"), "failed": ("bold red", "FAILED"), "skipped": ("yellow", "skipped")}
WIDTH = 160  # of lines that no terminal shows
_KEYS = ("HX_API_KEY", "MASTER_KEY")


def key_from(variable: str) -> str:
    """The API key in a variable of the environment; without a name in ``HX_API_KEY``, else ``MASTER_KEY``, else none.

    Raises:
        typer.BadParameter: The variable that is named is not there.
    """
    import os

    if not variable:
        return next((os.environ[name] for name in _KEYS if os.environ.get(name)), "")
    if not os.environ.get(variable):
        raise typer.BadParameter(f"the environment has no {variable}; put an API key there", param_hint="--key")
    return os.environ[variable]


def _lengths(given: list[str]) -> dict[str, int]:
    found = {}
    for one in given:
        name, _, length = one.rpartition("=")
        if not name or not length.isdecimal():
            raise typer.BadParameter(f"{one!r} should be NAME=LENGTH, e.g. emb-premium=1024", param_hint="--dimensions")
        found[name] = int(length)
    return found


def _run(
    url: str, node: str | None, key: str, names: list[str], lengths: dict[str, int], config: Path | None, timeout_s: float,
    live: object,
) -> Report:  # fmt: skip
    from dataclasses import replace

    from hx_gateway.ops.verify import Expect, expected, run
    from hx_gateway.ops.verify_node import run_node

    told = live if callable(live) else lambda result: None
    if node is not None:
        return run_node(node, key, tuple(names), lengths, told, timeout_s)
    expect = Expect()
    if config is not None:
        import os

        from hx_gateway.config.load import load

        expect = expected(load(config, os.environ).config)
    expect = replace(expect, names=tuple(dict.fromkeys((*expect.names, *names))), dimensions={**expect.dimensions, **lengths})
    return run(url, key, expect, told, timeout_s)


def _ready(url: str) -> None:
    from hx_gateway.ops.verify_client import Client
    from hx_gateway.ops.verify_report import Fault

    try:
        Client(url, timeout_s=4.0).ask("GET", "/readyz").wanted()
    except (Fault, ValueError) as error:
        typer.echo(f"hx-gateway: not ready: {error}", err=True)
        raise typer.Exit(1) from None


def verify(
    url: Annotated[str, typer.Option("--url", envvar="HX_URL", help="Address of the gateway.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option("--key", help="Environment variable that holds the API key; without it HX_API_KEY, else MASTER_KEY.")
    ] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A configuration: what it names must be there.")] = None,
    name: Annotated[list[str] | None, typer.Option("--name", help="A model, group or alias that must be there; may be repeated.")] = None,
    dimensions: Annotated[
        list[str] | None, typer.Option("--dimensions", help="NAME=LENGTH: what the length of embeddings must be; may be repeated.")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", help="Verify this model server itself instead of a gateway.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Also write the report there: JUnit where the name ends in .xml, else JSON.")
    ] = None,
    ready: Annotated[bool, typer.Option("--ready", help="Ask only whether it takes requests, as a container's health check.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Longest wait for an answer in seconds; a model may have to be loaded.")
    ] = 180.0,
) -> None:
    """Ask a running gateway for everything it promises; exit code 1 if anything is not as it should be."""
    if ready:
        _ready(url)
        return
    import json

    from rich.console import Console

    from hx_gateway.config.load import ConfigError

    console = Console(markup=False, highlight=False, emoji=False, stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    lengths = _lengths(dimensions or [])
    doing = console.status("asking …") if console.is_terminal else None

    def told(result: Result) -> None:
        if doing is not None:
            doing.update(str(result)[: console.width - 4])

    try:
        if doing is not None:
            doing.start()
        found = _run(url, node, key_from(key), name or [], lengths, config, timeout, told)
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--node" if node else "--url") from None
    finally:
        if doing is not None:
            doing.stop()
    if report is not None:
        try:
            text = found.as_junit() if report.suffix == ".xml" else json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n"
            report.write_text(text, encoding="utf-8")
        except OSError as error:
            typer.echo(f"hx-gateway: the report could not be written: {error}", err=True)
            raise typer.Exit(2) from None
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(console, found)
    for one in found.failures:
        typer.echo(f"FAILED {one}", err=True)
    if not found.ok:
        raise typer.Exit(1)


def _show(console: object, found: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(
        "",
        "check",
        "of",
        "what was seen",
        "seconds",
        box=None,
        header_style="bold",
        title=f"{found.url}  {found.version}",
        title_justify="left",
    )
    table.columns[4].justify = "right"
    table.columns[3].overflow = "fold"
    for one in found.results:
        style, word = _SIGNS[one.state]
        table.add_row(Text(word, style), one.check, one.subject, one.detail, f"{one.taken_s:.2f}")
    console.print(table)
    if found.counters:
        counts = Table("name", "requests", "answered", box=None, header_style="bold")
        for name, (sent, well) in found.counters.items():
            counts.add_row(name, str(sent), Text(str(well), "" if well == sent else "bold red"))
        console.print()
        console.print(counts)
    console.print()
    style, word = _SIGNS["passed" if found.ok else "failed"]
    told = f"{found.count('passed')} checks passed, {found.count('failed')} failed, {found.count('skipped')} skipped"
    console.print(Text(f"{word}: {told}", style))
