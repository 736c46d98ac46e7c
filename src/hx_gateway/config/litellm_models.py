"""Makes endpoints, models and groups of the rows of a LiteLLM model_list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from hx_gateway.config.addresses import is_loopback
from hx_gateway.config.litellm_draft import Draft
from hx_gateway.config.litellm_rows import NO_NAME, Row, host_of, row_of
from hx_gateway.config.located import Path


def models(draft: Draft) -> dict[str, list[str]]:
    """Carry the model list over; returns the members of each name that became a group, and of each other name itself."""
    listed = draft.source.data.get("model_list")
    rows: list[Row] = []
    for position, entry in enumerate(listed if isinstance(listed, list) else []):
        path: Path = ("model_list", position)
        params = entry.get("litellm_params") if isinstance(entry, dict) else None
        if not isinstance(params, dict) or not isinstance(params.get("model"), str) or not str(entry.get("model_name") or ""):
            draft.say("manual", path, "needs model_name, and litellm_params with model; nothing of it was imported")
        elif (row := row_of(draft, path, entry, params)) is not None:
            rows.append(row)
    if listed is not None and not isinstance(listed, list):
        draft.say("manual", ("model_list",), "should be a list; nothing of it was imported")
    _endpoints(draft, rows)
    names: dict[str, list[Row]] = {}
    for row in rows:
        if not row.wildcard:
            names.setdefault(row.name, []).append(row)
    shuffled = str(draft.section("router_settings").get("routing_strategy", "simple-shuffle")) == "simple-shuffle"
    for several in names.values():
        _weigh(several, ("weight", "rpm", "tpm") if shuffled else ("weight",))
    made: dict[str, list[str]] = {}
    single = {name: several for name, several in names.items() if len(_alike(several)) == 1}
    for name, several in single.items():
        made[name] = [_model(draft, name, several)]
    for name, several in names.items():
        if name not in single:
            _tiers(draft, name, several, made, names)
    for row in rows:
        where: Path = (*row.path, "model_name")
        if not draft.told(where):
            draft.say("exact", where, "", ("models" if row.name in single else "groups", row.name))
    return made


def _endpoints(draft: Draft, rows: Iterable[Row]) -> None:
    """One endpoint for each address, dialect and key; rows that share one share its settings."""
    ports: dict[str, set[int]] = {}
    for row in rows:
        parts = urlsplit(row.endpoint["url"])
        ports.setdefault(parts.hostname or "server", set()).add(parts.port or 0)
    known: dict[str, str] = {}
    for row in rows:
        own = row.endpoint
        same = json.dumps([own["url"], own["provider"], own.get("api_key"), own.get("headers"), own.get("tls_verify")], sort_keys=True)
        if same not in known:
            host, port = host_of(own["url"]), urlsplit(own["url"]).port
            short = "localhost" if is_loopback(host) else host if re.fullmatch(r"[0-9.:]+", host) else _label(host)
            name = base = f"{short}-{port}" if port and len(ports[host]) > 1 else short
            number = 2
            while name in draft.data.get("endpoints", {}):
                name, number = f"{base}-{number}", number + 1
            known[same] = name
            draft.data.setdefault("endpoints", {})[name] = {"url": own["url"], "provider": own["provider"], "discover": False}
            draft.origins["endpoints", name] = row.path
        settings = draft.data["endpoints"][known[same]]
        for key, value in own.items():
            settings[key] = max(value, settings.get(key, 0.0)) if isinstance(value, float) else value
        if row.wildcard:
            settings["discover"] = True
            draft.say(
                "approximate", (*row.path, "model_name"), "became discovery: whatever the server has is served, by the server's own names"
            )
        row.place = known[same]


def _label(host: str) -> str:
    """The part of a host name that tells it from others: llm-01 of llm-01.lan, groq of api.groq.com."""
    labels = host.split(".")
    return next((label for label in labels if label not in ("api", "www", "integrate")), host)


def _weigh(rows: list[Row], keys: tuple[str, ...]) -> None:
    """Give each row its part of the traffic: by the first of ``keys`` that any of them has."""
    for key in keys:
        shares = [row.share.get(key, 0.0) for row in rows]
        if max(shares) > 0:
            if len(rows) > 1 and len(set(shares)) > 1:
                for row, share in zip(rows, shares, strict=True):
                    row.model["weight"] = share if key == "weight" else round(share / max(shares), 4)
            return


def _alike(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by what they are apart from where they are."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(json.dumps([row.order, row.model], sort_keys=True), []).append(row)
    return found


def _model(draft: Draft, name: str, rows: list[Row]) -> str:
    """One model, served wherever the rows say."""
    settings = dict(rows[0].model)
    if settings["upstream_model"] == name:
        del settings["upstream_model"]
    places = list(dict.fromkeys(row.place for row in rows))
    where: dict[str, Any] = {"endpoint": places[0]} if len(places) == 1 else {"endpoints": places}
    draft.data.setdefault("models", {})[name] = {**where, **settings}
    draft.origins["models", name] = rows[0].path
    return name


def _tiers(draft: Draft, name: str, rows: list[Row], made: dict[str, list[str]], names: Mapping[str, Any]) -> None:
    """A name whose rows differ: a group of models, and for each further ``order`` one that stands in when it is down."""
    orders = sorted({row.order for row in rows})
    tiers = [name, *(f"{name}--order-{order:g}" for order in orders[1:])]
    for tier, order in zip(tiers, orders, strict=True):
        members = [_member(draft, tier, several, names) for several in _alike([row for row in rows if row.order == order]).values()]
        draft.data.setdefault("groups", {})[tier] = {"models": members}
        draft.origins["groups", tier] = rows[0].path
        made[tier] = members
        for row in rows:
            if row.order == order:
                why = f"is one of several under this name; members can be called by their own names, too: {', '.join(members)}"
                draft.say("exact", (*row.path, "model_name"), why if len(members) > 1 else "", ("groups", tier))
    if len(tiers) > 1:
        draft.data.setdefault("fallbacks", {})[name] = {"down": tiers[1:]}


def _member(draft: Draft, tier: str, rows: list[Row], names: Mapping[str, Any]) -> str:
    upstream = rows[0].model["upstream_model"]
    candidates = [
        upstream,
        f"{tier}--{upstream}",
        f"{tier}--{upstream}--{rows[0].place}",
        *(f"{tier}--{upstream}--{n}" for n in range(2, 1000)),
    ]
    taken = draft.data.get("models", {})
    places = list(dict.fromkeys(row.place for row in rows))
    for candidate in candidates:
        there = taken.get(candidate)
        if there is not None and candidate == upstream:
            wanted = {"upstream_model": upstream, **rows[0].model}
            same = {"upstream_model": candidate, **{key: value for key, value in there.items() if key not in ("endpoint", "endpoints")}}
            if same == wanted and (there.get("endpoints") or [there.get("endpoint")]) == places:
                return str(candidate)
        if there is None and candidate not in names and not NO_NAME.search(candidate):
            return _model(draft, candidate, rows)
    raise AssertionError("more members of one name than there are names")  # pragma: no cover
