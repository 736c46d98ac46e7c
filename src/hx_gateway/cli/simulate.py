"""``hx-gateway simulate``: a trace through the real router over simulated model servers, policies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hx_gateway.simulation.plan import FleetPlan
    from hx_gateway.simulation.report import Report
    from hx_gateway.simulation.trace import Arrival

POLICIES = ("round_robin", "least_busy", "intelligent")


def arrivals_of(plan: FleetPlan, trace: str, load: float, seed: int, limit: int, share_first_block: bool, unit: str) -> list[Arrival]:
    """The trace as it will be played."""
    from hx_gateway.simulation import synthetic
    from hx_gateway.simulation.trace import TraceError, read, stretched, with_shared_first_block

    if trace.startswith(synthetic.PREFIX):
        arrivals = synthetic.generate(trace, list(plan.models), seed, limit)
    else:
        arrivals = read(Path(trace), limit, unit)
    if share_first_block:
        arrivals = with_shared_first_block(arrivals)
    if load:
        natural = plan.load_of(arrivals)
        if not natural:
            raise TraceError(f"{trace}: all requests arrive at once, so there is no load to set; leave out --load")
        arrivals = stretched(arrivals, natural / load)
    return arrivals


def _print(plan: FleetPlan, arrivals: Sequence[Arrival], reports: Sequence[Report]) -> None:
    from rich.console import Console
    from rich.table import Table

    servers = sum(server.count for server in plan.servers.values())
    span_s = arrivals[-1].at_s
    console = Console()
    table = Table(
        title=f"{len(arrivals)} requests in {span_s:.0f} s on {servers} servers, load {plan.load_of(arrivals):.2f}", title_justify="left"
    )
    table.add_column("")
    for report in reports:
        table.add_column(report.policy, justify="right")

    def row(name: str, cells: Sequence[str], last: bool = False) -> None:
        table.add_row(name, *cells, end_section=last)

    for title, field in (("first token", "first_token_s"), ("latency", "latency_s")):
        for percent in ("p50", "p90", "p95", "p99"):
            row(f"{title} {percent}, s", [f"{getattr(report, field)[percent]:.2f}" for report in reports], percent == "p99")
    row("prefix hits, % of prompt tokens", [f"{100 * report.hit_rate:.1f}" for report in reports])
    row("cold loads", [str(report.cold_loads) for report in reports])
    row("imbalance (busy seconds, max/mean)", [f"{report.busy_imbalance:.2f}" for report in reports])
    row("imbalance (requests, max/mean)", [f"{report.request_imbalance:.2f}" for report in reports])
    row("failed", [str(report.failed) for report in reports])
    row("needed more than one attempt", [str(report.retried) for report in reports])
    row("cost", [f"{report.cost:.4g}" for report in reports])
    row("router, µs per choice", [f"{report.choose_us:.1f}" for report in reports])
    console.print(table)


def simulate(
    fleet: Annotated[Path, typer.Option("--fleet", help="The fleet file (YAML).")],
    trace: Annotated[str, typer.Option("--trace", help="CSV or JSON lines, also .gz; or zipf:models=6,rate=1,requests=2000.")],
    policy: Annotated[list[str] | None, typer.Option("--policy", help="A policy; again for more. Without: the three main ones.")] = None,
    load: Annotated[float, typer.Option("--load", help="Stretch the trace to this load, e.g. 0.65; 0 leaves its times.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Of all random numbers: the same seed gives the same figures.")] = 1,
    limit: Annotated[int, typer.Option("--limit", help="Most requests to take from the trace; 0 for all.", min=0)] = 0,
    share_first_block: Annotated[bool, typer.Option("--share-first-block", help="Let all prompts begin with the same block.")] = False,
    unit: Annotated[str, typer.Option("--unit", help="What timestamps count: s or ms; without it, told by the kind of trace.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Play a trace against simulated model servers with the real router, and print what each policy makes of it."""
    import json

    from hx_gateway.config.problems import ConfigError
    from hx_gateway.core.plugins import UnknownPlugin
    from hx_gateway.simulation.plan import load_plan
    from hx_gateway.simulation.run import simulate as run
    from hx_gateway.simulation.trace import TraceError

    if unit not in ("", "s", "ms"):
        raise typer.BadParameter("should be s or ms", param_hint="--unit")
    try:
        plan = load_plan(fleet)
        arrivals = arrivals_of(plan, trace, load, seed, limit, share_first_block, unit)
        reports = [run(plan, arrivals, name, seed) for name in policy or POLICIES]
    except (ConfigError, TraceError, UnknownPlugin) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        result: dict[str, Any] = {
            "requests": len(arrivals),
            "seconds": arrivals[-1].at_s,
            "load": plan.load_of(arrivals),
            "seed": seed,
            "policies": [report.as_json() for report in reports],
        }
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(plan, arrivals, reports)
