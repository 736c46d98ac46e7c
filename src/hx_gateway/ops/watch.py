"""A running gateway from moment to moment: its fleet by the admin API, its traffic by the difference of two looks at the metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from hx_gateway.ops.scrape import Scrape
from hx_gateway.ops.verify_client import Client
from hx_gateway.ops.verify_report import Fault


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment.

    Args:
        url: The gateway's address.
        at_s: When, by the monotonic clock.
        health: What ``/health`` says.
        endpoints: The servers, as ``/admin/endpoints`` lists them.
        waiting: Requests that wait for a place, by name.
        metrics: The counters.
    """

    url: str
    at_s: float
    health: dict[str, Any]
    endpoints: list[dict[str, Any]]
    waiting: dict[str, int]
    metrics: Scrape


def look(client: Client) -> Look:
    """Look at a gateway once.

    Raises:
        Fault: It does not answer, or the key is not an admin's.
    """
    listed = client.ask("GET", "/admin/endpoints")
    if listed.status in (401, 403):
        raise Fault(f"an admin key is needed: {listed.error}")
    fleet = listed.wanted().json()
    health = client.ask("GET", "/health")
    metrics = client.ask("GET", "/metrics").wanted()
    told = health.json() if health.status in (200, 503) else {}
    return Look(client.url, time.monotonic(), told, fleet["data"], fleet["waiting"], Scrape(metrics.body.decode()))


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened between two looks, a second; None where nothing can be told.

    Args:
        requests: Requests that ended, by name; `calls` the same by endpoint.
        errors: Those that ended with an error of 500 and above.
        tokens: Tokens of answers, by name.
        response_s, first_token_s, overhead_s: Means in seconds.
    """

    requests: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    response_s: float | None = None
    first_token_s: float | None = None
    overhead_s: float | None = None


def rates(before: Look, now: Look) -> Rates:
    """What happened from one look to the next."""
    span_s = max(now.at_s - before.at_s, 1e-3)
    old, new = before.metrics, now.metrics

    def per_s(name: str, label: str) -> dict[str, float]:
        known = old.by(name, label)
        # A gateway that was started again counts from 0.
        return {key: max(0.0, value - known.get(key, 0.0)) / span_s for key, value in new.by(name, label).items()}

    def mean(name: str) -> float | None:
        count = new.sum(f"{name}_count") - old.sum(f"{name}_count")
        return (new.sum(f"{name}_sum") - old.sum(f"{name}_sum")) / count if count > 0 else None

    names = {one["target"] for one in new.labels("hx_gateway_target_info")}

    def within(family: str, more: dict[str, str]) -> dict[str, float]:
        return {name: max(0.0, new.sum(family, target=name, **more) - old.sum(family, target=name, **more)) / span_s for name in names}

    statuses = {one["status"] for one in new.labels("hx_gateway_requests_total") if one["status"] >= "5"}
    failed = [within("hx_gateway_requests_total", {"status": status}) for status in sorted(statuses)]
    return Rates(
        per_s("hx_gateway_requests_total", "target"),
        per_s("hx_gateway_attempts_total", "endpoint"),
        {name: sum(one[name] for one in failed) for name in names},
        within("hx_gateway_tokens_total", {"kind": "completion"}),
        mean("hx_gateway_response_seconds"),
        mean("hx_gateway_first_token_seconds"),
        mean("hx_gateway_overhead_seconds"),
    )
