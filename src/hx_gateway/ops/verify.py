"""Verifies a running gateway from outside, as its clients see it: everything it promises is asked for, once, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hx_gateway.config.crosscheck import public_names
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.ops import verify_gateway as whole
from hx_gateway.ops.scrape import Scrape
from hx_gateway.ops.verify_client import Client
from hx_gateway.ops.verify_names import Name
from hx_gateway.ops.verify_report import Fault, Report, Result, Skipped

EXACT = "hx-chat"
"""The name whose chat must say the asked text and nothing else, besides the default model."""


@dataclass(frozen=True, slots=True)
class Expect:
    """What must be there, beyond what the gateway itself says it has.

    Args:
        names: Public names that must be listed.
        dimensions: Length of the vectors of a name.
        members: The models that serve a name.
        stores: Of ``postgres``, ``redis`` and ``qdrant`` those that must be in use.
        default: The default model; empty for none.
        anyone: Whether it is meant that no key is needed.
    """

    names: tuple[str, ...] = ()
    dimensions: Mapping[str, int] = field(default_factory=dict)
    members: Mapping[str, frozenset[str]] = field(default_factory=dict)
    stores: tuple[str, ...] = ()
    default: str = ""
    anyone: bool = False


def expected(config: GatewayConfig) -> Expect:
    """What a gateway with this configuration must show."""
    storage = config.storage
    database = storage.database_url.reveal() if storage.database_url is not None else ""
    stores = (("postgres", database.startswith("postgres")), ("redis", storage.redis_url), ("qdrant", storage.qdrant_url))
    return Expect(
        names=tuple(dict.fromkeys(name for name, _, _ in public_names(config))),
        dimensions={name: model.dimensions for name, model in config.models.items() if model.dimensions},
        members={name: frozenset(group.models) & frozenset(config.models) for name, group in config.groups.items()},
        stores=tuple(name for name, used in stores if used),
        default=config.gateway.default_model,
        anyone=config.keys.master_key is None and not config.keys.api_keys,
    )


def run(
    url: str,
    key: str = "",
    expect: Expect | None = None,
    on_result: Callable[[Result], object] = lambda result: None,
    timeout_s: float = 180.0,
) -> Report:
    """Verify a gateway.

    Args:
        url: Its address, without ``/v1``.
        key: An API key; one with admin scope sees more. Empty for none.
        expect: What must be there; None for what it says itself.
        on_result: Called with each result as it comes.
        timeout_s: Longest wait for a byte of an answer, in seconds: a model may have to be loaded.

    Raises:
        ValueError: The address is none.
    """
    expect, client = expect or Expect(), Client(url, key, timeout_s)
    report = Report(client.url, on_result=on_result)
    if not report.check("ready", "", lambda: _ready(client, report)):
        return report
    entries: list[dict[str, Any]] = []
    if not report.check("models", "", lambda: _listed(client, entries)):
        # The key may be the reason; whether anyone is let in can be told all the same.
        report.check("auth", "", lambda: whole.auth(client, key, "", expect.anyone))
        return report
    names = {str(entry["id"]): entry for entry in entries}
    for name in expect.names:
        if name not in names:
            report.check("listed", name, _missing)
    status = client.ask("GET", "/models/status")
    told: dict[str, Any] = status.json() if status.status == 200 else {"models": []}
    by_name = {target["name"]: target for target in told["models"]}
    resting = whole.endpoints(client, report, told)
    before = client.ask("GET", "/metrics")
    metrics = Scrape(before.body.decode()) if before.status == 200 else None
    for name, entry in names.items():
        about = entry["hx"]
        Name(
            client,
            report,
            entry,
            by_name.get(name),
            expect.dimensions.get(name) or (about["dimensions"] if about["mode"] == "embedding" else None),
            expect.members.get(name),
            name in (EXACT, expect.default),
            resting,
        ).check()
    if metrics is not None:
        report.check("counters", "", lambda: whole.counters(client, report, metrics))
        report.check("overhead", "", lambda: whole.overhead(client, metrics))
    else:
        report.check("counters", "", _unmeasured)
    some = next((entry for entry in entries if entry["hx"]["available"]), None)
    report.check("auth", "", lambda: whole.auth(client, key, str(entries[0]["id"]), expect.anyone))
    report.check("refusals", "", lambda: whole.refusals(client))
    if some is not None:
        embeds = some["hx"]["mode"] == "embedding"
        report.check("limits", "", lambda: whole.limits(client, str(some["id"]), embeds))
    whole.stores(client, report, expect.stores)
    report.check("documents", "", lambda: whole.documents(client))
    if metrics is not None:
        report.check("ledger", "", lambda: whole.ledger(client))
    return report


def _ready(client: Client, report: Report) -> str:
    alive = client.ask("GET", "/healthz").wanted().json()
    report.version = str(alive.get("version", ""))
    if alive.get("ok") is not True:
        raise Fault(f"/healthz does not say that it is ok: {alive}")
    client.ask("GET", "/readyz").wanted()
    return f"{alive.get('service')} {report.version}, up for {alive.get('uptime_s', 0):.0f} s"


def _listed(client: Client, entries: list[dict[str, Any]]) -> str:
    found = client.ask("GET", "/v1/models").wanted().json()
    if not isinstance(found, dict) or not all("hx" in one for one in found.get("data", [{}])):
        raise Fault("/v1/models is not that of an HX Gateway; for a model server itself there is --node")
    entries += found["data"]
    if not entries:
        raise Fault("no model is served: name model servers in the configuration")
    kinds = [entry["hx"]["kind"] for entry in entries]
    return ", ".join(
        f"{kinds.count(kind)} {kind}{'' if kinds.count(kind) == 1 else 's' if kind != 'alias' else 'es'}" for kind in dict.fromkeys(kinds)
    )


def _missing() -> str:
    raise Fault("the configuration names it, but the gateway does not list it")


def _unmeasured() -> str:
    raise Skipped("there are no metrics at /metrics")
