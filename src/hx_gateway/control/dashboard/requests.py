"""The page Requests."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.control.dashboard.frame import SignedIn, render


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get("/requests")
    async def page(request: Request, session: SignedIn) -> Response:
        """The whole page."""
        return render(request, session, "requests.html", title="Requests")

    return routes
