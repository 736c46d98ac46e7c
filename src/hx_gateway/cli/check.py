"""``hx-gateway check``: everything wrong with a configuration, or the wiring that would result from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hx_gateway.cli.configuration import Config, File, chosen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hx_gateway.config.load import Loaded
    from hx_gateway.config.problems import Problem
    from hx_gateway.config.schema import GatewayConfig, ModelSettings

_WIDTH = 200  # of tables that no terminal shows


def _places(config: GatewayConfig, name: str, model: ModelSettings) -> list[dict[str, Any]]:
    """The deployments of one model; a model left to discovery has one without an address."""
    shared = {
        "model": name,
        "upstream_model": model.upstream_model or name,
        "weight": model.weight,
        "max_concurrent": model.max_concurrent,
        "requests_per_minute": model.requests_per_minute,
        "tokens_per_minute": model.tokens_per_minute,
    }
    if model.path is not None:
        return [{**shared, "endpoint": f"own server for {model.path}", "url": None, "provider": "openai"}] * model.replicas
    given = [model.endpoint] if model.endpoint is not None else list(model.endpoints)
    found = []
    for text in given:
        entry = config.endpoints.get(text)
        provider = model.provider or (entry.provider if entry is not None else None)
        found.append({**shared, "endpoint": text, "url": text if entry is None else entry.url, "provider": provider or "to be detected"})
    return found or [{**shared, "endpoint": "to be discovered", "url": None, "provider": model.provider or "to be detected"}]


def _names(config: GatewayConfig) -> Iterator[dict[str, Any]]:
    from hx_gateway.config.crosscheck import public_names

    algorithm = config.load_balancer.algorithm
    owners = {name: str(path[1]) for name, path, _ in public_names(config) if path[0] == "models"}
    for name, path, kind in public_names(config):
        if kind == "model":
            model = config.models[name]
            yield {"name": name, "kind": kind, "policy": model.policy or algorithm, "deployments": _places(config, name, model)}
        elif kind == "group":
            group = config.groups[name]
            members = [owners.get(member, member) for member in group.models]
            places = [place for member in members if member in config.models for place in _places(config, member, config.models[member])]
            undiscovered = [member for member in members if member not in config.models]
            yield {
                "name": name,
                "kind": kind,
                "tier": group.tier,
                "policy": group.policy or algorithm,
                "deployments": places,
                "to_be_discovered": undiscovered,
            }
        else:
            target = config.aliases[name] if path[0] == "aliases" else str(path[1])
            yield {"name": name, "kind": kind, "stands_for": target}


def _values(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every part of the configuration by its dotted path, as plain data with secrets hidden."""
    from hx_gateway.config.shape import dotted

    yield dotted(path), value
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _values(inside, (*path, name))
    elif isinstance(value, list):
        for position, inside in enumerate(value):
            yield from _values(inside, (*path, position))


def wiring(loaded: Loaded) -> dict[str, Any]:
    """What the gateway would be with this configuration, as plain data without secrets."""
    import os

    from hx_gateway.config.crosscheck import stored_keys

    config = loaded.config
    service = config.service
    host = f"[{service.host}]" if ":" in service.host else service.host
    values = dict(_values(config.model_dump(mode="json")))
    upstream = config.gateway.default_upstream
    return {
        "ok": not loaded.blockers,
        "file": str(loaded.path) if loaded.path is not None else None,
        "listen": {
            "url": f"{'https' if service.tls else 'http'}://{host}:{service.port}",
            "workers": service.workers,
            "tls": service.tls is not None,
        },
        "default_model": config.gateway.default_model or None,
        "names": list(_names(config)),
        "endpoints": [
            {"name": name, "url": entry.url, "provider": entry.provider or "to be detected", "discover": entry.discover}
            for name, entry in config.endpoints.items()
        ],
        "forward_to": upstream if upstream is None or isinstance(upstream, str) else upstream.url,
        "keys": {
            "master": config.keys.master_key is not None,
            "names": [key.name for key in config.keys.api_keys],
            "stored": stored_keys(config, os.environ),
        },
        "settings": [
            {"path": path, "value": values.get(path), "source": source} for path, source in loaded.sources.items() if source != "default"
        ],
        "unused": list(loaded.unused),
        "warnings": [problem.as_json() for problem in loaded.warnings],
        "problems": [problem.as_json() for problem in loaded.blockers],
    }


def _deployment(place: dict[str, Any]) -> str:
    where = place["endpoint"] if place["url"] in (None, place["endpoint"]) else f"{place['endpoint']} {place['url']}"
    upstream = f" as {place['upstream_model']}" if place["upstream_model"] != place["model"] else ""
    limit = f", at most {place['max_concurrent']} at once" if place["max_concurrent"] else ""
    limit += "".join(f", {place[f'{what}_per_minute']} {what} a minute" for what in ("requests", "tokens") if place[f"{what}_per_minute"])
    return f"{place['model']} on {where}{upstream} (provider {place['provider']}, weight {place['weight']:g}{limit})"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _lines(plan: dict[str, Any]) -> Iterator[str]:
    import json

    listen = plan["listen"]
    workers = f", {listen['workers']} workers" if listen["workers"] > 1 else ""
    yield f"configuration  {plan['file'] or 'none found: defaults, and what discovery finds'}"
    yield f"listens on     {listen['url']}{workers}"
    yield f"default model  {plan['default_model'] or 'none: a request must name one'}"
    names = (["master (admin)"] if plan["keys"]["master"] else []) + plan["keys"]["names"]
    if plan["keys"]["stored"]:
        names.append(f"{plan['keys']['stored']} in the store, so that a key is required")
    nobody = "none: this machine alone may call" if plan["ok"] else "none: nobody is let in"
    yield f"keys           {', '.join(names) or nobody}"
    yield f"forwards to    {plan['forward_to'] or 'nothing: other /v1 paths are refused'}"
    yield ""
    yield "names" if plan["names"] else "names: none configured"
    for entry in plan["names"]:
        if entry["kind"] == "alias":
            yield f"  {entry['name']}  alias of {entry['stands_for']}"
            continue
        tier = f", tier {entry['tier']}" if entry.get("tier") else ""
        yield f"  {entry['name']}  {entry['kind']}{tier}, policy {entry['policy']}"
        for place in entry["deployments"]:
            yield f"    -> {_deployment(place)}"
        for member in entry.get("to_be_discovered", ()):
            yield f"    -> {member}, to be discovered"
    if plan["endpoints"]:
        yield ""
        yield "endpoints"
        yield from _table(
            [
                (one["name"], one["url"], f"provider {one['provider']}", "its models are discovered" if one["discover"] else "")
                for one in plan["endpoints"]
            ]
        )
    if plan["settings"]:
        yield ""
        yield "settings that are not left at their default"
        yield from _table([(one["path"], json.dumps(one["value"]), one["source"]) for one in plan["settings"]])
    if plan["unused"]:
        yield ""
        yield f"read, but not used by this release: {', '.join(plan['unused'])}"


def examined(loaded: Loaded) -> tuple[dict[str, Any], list[Problem]]:
    """What the endpoints of a configuration really have, and what of it does not fit."""
    import asyncio
    import logging

    from hx_gateway.ops.preflight import examine

    logging.getLogger("hx_gateway").addHandler(logging.NullHandler())  # what is found is printed, not logged as well
    return asyncio.run(examine(loaded))


def _told(value: Any) -> str:
    """A value that may be unknown, in a cell."""
    if isinstance(value, list):
        return ", ".join(value)
    return "?" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


def tables(endpoints: list[dict[str, Any]], stderr: bool = False) -> None:
    """What the endpoints told, as one table of them and one of their models, to standard output or standard error."""
    from rich.console import Console
    from rich.table import Table

    # What a server says is never taken for markup. Where no terminal tells its width, a line may be long.
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    servers = Table("endpoint", "address", "reachable", "dialect", "engine", "version", "key", "slots", title="endpoints, as they are")
    models = Table(
        "model", "endpoint", "its name there", "offered", "digest", "context", "dimensions", "can", "in memory", title="models, as they are"
    )
    for one in endpoints:
        given, found = one["dialect"]["configured"], one["dialect"]["found"]
        dialect = _told(found) if given in (None, found) else f"{_told(found)}, configured {given}"
        cells = ("engine", "version", "key", "slots")
        servers.add_row(one["name"], one["url"], _told(one["reachable"]), dialect, *(_told(one[cell]) for cell in cells))
        for model in one["models"]:
            known = ("offered", "digest", "context_length", "dimensions", "capabilities", "in_memory")
            shown = {**model, "digest": model["digest"] and model["digest"][:12]}
            models.add_row(model["model"], one["name"], model["upstream_model"], *(_told(shown[cell]) for cell in known))
    for table in (servers, models):
        console.print()
        console.print(table if table.row_count else f"{table.title}: none")


def check(
    file: File = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Also ask each endpoint what it has; no token is generated and no model loaded.")
    ] = False,
) -> None:
    """Check a configuration: print every problem (exit code 1), or what would result (exit code 0).

    Plug-ins that it names are imported; nothing is asked over the network without `--live`.
    """
    import json
    import os

    from hx_gateway.config.load import ConfigError, load
    from hx_gateway.ops.plugged import plugged

    try:
        loaded = load(chosen(file, config), os.environ, plugged)
    except ConfigError as error:
        if as_json:
            typer.echo(json.dumps({"ok": False, "problems": [problem.as_json() for problem in error.problems]}, indent=2))
        else:
            typer.echo(str(error), err=True)
            count = len(error.problems)
            typer.echo(f"{count} problem{'s' if count > 1 else ''}; nothing was started", err=True)
        raise typer.Exit(1) from None
    plan = wiring(loaded)
    findings: list[Problem] = []
    if live:
        plan["live"], findings = examined(loaded)
        plan["live"]["findings"] = [finding.as_json() for finding in findings]
        plan["ok"] = plan["ok"] and all(finding.level != "error" for finding in findings)
    if as_json:
        typer.echo(json.dumps(plan, indent=2))
    else:
        for line in _lines(plan):
            typer.echo(line)
        if live:
            tables(plan["live"]["endpoints"])
        for problem in [*loaded.warnings, *loaded.blockers, *findings]:
            typer.echo(f"{'warning' if problem.level == 'warning' else 'problem'}: {problem}", err=True)
    if not plan["ok"]:
        raise typer.Exit(1)
