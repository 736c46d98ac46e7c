"""`hx-gateway router list | promote | demote | replay`: the scorers of the groups of a gateway, and what others would have decided."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hx_gateway.cli.configuration import Config, configured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hx_gateway.config.schema import GatewayConfig
    from hx_gateway.stores.sql.engine import Store

Group = Annotated[str, typer.Option("--group", "-g", help="A group that learns; may be left out where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Moment = "a span before now such as 7d or 12h, or a moment such as 2030-01-31"
_STATEMENT_S = 10.0


def _fail(error: object) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(1)


def _opened(config: Path | None, group: str, work: Callable[[Store, GatewayConfig, str], Awaitable[Any]]) -> Any:
    """Do something with the store of a configuration and one of its groups that learn; errors end the command in words."""
    import asyncio

    from hx_gateway.config.storage import database_url
    from hx_gateway.core.errors import Unavailable

    settings, folder = configured(config)
    learning = [name for name, one in settings.groups.items() if one.learned is not None]
    if group and group not in learning:
        _fail(f"--group: {group!r} is no group that learns; there are: {', '.join(learning) or 'none, see groups.*.learned'}")
    if not group and len(learning) != 1:
        _fail(f"name the group with --group: {', '.join(learning) or 'none learns, see groups.*.learned'}")

    async def run() -> Any:
        from hx_gateway.stores.sql.upgrade import opened

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = await opened(database_url(settings.storage, folder), _STATEMENT_S, 1)
        try:
            return await work(store, settings, group or learning[0])
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except (Unavailable, OSError) as error:
        _fail(f"the store cannot be used: {error}")


def list_(group: Group = "", config: Config = None, as_json: Json = False) -> None:
    """List a group's artifacts, their roles, and what became of them."""
    import json

    async def work(store: Store, settings: GatewayConfig, name: str) -> dict[str, Any]:
        from hx_gateway.stores import promotion

        return await promotion.told(store, name)

    found = _opened(config, group, work)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"group {found['group']}: learned from {found['judged']} judged answers")
    for one in found["artifacts"]:
        typer.echo(f"  {one['version'][:12] or 'untrained':12}  {one['role'] or '-':10}  {one['added_at'] or ''}")
    if (trial := found["trial"])["lead"] is not None:
        typer.echo(f"challenger against champion: squared error {-trial['lead']:+.4f} over {trial['answers']} judged answers")
    for event in found["events"]:
        typer.echo(f"  {event['at']}  {event['action']:9} {event['version'][:12] or 'untrained':12}  {event['why']}")


def promote(
    artifact: Annotated[str, typer.Argument(help="A file that `router train` wrote, or the version of one that the group has.")],
    group: Group = "",
    now: Annotated[bool, typer.Option("--now", help="Make it the champion at once, without a trial in shadow.")] = False,
    config: Config = None,
) -> None:
    """Have an artifact run in shadow; it takes over by itself once it is measured better, or at once with --now."""
    file = _file(artifact)

    async def work(store: Store, settings: GatewayConfig, name: str) -> str:
        from hx_gateway.stores import promotion
        from hx_gateway.stores.sql import learning

        if file is not None:
            await learning.keep_artifact(store, name, *file)
        try:
            version = file[0] if file is not None else await promotion.version_of(store, name, artifact)
        except promotion.NotPossible as error:
            _fail(f"there is no such file, and {error}; hx-gateway router list shows them")
        role = await promotion.promote(store, name, version, now, "by hand")
        if not role:
            return f"{version[:12]} is the champion of {name} already"
        _noted(settings, "router.promote", name, version)
        does = "decides" if role == "champion" else "runs in shadow"
        return f"{version[:12]} {does} in {name}; gateways take it over within seconds"

    typer.echo(_opened(config, group, work))


def _noted(settings: GatewayConfig, action: str, group: str, version: str) -> None:
    """Write into the audit log what was done by hand."""
    import os

    from hx_gateway.config.storage import state_directory
    from hx_gateway.ledger.audit import at_shell, note

    note(state_directory(settings.storage, os.environ), at_shell(), action, group, version=version[:12])


def _file(artifact: str) -> tuple[str, bytes] | None:
    """Version and bytes of an artifact that is a file; None where there is no such file."""
    from hx_gateway.routing.learned.artifact import ArtifactError
    from hx_gateway.routing.learned.model import Scorer

    path = Path(artifact)
    if not path.is_file():
        return None
    try:
        return Scorer.load(path).version, path.read_bytes()
    except ArtifactError as error:
        _fail(error)


def demote(group: Group = "", config: Config = None) -> None:
    """Take the champion out: the challenger decides from here on, or without one the stated order until answers were judged."""

    async def work(store: Store, settings: GatewayConfig, name: str) -> str:
        from hx_gateway.stores import promotion

        try:
            champion, follower = await promotion.demote(store, name, "by hand")
        except promotion.NotPossible as error:
            _fail(error)
        _noted(settings, "router.demote", name, champion)
        return f"{champion[:12] or 'untrained'} is out; {follower[:12] or 'the stated order'} decides in {name} within seconds"

    typer.echo(_opened(config, group, work))


def replay(
    policy: Annotated[str, typer.Option("--policy", help="strong_share=0.3, quality=0.95, order, or always=MODEL.")],
    begin: Annotated[str, typer.Option("--from", help=f"From when: {Moment}.")] = "7d",
    end: Annotated[str, typer.Option("--to", help=f"Up to when: {Moment}.")] = "0d",
    group: Group = "",
    config: Config = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1_000_000, help="Most decisions, the latest.")] = 20_000,
    as_json: Json = False,
) -> None:
    """Decide logged requests again under another policy: cost, latency and expected quality side by side; needs no text of theirs."""
    import json

    from hx_gateway.routing.learned.replaying import PolicyError, replayed, shown

    async def work(store: Store, settings: GatewayConfig, name: str) -> dict[str, Any]:
        from hx_gateway.stores.sql.routed import decisions

        rows = await decisions(store, name, _moment(begin, "--from"), _moment(end, "--to"), most)
        if not rows:
            _fail(f"{name}: no decision is logged between --from and --to; features are kept for 30 days")
        models = settings.groups[name].models
        scorer = await _champion(store, name, models)
        prices = {
            model: (one.cost_per_request, one.cost_per_prompt_token, one.cost_per_completion_token)
            for model, one in settings.models.items()
            if model in models
        }
        try:
            return replayed(rows, policy, models, scorer, prices)
        except PolicyError as error:
            _fail(f"--policy: {error}")

    found = _opened(config, group, work)
    typer.echo(json.dumps(found) if as_json else shown(found))


def _moment(text: str, option: str) -> int:
    """The Unix milliseconds that an option names."""
    import re
    import time

    from hx_gateway.access.moments import moment_ms

    now_ms = int(time.time() * 1000)
    if span := re.fullmatch(r"(\d{1,5})([dhm])", text):
        return now_ms - int(span[1]) * {"d": 86_400_000, "h": 3_600_000, "m": 60_000}[span[2]]
    try:
        found = moment_ms(text, now_ms)
    except ValueError as error:
        _fail(f"{option}: {error}")
    return now_ms if found is None else found


async def _champion(store: Store, name: str, models: tuple[str, ...]) -> Any:
    """The scorer that decides now, with what it learned."""
    import tempfile

    from hx_gateway.routing.learned.choice import ready
    from hx_gateway.stores.learned_files import load
    from hx_gateway.stores.sql import learning

    _, standing = await learning.standing(store, name)
    found = await learning.artifacts(store, name, [standing.champion])
    with tempfile.TemporaryDirectory(prefix="hx-router-") as folder:
        for version, (_, data) in found.items():
            (Path(folder) / version).write_bytes(data)
        scorer = load(Path(folder), standing.champion, models)
    assert scorer is not None
    if standing.champion in standing.states:
        scorer.restore(standing.states[standing.champion])
    return ready(scorer, models)


COMMANDS = ((list_, "list"), (promote, "promote"), (demote, "demote"), (replay, "replay"))
"""The commands with their names."""
