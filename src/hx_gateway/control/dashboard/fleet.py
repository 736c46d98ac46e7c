"""The page Fleet: every machine with its health, its load and what is in its memory, live; and taking one out of service."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard import live
from hx_gateway.control.dashboard.figures import Rate, Rates
from hx_gateway.control.dashboard.frame import Session, SignedIn, go, part, render
from hx_gateway.control.dependencies import GatewayOf, gateway_of, siblings_of
from hx_gateway.control.fleet import together
from hx_gateway.control.routes.endpoints import drain
from hx_gateway.telemetry.history import EVERY_S, SETTLED_S, course

_LINES = {
    "waits": {
        "p50": "response_p50_s",
        "p95": "response_p95_s",
        "first token p50": "first_token_p50_s",
        "first token p95": "first_token_p95_s",
    },
    "load": {"under way": "in_flight", "failed/s": "errors_per_s"},
}
"""Plots of all requests: their lines by title, each a figure of the history."""
_ORDER = ("down", "resting", "partly", "unknown", "draining", "drained", "up")
_NOTHING = Rate()


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/fleet")
    async def page(request: Request, session: SignedIn) -> Response:
        """The whole page."""
        seen = await _seen(request, {})
        past = await _past(request, [one["name"] for one in seen["servers"]])
        return render(request, session, "fleet.html", title="Fleet", past=past, **seen)

    @routes.get("/fleet/live")
    async def follow(request: Request, session: SignedIn) -> Response:
        """What changes on it."""
        rates = Rates()
        ended_s = 0  # of the latest step of the history that was told

        async def look() -> dict[str, Any]:
            nonlocal ended_s
            shown = await _parts(request, session, rates)
            book, now_s = gateway_of(request).telemetry.book, gateway_of(request).clock.wall()
            if shown["data"] and now_s >= ended_s + EVERY_S + SETTLED_S:
                latest = await asyncio.to_thread(course, book, now_s, 1)
                for ended_s in latest["times"]:
                    lines = {plot: {title: latest["all"][figure][0] for title, figure in _LINES[plot].items()} for plot in _LINES}
                    shown["data"] |= {"step": {"at": ended_s, **lines}}
            return shown

        return live.stream(request, session, look)

    @routes.post("/fleet/{name:path}/drain")
    async def out(name: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Takes an endpoint out of service."""
        done = drain(gateway, request, session.identity, name, True)
        without = f" Nothing serves {', '.join(done['left_without'])} now." if done["left_without"] else ""
        return go(request, "/ui/fleet", f"{name} is drained: nothing new is sent there, and what is under way is finished.{without}")

    @routes.post("/fleet/{name:path}/undrain")
    async def back(name: str, request: Request, session: SignedIn, gateway: GatewayOf) -> Response:
        """Puts it back."""
        drain(gateway, request, session.identity, name, False)
        return go(request, "/ui/fleet", f"{name} is back in service.")

    return routes


async def _seen(request: Request, rates: dict[str, Rate]) -> dict[str, Any]:
    """What the templates show."""
    found = together(await siblings_of(request).ask("fleet"))
    servers = [
        {**one, "id": f"e{number}", "rate": rates.get(name, _NOTHING)} for number, (name, one) in enumerate(found["endpoints"].items())
    ]
    states = {state: sum(one["state"] == state for one in servers) for state in _ORDER}
    total = Rate(*(sum(getattr(rate, field) for rate in rates.values()) for field in ("requests", "read", "written")))
    return {
        "servers": servers,
        "states": states,
        "waiting": found["waiting"],
        "total": total,
        "in_flight": sum(one["in_flight"] for one in servers),
        "now_ms": gateway_of(request).clock.wall() * 1000,
        "measured": bool(rates),
    }


async def _past(request: Request, names: list[str]) -> dict[str, str]:
    """What the plots begin with: the last hour, as JSON by plot."""
    gateway = gateway_of(request)
    found = await asyncio.to_thread(course, gateway.telemetry.book, gateway.clock.wall())
    none = [None] * len(found["times"])
    plots = {plot: {title: found["all"][figure] for title, figure in lines.items()} for plot, lines in _LINES.items()}
    for plot, figure in (("tokens", "completion_tokens_per_s"), ("requests", "requests_per_s")):
        plots[plot] = {name: found["endpoints"].get(name, {}).get(figure, none) for name in names}
    return {plot: msgspec.json.encode({"times": found["times"], "series": series}).decode() for plot, series in plots.items()}


async def _parts(request: Request, session: Session, rates: Rates) -> dict[str, Any]:
    seen = await _seen(request, rates.of(gateway_of(request)))
    shown: dict[str, Any] = {"figures": part(request, "fleet_figures.html", **seen)}
    # The list itself only changes with the set of servers: who reads or tabs through one is not thrown out of it.
    shown["servers"] = "".join(f'<article class="card server" id="{one["id"]}"></article>' for one in seen["servers"])
    for one in seen["servers"]:
        await asyncio.sleep(0)  # chats go on between two of many servers
        shown[one["id"]] = part(request, "fleet_server.html", one=one, token=session.kept.csrf, **seen)
    shown["data"] = seen["measured"] and {
        "at": seen["now_ms"] / 1000,
        "series": {one["name"]: round(one["rate"].written, 2) for one in seen["servers"]},
        "requests": {one["name"]: round(one["rate"].requests, 2) for one in seen["servers"]},
    }
    return shown
