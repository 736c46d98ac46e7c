"""The page Fleet."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard.frame import SignedIn, render


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/fleet")
    async def page(request: Request, session: SignedIn) -> Response:
        """The whole page."""
        return render(request, session, "fleet.html", title="Fleet")

    return routes
