"""``hx-gateway top``: the fleet and the traffic of a running gateway, live in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from hx_gateway.ops.watch import Look, Rates

_STATES = {
    "up": "green",
    "partly": "yellow",
    "resting": "yellow",
    "draining": "cyan",
    "drained": "cyan",
    "down": "bold red",
    "unknown": "dim",
}
_HEALTH = {"healthy": "bold green", "degraded": "bold yellow", "unhealthy": "bold red"}
_SHORT_S = 1.0  # between the two looks of --once
_WIDTH = 140  # where no terminal shows it


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 or not seconds else f"{seconds * 1000:.2f} ms"


def _rate(value: float) -> str:
    return "-" if not value else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _size(size_bytes: float | None) -> str:
    return f" {size_bytes / 1e9:.1f} GB" if size_bytes else ""


def _head(now: Look, flow: Rates) -> RenderableType:
    import time

    from rich.text import Text

    metrics, status = now.metrics, str(now.health.get("status", "unknown"))
    version = next((one["version"] for one in metrics.labels("hx_gateway_info")), "")
    up_s = max(0, int(time.time() - metrics.sum("hx_gateway_start_time_seconds")))
    up = (
        f"{up_s // 86400} d {up_s % 86400 // 3600} h"
        if up_s >= 86400
        else f"{up_s // 3600} h {up_s % 3600 // 60} min"
        if up_s >= 3600
        else f"{up_s // 60} min {up_s % 60} s"
    )
    workers = int(metrics.sum("hx_gateway_workers")) or 1
    memory = metrics.sum("hx_gateway_worker_memory_bytes")
    return Text.assemble(
        ("hx-gateway ", "bold"), f"{version}  {now.url}  ", (status, _HEALTH.get(status, "bold")),
        f"  up {up}  {workers} worker{'s' if workers > 1 else ''}, {memory / 1e6:.0f} MB\n",
        (f"{_rate(sum(flow.requests.values()))} requests/s", "bold"), f"  {_rate(sum(flow.tokens.values()))} tokens/s  ",
        (f"{_rate(sum(flow.errors.values()))} errors/s", "bold red" if any(flow.errors.values()) else ""),
        f"  {metrics.sum('hx_gateway_in_flight'):.0f} under way  {sum(now.waiting.values())} waiting",
        f"  response {_span(flow.response_s)}  first token {_span(flow.first_token_s)}  overhead {_span(flow.overhead_s)}",
    )  # fmt: skip


def _fleet(now: Look, flow: Rates) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", expand=True, pad_edge=False)
    for name in ("endpoint", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("under way", "queue", "calls/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in memory", ratio=2, overflow="ellipsis", no_wrap=True)
    table.add_column("", ratio=3, overflow="ellipsis", no_wrap=True)
    for one in now.endpoints:
        limit = one["max_concurrent"] or one["slots"]
        loaded = ", ".join(f"{held['name']}{_size(held['size_bytes'])}" for held in one["loaded"] or ())
        breaker = one["breaker"]
        note = f"drained by {one['drained']['by']}" if one["drained"] else one["error"] or ""
        if not note and breaker["state"] != "closed":
            note = f"breaker {breaker['state']}, again in {breaker['retry_after_s']:.0f} s"
        table.add_row(
            one["name"], Text(one["state"], _STATES.get(one["state"], "")), f"{one['in_flight']}{f'/{limit}' if limit else ''}",
            str(one["waiting"]) if one["waiting"] else "-", _rate(flow.calls.get(one["name"], 0.0)), loaded, note or f"{one['engine'] or ''} {one['version'] or ''}".strip(),
        )  # fmt: skip
    return table


def _names(now: Look, flow: Rates) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", expand=True, pad_edge=False)
    for name in ("name", "kind", "policy"):
        table.add_column(name, no_wrap=True)
    for name in ("requests/s", "errors/s", "tokens/s", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    gone = set(now.health.get("unavailable", ()))
    infos = {one["target"]: one for one in now.metrics.labels("hx_gateway_target_info")}
    for name in sorted(infos, key=lambda name: -flow.requests.get(name, 0.0)):
        failed = flow.errors.get(name, 0.0)
        table.add_row(
            Text(f"{name} (unavailable)" if name in gone else name, "bold red" if name in gone else ""), infos[name].get("kind", ""),
            infos[name].get("policy", ""), _rate(flow.requests.get(name, 0.0)), Text(_rate(failed), "bold red" if failed else ""),
            _rate(flow.tokens.get(name, 0.0)), str(now.waiting.get(name) or "-"),
        )  # fmt: skip
    return table


def frame(now: Look, flow: Rates, note: str = "") -> Group:
    """One picture.

    Args:
        now: What is to be seen.
        flow: What happened since the last one.
        note: What is wrong, or which keys there are.
    """
    from rich.console import Group
    from rich.text import Text

    return Group(_head(now, flow), "", _fleet(now, flow), "", _names(now, flow), "", Text(note, "dim"))


@contextmanager
def _keys() -> Iterator[None]:
    """Standard input key by key, without an echo; as it was afterwards."""
    import sys
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _asked_to_quit(seconds: float) -> bool:
    """Wait for a key, at most so long; whether it is one that ends the command."""
    import os
    import select
    import sys
    import time

    give_up_s = time.monotonic() + seconds
    while (left_s := give_up_s - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left_s)[0]:
            pressed = os.read(sys.stdin.fileno(), 64)
            if not pressed or any(key in pressed for key in (b"q", b"Q", b"\x04")):
                return True
    return False


def top(
    url: Annotated[str, typer.Option("--url", envvar="HX_URL", help="Address of the gateway.")] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option("--key", help="Environment variable that holds an admin key; without it HX_API_KEY, else MASTER_KEY.")
    ] = "",
    interval: Annotated[float, typer.Option("--interval", min=0.2, max=60, help="Seconds between two pictures.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture, of the traffic of one second, and end.")] = False,
) -> None:
    """Show the fleet and the traffic of a running gateway, live; q quits."""
    import sys
    import time

    from rich.console import Console
    from rich.live import Live

    from hx_gateway.cli.verify import key_from
    from hx_gateway.ops.verify_client import Client
    from hx_gateway.ops.verify_report import Fault
    from hx_gateway.ops.watch import look, rates

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH
    try:
        client = Client(url, key_from(key), 10.0)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None
    try:
        before = look(client)
        if once or not (sys.stdin.isatty() and console.is_terminal):
            time.sleep(_SHORT_S)
            now = look(client)
            console.print(frame(now, rates(before, now)))
            return
    except Fault as fault:
        typer.echo(f"hx-gateway: {fault}", err=True)
        raise typer.Exit(1) from None
    picture = frame(before, rates(before, before), "q quits")
    with _keys(), Live(picture, console=console, screen=True, auto_refresh=False) as live:
        live.refresh()
        while not _asked_to_quit(interval):
            try:
                now = look(client)
            except Fault as fault:  # what was seen last stays, with the reason why it is old
                live.update(frame(before, rates(before, before), f"{fault}\nq quits"), refresh=True)
                continue
            live.update(frame(now, rates(before, now), "q quits"), refresh=True)
            before = now
