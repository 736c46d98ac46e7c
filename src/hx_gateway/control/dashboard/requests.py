"""The page Requests: the log as it grows, what is looked for in it, and the whole story of one request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard import live
from hx_gateway.control.dashboard.frame import SignedIn, part, render
from hx_gateway.control.dependencies import Gateway, GatewayOf
from hx_gateway.control.routes import usage
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import CATALOGUE, Failure
from hx_gateway.ledger.reports import Filter

_ROWS = 50
_NAMES = ("model", "group", "endpoint", "outcome", "key", "user", "route")
_SPANS = {"15m": 900, "1h": 3600, "24h": 86_400, "7d": 604_800}  # seconds


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the time that a request took.

    Args:
        name: What was done.
        ms: For how long.
        at: Where it begins in the whole, from 0 to 100.
        width: How much of the whole it is, from 0 to 100.
        tone: Number of its colour.
    """

    name: str
    ms: float
    at: float
    width: float
    tone: int


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/requests")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """The whole page."""
        asked, given = _asked(request)
        cursor = request.query_params.get("cursor", "")
        found = await _page(gateway, session.identity, asked, cursor)
        return render(
            request,
            session,
            "requests.html",
            title="Requests",
            given=given,
            spans=_SPANS,
            codes=["ok", *sorted(kind.code for kind in CATALOGUE)],
            models=sorted({one.model for target in gateway.registry.targets.values() for one in target.deployments}),
            groups=[target.name for target in gateway.registry.targets.values() if target.kind == "group"],
            endpoints=list(gateway.registry.endpoints),
            cursor=cursor,
            live="" if cursor else f"/ui/requests/live?{urlencode(given)}",
            **found,
        )

    @routes.get("/requests/live")
    async def follow(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """The newest rows, as they come."""
        _, given = _asked(request)
        shown: list[str] = []
        parts: dict[str, Any] = {}

        async def look() -> dict[str, Any]:
            nonlocal shown
            try:
                asked, _ = _asked(request)
                found = await _page(gateway, session.identity, asked, "")
                ids = [row["id"] for row in found["rows"]]
                if ids != shown or "rows" not in parts:  # a row that is there does not change, and filling it in takes time
                    shown, parts["rows"] = ids, part(request, "requests_rows.html", given=given, **found)
                parts["problem"] = ""
            except Failure as failure:
                parts["problem"] = part(request, "problem.html", failure=failure)
            return dict(parts)

        return live.stream(request, session, look)

    @routes.get("/requests/{id}")
    async def story(id: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """One request."""
        found = await usage.story(id, request, gateway, session.identity)
        return render(request, session, "request.html", title=f"Request {found['id']}", one=found, phases=phases(found), why=why(found))

    return routes


def _asked(request: Request) -> tuple[Filter, dict[str, str]]:
    """What is looked for, and the same as it was given."""
    query = request.query_params
    given = {name: value for name in (*_NAMES, "min_ms", "since") if (value := query.get(name, "").strip().replace("\0", ""))}
    try:
        least_ms = float(given["min_ms"]) if "min_ms" in given else None
    except ValueError:
        raise Failure(errors.INVALID_VALUE, "the least duration should be a number of milliseconds", param="min_ms") from None
    span_s = _SPANS.get(given.get("since", ""))
    from_ms = int((time.time() - span_s) * 1000) if span_s else None
    wanted: dict[str, Any] = {name: given[name] for name in _NAMES if name in given}
    return Filter(**wanted, min_ms=least_ms, from_ms=from_ms), given


async def _page(gateway: Gateway, identity: Identity, asked: Filter, cursor: str) -> dict[str, Any]:
    found = await usage.log(gateway, identity, asked, cursor, _ROWS)
    return {"rows": found["data"], "next": found["next"], "as_of": found["as_of"]}


def phases(one: dict[str, Any]) -> list[Phase]:
    """Where the time of a request went, in order."""
    whole = max(one["duration_ms"], 0.001)
    first = one["ttft_ms"] if one["ttft_ms"] is not None else whole
    failed = min(sum(attempt["duration_ms"] for attempt in one["trail"]), first)
    waited = min(one["queued_ms"], first - failed)
    loaded = min(one["load_ms"], first - failed - waited)
    parts = [
        ("Waiting for a place", waited, 2),
        ("Attempts that failed", failed, 4),
        ("Loading the model", loaded, 3),
        ("To the first byte" if one["ttft_ms"] is not None else "Without an answer", first - failed - waited - loaded, 6),
        ("Writing the answer", whole - first, 1),
    ]
    found, at = [], 0.0
    for name, ms, tone in parts:
        if ms > 0.0005 * whole:
            found.append(Phase(name, ms, at, 100 * ms / whole, tone))
            at += 100 * ms / whole
    return found


def why(one: dict[str, Any]) -> list[dict[str, Any]]:
    """Each attempt's decision, as ``decision.html`` shows it."""
    return [explained(decision, decision.get("explanation") or {}) for decision in one["decisions"]]


def explained(decision: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """A decision as ``decision.html`` shows it.

    Args:
        decision: With ``model``, ``endpoint``, ``policy`` and ``reason``.
        told: What was weighed; empty where that is not kept.
    """
    candidates = sorted(told.get("candidates", ()), key=lambda candidate: (bool(candidate["removed"]), candidate["total"] or 0.0))
    terms = list(dict.fromkeys(name for candidate in candidates for name, seconds in candidate["terms"].items() if seconds))
    return {"attempt": 0, **decision, "told": told, "candidates": candidates, "terms": terms}
