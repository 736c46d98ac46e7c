"""``hx-gateway drill``: model servers are killed, hung, cut and slowed while requests come, and the recovery is proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hx_gateway.ops.drill import Blow, Outcome
    from hx_gateway.ops.verify_client import Client
    from hx_gateway.testing.backend import Backend

_SERVERS = 3
# What happens, the fault of the scripted server, and whether it has to be taken out of service.
_BLOWS = (("killed", "refuse", True), ("hung", "hang", True), ("cut", "reset_head", True), ("slow", "", False))
_TOKEN_S, _SLOW_S = 0.005, 0.2


def _blow(backend: Backend, name: str, fault: str, noticed: bool, at: Callable[[Callable[[], None]], None]) -> Blow:
    from hx_gateway.ops.drill import Blow

    def strike() -> None:
        backend.fault = fault or None
        backend.first_token_s = _TOKEN_S if fault else _SLOW_S

    def heal() -> None:
        backend.fault = None
        backend.first_token_s = _TOKEN_S

    return Blow(name, "one", lambda: at(strike), lambda: at(heal), noticed)


async def _own(policy: str, phase_s: float, clients: int, told: Callable[[Outcome], object]) -> list[Outcome]:
    """A drill on a gateway and scripted servers of its own."""
    import asyncio
    import secrets
    import tempfile
    from contextlib import AsyncExitStack

    from hx_gateway.library import FlatConfig, Service
    from hx_gateway.ops.drill import drill
    from hx_gateway.ops.verify_client import Client
    from hx_gateway.testing.backend import Backend

    loop, key = asyncio.get_running_loop(), secrets.token_urlsafe(24)
    async with AsyncExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="hx-drill-"))
        servers = {
            name: await opened.enter_async_context(Backend(first_token_s=_TOKEN_S, token_s=_TOKEN_S, keep=100))
            for name in ("one", "two", "three")[:_SERVERS]
        }
        config = FlatConfig(
            port=0,
            load_balancer_algorithm=policy,
            health_check_interval=1.0,
            circuit_breaker_threshold=3,
            circuit_breaker_timeout=2.0,
            request_timeout_seconds=1.0,
            endpoints={name: {"url": server.url, "provider": "openai"} for name, server in servers.items()},
            models={"drill": {"endpoints": list(servers), "upstream_model": "tiny:1b", "mode": "chat"}},
            storage={"state_directory": folder},
            keys={"master_key": key},
        )
        service = await opened.enter_async_context(Service(config))

        def at(work: Callable[[], None]) -> None:
            async def there() -> None:
                work()

            asyncio.run_coroutine_threadsafe(there(), loop).result()

        blows = [_blow(servers["one"], *blow, at) for blow in _BLOWS]
        return await asyncio.to_thread(drill, Client(service.url, key, 30.0), "drill", blows, phase_s, clients, told)


def _running(
    client: Client, model: str, pids: dict[str, int], phase_s: float, clients: int, told: Callable[[Outcome], object]
) -> list[Outcome]:
    """A drill on a fleet that runs: each endpoint drained and put back; processes that are named stopped and continued."""
    import os
    import signal

    from hx_gateway.ops.drill import Blow, drill

    def ask(name: str, verb: str) -> None:
        client.ask("POST", f"/admin/endpoints/{name}/{verb}").wanted()

    servers = [one["name"] for one in client.ask("GET", "/admin/endpoints").wanted().json()["data"] if one["state"] == "up"]
    blows = [Blow("drained", name, lambda name=name: ask(name, "drain"), lambda name=name: ask(name, "undrain")) for name in servers]  # type: ignore[misc]
    for name, pid in pids.items():
        if name not in servers:
            raise typer.BadParameter(f"no endpoint called {name} is up; there are {', '.join(servers)}", param_hint="--pid")
        blows.append(Blow("hung", name, lambda pid=pid: os.kill(pid, signal.SIGSTOP), lambda pid=pid: os.kill(pid, signal.SIGCONT)))  # type: ignore[misc]
    return drill(client, model, blows, phase_s, clients, told)


def _pids(given: list[str]) -> dict[str, int]:
    found = {}
    for one in given:
        name, _, number = one.rpartition("=")
        if not name or not number.isdecimal() or int(number) < 2:
            raise typer.BadParameter(f"{one!r} should be ENDPOINT=PID", param_hint="--pid")
        found[name] = int(number)
    return found


def _show(outcomes: list[Outcome]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} s"

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 140
    table = Table("", "what", "to", box=None, header_style="bold")
    for name in ("requests", "failed", "broken off", "share before", "during", "after", "noticed", "returned", "slowest"):
        table.add_column(name, justify="right")
    for one in outcomes:
        table.add_row(
            Text("ok", "green") if one.ok else Text("FAILED", "bold red"), one.blow, one.endpoint, f"{one.requests}", f"{one.failed}", f"{one.broken}",
            f"{one.share_before:.0%}", f"{one.share_during:.0%}", f"{one.share_after:.0%}", seconds(one.noticed_s), seconds(one.returned_s), seconds(one.slowest_s),
        )  # fmt: skip
    console.print(table)
    total, failed = sum(one.requests for one in outcomes), sum(one.failed for one in outcomes)
    console.print(f"\n{total} requests, {failed} failed, {sum(one.broken for one in outcomes)} streams broken off and told so")


def drill(
    url: Annotated[
        str | None, typer.Option("--url", help="A running gateway, instead of one of its own with scripted servers; needs --yes-really.")
    ] = None,
    key: Annotated[
        str, typer.Option("--key", help="Environment variable that holds an admin key; without it HX_API_KEY, else MASTER_KEY.")
    ] = "",
    model: Annotated[str, typer.Option("--model", help="With --url: the name to ask for.")] = "hx-chat",
    pid: Annotated[
        list[str] | None,
        typer.Option("--pid", help="With --url: ENDPOINT=PID of a model server on this machine, to be stopped and continued."),
    ] = None,
    yes_really: Annotated[bool, typer.Option("--yes-really", help="With --url: do that to servers that people may be using.")] = False,
    policy: Annotated[str, typer.Option("--policy", help="Balancing policy of its own gateway.")] = "least_busy",
    seconds: Annotated[float, typer.Option("--seconds", min=0.2, max=60, help="Load before, during and after each blow.")] = 2.0,
    clients: Annotated[int, typer.Option("--clients", min=1, max=64, help="How many ask at the same time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Kill, hang, cut and slow a model server while requests come; exit code 1 if any request failed or a server did not return."""
    import asyncio
    import json

    from hx_gateway.cli.verify import key_from
    from hx_gateway.config.problems import ConfigError
    from hx_gateway.ops.verify_client import Client
    from hx_gateway.ops.verify_report import Fault

    def told(outcome: Outcome) -> None:
        typer.echo(
            f"{outcome.blow} {outcome.endpoint}: {outcome.requests} requests, {outcome.failed} failed {outcome.why}".rstrip(), err=True
        )

    if url is not None and not yes_really:
        raise typer.BadParameter(
            "this takes servers of a running fleet out of service; say --yes-really if that is meant", param_hint="--url"
        )
    try:
        if url is None:
            outcomes = asyncio.run(_own(policy, seconds, clients, told))
        else:
            outcomes = _running(Client(url, key_from(key), 180.0), model, _pids(pid or []), seconds, clients, told)
    except (Fault, ConfigError, ValueError) as error:
        typer.echo(f"hx-gateway: {error}", err=True)
        raise typer.Exit(2) from None
    if as_json:
        found: dict[str, Any] = {"ok": all(one.ok for one in outcomes), "outcomes": [one.as_json() for one in outcomes]}
        typer.echo(json.dumps(found, indent=2))
    else:
        _show(outcomes)
    if not outcomes or not all(one.ok for one in outcomes):
        raise typer.Exit(1)
