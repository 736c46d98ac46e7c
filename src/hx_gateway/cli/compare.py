"""`hx-gateway compare`: the same deterministic prompts through two gateways, and where their answers differ."""

from __future__ import annotations

from typing import Annotated

import typer

_DIFFERENT = 3
_WIDTH = 200  # of tables that no terminal shows


def compare(
    a: Annotated[str, typer.Option("--a", help="Address of one gateway, e.g. LiteLLM at http://127.0.0.1:4000; its key is COMPARE_KEY_A.")],
    b: Annotated[str, typer.Option("--b", help="Address of the other, e.g. http://127.0.0.1:8000; its key is COMPARE_KEY_B.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model to chat with; repeat for more. None means every one that both list.")
    ] = None,
    embedding: Annotated[list[str] | None, typer.Option(help="Model to embed with; repeat for more.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Most tokens of each answer.")] = 32,
    repeat: Annotated[int, typer.Option(min=1, max=100, help="How often each request is sent; the median of the times is shown.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Send the same deterministic prompts to two gateways and show where answers, shapes, headers and times differ.

    Keys come from the environment variables COMPARE_KEY_A and COMPARE_KEY_B. Ends with 0 when status and answers are the same (fields and
    headers that only one has are notes), 3 when some differ, 1 when one of the two cannot be asked.
    """
    import json
    import os
    import statistics
    from dataclasses import asdict

    from hx_gateway.ops.compare import Side
    from hx_gateway.ops.compare import compare as ask_both

    try:
        sides = Side(a, os.environ.get("COMPARE_KEY_A", "")), Side(b, os.environ.get("COMPARE_KEY_B", ""))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--a or --b") from None
    embedders = embedding or []
    try:
        shared = set(sides[1].models())
        models = model or [name for name in sides[0].models() if name in shared and name not in embedders]
        if not models and not embedders:
            raise OSError("the two list no model in common; name one with --model that both serve")
        cases = list(ask_both(*sides, models, embedders, max_tokens, repeat))
    except OSError as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(1) from None
    different = sum(bool(case.differences) for case in cases)
    timed = [case.seconds for case in cases if all(case.seconds) and case.name not in ("a wrong key", "a model that does not exist")]
    median = [statistics.median(pair[side] for pair in timed) if timed else 0.0 for side in (0, 1)]
    if as_json:
        found = {"a": sides[0].url, "b": sides[1].url, "different": different, "median_seconds": {"a": median[0], "b": median[1]}}
        typer.echo(json.dumps({**found, "cases": [asdict(case) for case in cases]}, indent=2))
    else:
        from rich.console import Console
        from rich.table import Table

        console = Console(markup=False, highlight=False, emoji=False)
        if not console.is_terminal:
            console.width = _WIDTH
        table = Table("asked", "a, ms", "b, ms", "differences", "notes", show_lines=True)
        for case in cases:
            times = [f"{seconds * 1e3:.0f}" if seconds else "" for seconds in case.seconds]
            table.add_row(case.name, *times, "\n".join(case.differences) or "none", "\n".join(case.notes))
        console.print(f"a is {sides[0].url}, b is {sides[1].url}")
        console.print(table)
        console.print(f"{different} of {len(cases)} differ; median {median[0] * 1e3:.1f} ms at a, {median[1] * 1e3:.1f} ms at b")
    if different:
        raise typer.Exit(_DIFFERENT)
