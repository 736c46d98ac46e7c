"""`hx-gateway endpoints`: the servers of a running gateway as it sees them, and taking one out of service and back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

_TIMEOUT_S = 15.0

Url = Annotated[str, typer.Option("--url", envvar="HX_URL", help="Address of the gateway.")]
Key = Annotated[str, typer.Option("--key", help="Environment variable that holds an admin key; without it HX_API_KEY, else MASTER_KEY.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Name = Annotated[str, typer.Argument(help="The endpoint's name.")]
_URL, _KEY = "http://127.0.0.1:8000", ""


def asked(url: str, key: str, method: str, path: str, body: bytes | None = None, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """An answer of a running gateway; where there is none, the command ends with the reason."""
    import json
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from hx_gateway.cli.verify import key_from

    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} is no http or https address", param_hint="--url")
    token = key_from(key)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
    try:
        with urlopen(Request(url.rstrip("/") + path, body, headers, method=method), timeout=timeout_s) as answer:  # noqa: S310 - checked above
            found: dict[str, Any] = json.load(answer)
            return found
    except HTTPError as error:
        try:
            why = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            why = f"HTTP status {error.code}, which is no answer of a gateway"
        if error.code == 401 and not token:
            why = "the environment has no HX_API_KEY and no MASTER_KEY; put an admin key there, or name another variable with --key"
    except (URLError, OSError, ValueError) as error:
        why = f"no answer from {url}: {getattr(error, 'reason', error)}"
    typer.echo(f"hx-gateway: {why}", err=True)
    raise typer.Exit(1)


def list_endpoints(url: Url = _URL, key: Key = _KEY, as_json: Json = False) -> None:
    """List every endpoint with its state, as all workers see it."""
    found = asked(url, key, "GET", "/admin/endpoints")
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    import sys

    from rich.console import Console
    from rich.table import Table

    from hx_gateway.cli.verify import WIDTH

    table = Table("name", "state", "under way", "in memory", "address", "", box=None, header_style="bold")
    for one in found["data"]:
        drained = f"drained by {one['drained']['by']}, {one['drained']['at']}" if one["drained"] else ""
        loaded = ", ".join(held["name"] for held in one["loaded"] or ())
        table.add_row(one["name"], one["state"], str(one["in_flight"]), loaded, one["address"], drained or one["error"] or "")
    table.columns[4].overflow = "fold"  # an address that is cut short is none
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH).print(table)


def drain(name: Name, url: Url = _URL, key: Key = _KEY) -> None:
    """Send nothing new to an endpoint; what is under way there is finished."""
    _change(name, url, key, "drain")


def undrain(name: Name, url: Url = _URL, key: Key = _KEY) -> None:
    """Put a drained endpoint back into service."""
    _change(name, url, key, "undrain")


def _change(name: str, url: str, key: str, verb: str) -> None:
    from urllib.parse import quote

    done = asked(url, key, "POST", f"/admin/endpoints/{quote(name)}/{verb}")
    state = "drained" if done["drained"] else "in service"
    under_way = f"; {done['in_flight']} requests are still under way there" if done["drained"] and done["in_flight"] else ""
    typer.echo(f"{name} is {state}{'' if done['changed'] else ' already'}{under_way}")
    if done["left_without"]:
        typer.echo(f"Nothing serves {', '.join(done['left_without'])} now.", err=True)


def group() -> typer.Typer:
    """All commands below ``endpoints``."""
    several = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
    for name, function in (("list", list_endpoints), ("drain", drain), ("undrain", undrain)):
        several.command(name, help=function.__doc__)(function)
    return several
