"""The Prometheus report."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from hx_gateway.housekeeping import read_state
from hx_gateway.telemetry.exposition import Observed, Report


def router(metrics_path: str, observed: Observed, version: str) -> APIRouter:
    """The route.

    Args:
        metrics_path: Path of the report.
        observed: What is reported on.
        version: The gateway's version.
    """
    report = Report(observed, version, lambda: read_state(observed.backing.folder))
    found = APIRouter(tags=["state"])

    async def metrics(request: Request) -> Response:
        """Counters, times, tokens, cost, breakers, queues, health and stores of all workers, for Prometheus."""
        body, content_type = await report.served(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    found.add_api_route(metrics_path, metrics, methods=["GET"], response_class=Response)
    return found
