"""The page Fleet: every machine with its health, its load and what is in its memory, live; and taking one out of service."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard import live
from hx_gateway.control.dashboard.figures import Rate, Rates
from hx_gateway.control.dashboard.frame import Session, SignedIn, go, part, render
from hx_gateway.control.dependencies import GatewayOf, gateway_of, siblings_of
from hx_gateway.control.fleet import together
from hx_gateway.control.routes.endpoints import drain

_ORDER = ("down", "resting", "partly", "unknown", "drained", "up")
_NOTHING = Rate()


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/fleet")
    async def page(request: Request, session: SignedIn) -> Response:
        """The whole page."""
        return render(request, session, "fleet.html", title="Fleet", **await _seen(request, {}))

    @routes.get("/fleet/live")
    async def follow(request: Request, session: SignedIn) -> Response:
        """What changes on it."""
        rates = Rates()

        async def look() -> dict[str, Any]:
            return await _parts(request, session, rates)

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
