"""`hx-gateway keys`: make, list, rotate, limit and revoke keys, directly in the store, whether a gateway runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hx_gateway.cli.configuration import Config, configured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hx_gateway.access.snapshot import StoredKey
    from hx_gateway.config.schema import GatewayConfig
    from hx_gateway.stores.sql.engine import Store
    from hx_gateway.stores.sql.keys import By

_WIDTH = 200  # of tables that no terminal shows
_STATEMENT_S = 10.0
_PAGE = 1000
_SHOWN = ("name", "id", "hint", "state", "owner", "team", "tags", "models", "namespaces", "limits", "expires_at")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Stdin = Annotated[bool, typer.Option("--stdin", help="Take the key from standard input instead of making one.")]
Which = Annotated[str, typer.Argument(help="The key's name or id.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Model, alias or group it may use; repeat for more, none for all.")]
Namespaces = Annotated[
    list[str] | None, typer.Option("--namespace", help="Namespace of documents it may use; repeat for more, none for all.")
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Free label, for reports; repeat for more.")]
Admin = Annotated[bool | None, typer.Option("--admin/--no-admin", help="Whether admin routes and endpoint addresses are open to it.")]
Owner = Annotated[str | None, typer.Option(help="Whose it is, for people.")]
Team = Annotated[str | None, typer.Option(help="Who it is counted for, in reports.")]
Expires = Annotated[str | None, typer.Option(help="When it ends: 90d, 12h, or a moment such as 2030-01-31; never for no end.")]
Rps = Annotated[float | None, typer.Option("--rps", help="Steady rate of requests per second; 0 for no limit, here and below.")]
Burst = Annotated[int | None, typer.Option(help="Most requests at once after a pause; 0 for one second's worth of --rps.")]
Tpm = Annotated[int | None, typer.Option("--tpm", help="Steady rate of tokens per minute.")]
MaxConcurrent = Annotated[int | None, typer.Option(help="Most requests under way.")]
DayCost = Annotated[float | None, typer.Option(help="Most money a day (UTC).")]
MonthCost = Annotated[float | None, typer.Option(help="Most money a calendar month (UTC).")]
DayTokens = Annotated[int | None, typer.Option(help="Most tokens a day (UTC).")]
MonthTokens = Annotated[int | None, typer.Option(help="Most tokens a calendar month (UTC).")]


class _Desk:
    """The store that a configuration names, used for one command."""

    def __init__(self, config: Path | None) -> None:
        from urllib.parse import urlsplit

        from hx_gateway.config.storage import database_url

        self.config, self.folder = configured(config)
        self.url = database_url(self.config.storage, self.folder)
        parts = urlsplit(self.url)
        self.file = Path(self.url.removeprefix("sqlite:///")).expanduser() if parts.scheme == "sqlite" else None
        self.place = str(self.file or f"{parts.netloc.rpartition('@')[2]}{parts.path}")
        self._own = self.config.storage.database_url is None

    def run(self, work: Callable[[Store, By], Awaitable[Any]], changes: bool = True) -> Any:
        """Do something with the store; errors end the command in words."""
        import asyncio

        from hx_gateway.core.errors import Unavailable
        from hx_gateway.stores.sql.keys import KeyEnded, KeyMissing, KeyTaken

        try:
            return asyncio.run(self._run(work, changes))
        except (KeyEnded, KeyMissing, KeyTaken) as error:
            hint = "; hx-gateway keys list shows them" if isinstance(error, KeyMissing) else ""
            typer.echo(f"hx-gateway: {error}{hint}", err=True)
        except (Unavailable, OSError) as error:
            said = "no answer in time" if isinstance(error, TimeoutError) else error
            typer.echo(
                f"hx-gateway: {self.place}: {said}; nothing else was tried, see storage.database_url and storage.state_directory", err=True
            )
        raise typer.Exit(1)

    async def _run(self, work: Callable[[Store, By], Awaitable[Any]], changes: bool) -> Any:
        import asyncio
        import os

        from hx_gateway.core.errors import Unavailable
        from hx_gateway.ledger.audit import at_shell
        from hx_gateway.stores.known_keys import renew
        from hx_gateway.stores.sql.keys import By
        from hx_gateway.stores.sql.upgrade import opened

        if self._own:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        async with asyncio.timeout(4 * _STATEMENT_S):
            store = await opened(self.url, _STATEMENT_S, 1)
        try:
            done = await work(store, By(at_shell(), os.uname().nodename))
            if changes and self.folder.is_dir():
                try:
                    await renew(store, self.folder)
                except (Unavailable, OSError) as error:  # a gateway that runs looks for itself
                    typer.echo(
                        f"hx-gateway: {self.folder}: {error or 'no answer in time'}; a running gateway takes it from the store", err=True
                    )
            return done
        finally:
            await store.close()

    @property
    def empty(self) -> bool:
        """Whether there can be no key, because there is no file."""
        return self.file is not None and not self.file.exists()


def _body(kind: type[Any], **given: Any) -> Any:
    """A checked body of what was given on the command line; mistakes end the command."""
    from pydantic import ValidationError

    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_url=False):
            field = ".".join(str(part) for part in problem["loc"])
            typer.echo(f"hx-gateway: {field}: {problem['msg'].removeprefix('Value error, ')}", err=True)
        raise typer.Exit(2) from None


def _given() -> str:
    """The key on standard input; one that protects nothing ends the command."""
    import sys

    from hx_gateway.config.weak_keys import fault

    text = sys.stdin.readline().rstrip("\r\n")
    if why := fault(text):
        typer.echo(f"hx-gateway: the key {why}", err=True)
        raise typer.Exit(2)
    return text


def _limits(
    rps: float | None, burst: int | None, tpm: int | None, most: int | None, day_cost: float | None, month_cost: float | None,
    day_tokens: int | None, month_tokens: int | None,
) -> dict[str, Any] | None:  # fmt: skip
    given = {
        "requests_per_second": rps, "burst": burst, "tokens_per_minute": tpm, "max_concurrent": most,
        "day_cost": day_cost, "month_cost": month_cost, "day_tokens": day_tokens, "month_tokens": month_tokens,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None} or None


def _warn_of_names(config: GatewayConfig, names: list[str] | None) -> None:
    from hx_gateway.config.crosscheck import discovers, public_names

    known = {name for name, _, _ in public_names(config)}
    for name in names or ():
        if name not in known and not discovers(config):
            typer.echo(f"warning: no model, alias or group is called {name!r} in this configuration", err=True)


def _show(key: StoredKey, as_json: bool, text: str = "") -> None:
    """Print one key; with ``text`` the key itself, which alone goes to standard output."""
    import json

    from hx_gateway.control.key_bodies import now_ms

    told = key.told(now_ms())
    if as_json:
        typer.echo(json.dumps({**told, **({"key": text} if text else {})}, indent=2))
        return
    _print([(name, _cell(name, told[name])) for name in told], to_errors=bool(text))
    if text:
        typer.echo("This is the key. It is shown this once; the store keeps only its hash.", err=True)
        typer.echo(text)


def _cell(name: str, value: Any) -> str:
    if name == "limits":
        return ", ".join(f"{limit} {most:g}" for limit, most in value.items() if most) or "none"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    if name in ("models", "namespaces") and value is None:
        return "all"
    return {None: "never" if name == "expires_at" else "", True: "yes", False: "no"}.get(value, str(value))


def _print(rows: list[tuple[str, ...]], heads: tuple[str, ...] = (), to_errors: bool = False) -> None:
    from rich.console import Console
    from rich.table import Table

    # What is in a name is never taken for markup. Where no terminal tells its width, a line may be long.
    console = Console(markup=False, highlight=False, emoji=False, stderr=to_errors)
    if not console.is_terminal:
        console.width = _WIDTH
    table = Table(*heads, show_header=bool(heads))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def create(
    name: Annotated[str, typer.Argument(help="Its name in logs and reports; unique, for ever.")],
    model: Models = None, namespace: Namespaces = None, admin: Admin = None, owner: Owner = None, team: Team = None, tag: Tags = None,
    expires: Expires = None, rps: Rps = None, burst: Burst = None, tpm: Tpm = None, max_concurrent: MaxConcurrent = None,
    day_cost: DayCost = None, month_cost: MonthCost = None, day_tokens: DayTokens = None, month_tokens: MonthTokens = None,
    stdin: Stdin = False, config: Config = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Make a key; it is printed once, and let in by running gateways within a second."""
    from hx_gateway.control.key_bodies import KeyDraft
    from hx_gateway.stores.sql import keys

    limits = _limits(rps, burst, tpm, max_concurrent, day_cost, month_cost, day_tokens, month_tokens)
    body = _body(
        KeyDraft, name=name, models=model, namespaces=namespace, admin=admin, owner=owner, team=team, tags=tag,
        expires=None if expires == "never" else expires, limits=limits,
    )  # fmt: skip
    desk = _Desk(config)
    if name in {key.name for key in desk.config.keys.api_keys}:
        typer.echo(f"hx-gateway: the configuration has a key called {name!r}, which would win; choose another name", err=True)
        raise typer.Exit(1)
    _warn_of_names(desk.config, model)
    key, text = body.made(_given() if stdin else "")
    desk.run(lambda store, by: keys.create(store, key, by))
    _show(key, as_json, text)


def listed(config: Config = None, as_json: Json = False) -> None:
    """List the keys of the store, also expired and revoked ones; those of the configuration are shown by `check`."""
    import json

    from hx_gateway.control.key_bodies import now_ms
    from hx_gateway.stores.sql import keys

    desk = _Desk(config)

    async def all_of(store: Store, by: By) -> list[StoredKey]:
        found: list[StoredKey] = []
        while page := await keys.page(store, _PAGE, found[-1].id if found else ""):
            found += page
        return found

    found = [] if desk.empty else [key.told(now_ms()) for key in desk.run(all_of, changes=False)]
    if as_json:
        typer.echo(json.dumps({"place": desk.place, "keys": found}, indent=2))
    elif found:
        _print([tuple(_cell(name, key[name]) for name in _SHOWN) for key in found], _SHOWN)
    else:
        typer.echo(f"{desk.place} has no keys; hx-gateway keys create NAME makes one")


def show(which: Which, config: Config = None, as_json: Json = False) -> None:
    """Show one key."""
    from hx_gateway.stores.sql import keys

    desk = _Desk(config)
    if desk.empty:
        typer.echo(f"hx-gateway: {desk.place} has no keys; hx-gateway keys create NAME makes one", err=True)
        raise typer.Exit(1)
    _show(desk.run(lambda store, by: keys.get(store, which), changes=False), as_json)


def rotate(
    which: Which,
    grace: Annotated[str, typer.Option(help="How long the old key is let in beside the new one; 0 ends it at once.")] = "1h",
    stdin: Stdin = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Replace a key by a new one of the same name, which is printed once."""
    from hx_gateway.access.keys import new_key
    from hx_gateway.control.key_bodies import KeyRotation, rotated
    from hx_gateway.stores.sql import keys

    grace = _body(KeyRotation, grace=grace).grace
    text = _given() if stdin else new_key()
    key = _Desk(config).run(lambda store, by: keys.change(store, which, by, "key.rotate", lambda key: rotated(key, text, grace)))
    _show(key, as_json, text)


def revoke(which: Which, config: Config = None, as_json: Json = False) -> None:
    """Revoke a key for good; running gateways refuse it within a second."""
    from hx_gateway.control.key_bodies import revoked
    from hx_gateway.stores.sql import keys

    _show(_Desk(config).run(lambda store, by: keys.change(store, which, by, "key.revoke", revoked)), as_json)


def limits(
    which: Which, rps: Rps = None, burst: Burst = None, tpm: Tpm = None, max_concurrent: MaxConcurrent = None, day_cost: DayCost = None,
    month_cost: MonthCost = None, day_tokens: DayTokens = None, month_tokens: MonthTokens = None, config: Config = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Change how much a key may use; what is not named stays, 0 takes a limit away."""
    given = _limits(rps, burst, tpm, max_concurrent, day_cost, month_cost, day_tokens, month_tokens)
    _change(config, which, as_json, limits=given)


def change(
    which: Which, model: Models = None, all_models: Annotated[bool, typer.Option("--all-models", help="Let it use every model.")] = False,
    namespace: Namespaces = None, admin: Admin = None, owner: Owner = None, team: Team = None, tag: Tags = None, expires: Expires = None,
    config: Config = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Change what a key may use, whose it is, or when it ends; what is not named stays."""
    nulls = {**({"models": None} if all_models else {}), **({"expires": None} if expires == "never" else {})}
    given = {"models": model, "namespaces": namespace, "admin": admin, "owner": owner, "team": team, "tags": tag, "expires": expires}
    _change(config, which, as_json, nulls, **given)


def _change(config: Path | None, which: str, as_json: bool, nulls: dict[str, None] | None = None, **given: Any) -> None:
    from hx_gateway.control.key_bodies import KeyChange
    from hx_gateway.stores.sql import keys

    known = {name: value for name, value in given.items() if value is not None and name not in (nulls or {})}
    body = _body(KeyChange, **known).model_copy(update=nulls)
    desk = _Desk(config)
    _warn_of_names(desk.config, known.get("models"))
    _show(desk.run(lambda store, by: keys.change(store, which, by, "key.change", body.changes)), as_json)


def group() -> typer.Typer:
    """The commands."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    for name, function in (
        ("create", create), ("list", listed), ("show", show), ("rotate", rotate), ("revoke", revoke), ("limits", limits), ("change", change),
    ):  # fmt: skip
        app.command(name)(function)
    return app
