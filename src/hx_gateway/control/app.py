"""The control plane: everything that is not a hot inference request, as one FastAPI application."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI

from hx_gateway.control import fleet, openapi, refusals
from hx_gateway.control.cors import cors_policy
from hx_gateway.control.dashboard import shell
from hx_gateway.control.dependencies import Gateway
from hx_gateway.control.envelope import Envelope
from hx_gateway.control.proxies import Proxies
from hx_gateway.control.routes import (
    docs,
    endpoints,
    feedback,
    forward,
    health,
    history,
    keys,
    learning,
    logs,
    metrics,
    models,
    rag,
    routing,
    usage,
)
from hx_gateway.control.siblings import Siblings

_ABOUT = "One OpenAI-compatible door to a private fleet of model servers."


class ControlApp(FastAPI):
    """FastAPI, with the inference routes in its OpenAPI document though it does not serve them."""

    def openapi(self) -> dict[str, Any]:
        """The whole document; made on first use and kept."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.complete(super().openapi())
        return self.openapi_schema


def create_app(gateway: Gateway) -> ControlApp:
    """The ASGI application for a gateway.

    Args:
        gateway: The composition root; its ``registry``, ``keys`` and flags are read anew for each request, its
            configuration's paths and CORS settings once.
    """
    config = gateway.config
    app = ControlApp(
        title="HX Gateway",
        description=_ABOUT,
        version=version("hx-gateway"),
        docs_url=None,  # the framework's page loads its scripts from elsewhere
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
    )
    app.state.gateway = gateway
    app.state.siblings = Siblings(
        {
            "fleet": lambda _: fleet.told(gateway),
            "decisions": lambda limit: gateway.decisions(int(limit)),
            "decision": lambda id: gateway.decisions(0, id),
        }
    )
    app.add_middleware(Envelope, ids=gateway.ids, cors=cors_policy(config.cors))
    app.add_middleware(Proxies, trusted=lambda: gateway.config.http.trusted_proxies)
    refusals.install(app)
    app.router.routes.extend(rag.direct())
    app.include_router(health.router(config.monitoring.health_check_endpoint))
    app.include_router(logs.router())
    app.include_router(metrics.router(config.monitoring.metrics_endpoint, gateway, app.version))
    app.include_router(history.router())
    app.include_router(docs.router())
    app.include_router(models.router())
    app.include_router(routing.router())
    app.include_router(learning.router())
    app.include_router(endpoints.router())
    app.include_router(keys.router())
    app.include_router(usage.router())
    app.include_router(feedback.router())
    app.include_router(rag.router())
    shell.mounted(app, gateway)
    app.router.routes.extend(forward.routes())  # last: it takes every path below /v1
    return app
