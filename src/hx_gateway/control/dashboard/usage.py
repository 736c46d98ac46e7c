"""The page Usage and cost: who and what used how much, its course over time, and the same as a sheet."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard.frame import SignedIn, render
from hx_gateway.control.dependencies import Gateway, GatewayOf
from hx_gateway.control.routes import usage
from hx_gateway.core.context import Identity
from hx_gateway.ledger.reports import Filter

SPANS = {"24 hours": 86_400, "7 days": 604_800, "30 days": 2_592_000, "90 days": 7_776_000, "year": 31_536_000}  # seconds
BY = {"key": "Key", "team": "Team", "model": "Model", "group": "Group", "endpoint": "Server", "outcome": "Outcome", "route": "Kind"}
MEASURES = {"cost": "Cost", "tokens": "Tokens", "requests": "Requests"}
_FILTERS = ("key", "team", "model", "group", "endpoint", "outcome")
_STEPS = {"hour": 3600, "day": 86_400}  # seconds
_HOURS_UP_TO_S = 604_800
_MOST = 1000  # groups that are summed
_SHOWN = 100
_LINES = 5
_MOST_POINTS = 5000  # sums that are read for a plot; for more, one line for all of them


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/usage")
    async def page(request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """The whole page."""
        given = _given(request)
        asked, identity = _asked(given), session.identity
        by, measure = given["by"], given["show"]
        found = await usage.usage(gateway, identity, asked, by=by, bucket="", limit=_MOST, form="json")
        rows = [{**row, "tokens": row["prompt_tokens"] + row["completion_tokens"]} for row in found["data"]]
        rows.sort(key=lambda row: -row[measure])
        whole = await usage.usage(gateway, identity, asked, by="", bucket="", limit=1, form="json")
        plot = await _plot(gateway, identity, asked, given, [row[by] for row in rows]) if rows else None
        return render(
            request,
            session,
            "usage.html",
            title="Usage and cost",
            given=given,
            filters={name: value for name, value in given.items() if name in _FILTERS},
            query=lambda **change: urlencode({name: value for name, value in {**given, **change}.items() if value is not None}),
            spans=list(SPANS),
            names=BY,
            measures=MEASURES,
            rows=rows[:_SHOWN],
            hidden=max(0, len(rows) - _SHOWN),
            more=found["has_more"],
            most=max((row[measure] for row in rows), default=0),
            total=whole["data"][0] if whole["data"] else None,
            as_of=found["as_of"],
            step=_step(given),
            plot=msgspec.json.encode(plot).decode() if plot is not None else "",
        )

    @routes.get("/usage/sheet")
    async def sheet(request: Request, session: SignedIn, gateway: GatewayOf, bucket: str = "") -> Response:
        """The sums as CSV, for the whole time or for each hour or day of it."""
        given = _given(request)
        step: Any = bucket if bucket in _STEPS else ""
        answer: Response = await usage.usage(gateway, session.identity, _asked(given), given["by"], step, 50_000, "csv")
        return answer

    return routes


def _given(request: Request) -> dict[str, str]:
    """What is asked for, in words that may stand in an address again."""
    query = request.query_params
    found = {name: value for name in _FILTERS if (value := query.get(name, "").strip().replace("\0", "")[:256])}
    for name, choices, usual in (("span", SPANS, "30 days"), ("by", BY, "key"), ("show", MEASURES, "cost")):
        found[name] = chosen if (chosen := query.get(name, "")) in choices else usual
    return found


def _step(given: dict[str, str]) -> str:
    return "hour" if SPANS[given["span"]] <= _HOURS_UP_TO_S else "day"


def _asked(given: dict[str, str]) -> Filter:
    wanted: dict[str, Any] = {name: given[name] for name in _FILTERS if name in given}
    step_s = _STEPS[_step(given)]
    from_s = int(time.time() - SPANS[given["span"]]) // step_s * step_s
    return Filter(**wanted, from_ms=from_s * 1000)


async def _plot(gateway: Gateway, identity: Identity, asked: Filter, given: dict[str, str], names: list[str]) -> dict[str, Any]:
    first_s, step = (asked.from_ms or 0) // 1000, _step(given)
    times = list(range(first_s, int(time.time()) + 1, _STEPS[step]))
    apart = given["by"] if len(names) * len(times) <= _MOST_POINTS else ""
    bucket: Any = step
    found = await usage.usage(gateway, identity, asked, by=apart, bucket=bucket, limit=_MOST_POINTS, form="json")
    return {**lines(found["data"], times, apart, given["show"], names), "days": step == "day"}


def lines(rows: list[dict[str, Any]], times: list[int], by: str, measure: str, names: list[str]) -> dict[str, Any]:
    """Lines over time: of the largest groups one each, and of all others together.

    Args:
        rows: Sums of `routes.usage`, with ``at``.
        times: Beginnings of the buckets in Unix seconds, evenly spaced.
        by: What the rows are grouped by; empty for one line.
        measure: Of `MEASURES`.
        names: The groups, largest first.
    """
    shown = names if len(names) <= _LINES + 1 else names[:_LINES]
    titles = [name or f"no {BY[by].lower()}" for name in shown] + ["others"] * (len(shown) < len(names)) if by else ["all"]
    columns = [[0.0] * len(times) for _ in titles]
    place = {name: number for number, name in enumerate(shown)}
    step_s = times[1] - times[0] if len(times) > 1 else 1
    for row in rows:
        at = (int(datetime.fromisoformat(row["at"]).astimezone(UTC).timestamp()) - times[0]) // step_s
        if 0 <= at < len(times):
            value = row["prompt_tokens"] + row["completion_tokens"] if measure == "tokens" else row[measure]
            columns[place.get(row[by], len(columns) - 1) if by else 0][at] += value
    return {"times": times, "names": titles, "columns": columns, "unit": "" if measure == "cost" else measure}
