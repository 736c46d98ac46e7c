"""Whether the gateway lives, takes requests, and what state its fleet and stores are in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from hx_gateway.config.schema import GatewayConfig, ServiceSettings
from hx_gateway.control.dependencies import GatewayOf, Visitor
from hx_gateway.core.context import Identity
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.registry import Registry
from hx_gateway.health.summary import deployment_usable, summarize

_UNNAMED: str = ServiceSettings.model_fields["name"].default
_NAME = "unified-api-gateway"  # what monitoring of the fleet looks for, where the operator chose no name


class Alive(BaseModel):
    """The process answers; nothing else was asked."""

    ok: bool = True
    note: str = "HX wrapper – proxy mode"
    service: str
    version: str
    uptime_s: float = Field(description="seconds since start")


class Health(BaseModel):
    """The fleet's state in a word."""

    status: str = Field(description="healthy, degraded or unhealthy")
    gateway: str
    models: list[str] = Field(description="every name clients may use")
    unavailable: list[str] = Field(description="those of them that nothing can serve now")
    timestamp: str = Field(description="ISO 8601, UTC")


class Dependencies(BaseModel):
    """The stores: true when reachable, false when configured but not, null when not configured."""

    postgres: bool | None
    redis: bool | None
    qdrant: bool | None
    embedding_model: str | None = Field(description="the model that makes the gateway's own embeddings")
    details: dict[str, str]


class BreakerState(BaseModel):
    """A circuit breaker."""

    state: str = Field(description="closed, half-open or open")
    failures: int = Field(description="in a row")
    retry_after_s: float = Field(description="seconds until it lets a request try")


class DeploymentStatus(BaseModel):
    """One model at one endpoint."""

    model: str
    endpoint: str
    address: str | None = Field(description="shown to admin keys only")
    provider: str | None
    version: str | None
    available: bool
    healthy: bool | None = Field(description="by the last probe; null before the first")
    error: str | None
    checked_s_ago: float | None = Field(description="seconds since the last probe")
    in_flight: int
    max_concurrent: int | None
    weight: float
    breaker: BreakerState
    endpoint_breaker: BreakerState


class TargetStatus(BaseModel):
    """One public name."""

    name: str
    kind: str
    tier: str | None
    policy: str | None
    available: bool
    deployments: list[DeploymentStatus]


class ModelsStatus(BaseModel):
    """Every public name with all its deployments."""

    status: str
    models: list[TargetStatus]
    timestamp: str


def _timestamp(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def healthz(gateway: GatewayOf, request: Request) -> Alive:
    """Liveness. Touches nothing and never waits."""
    uptime_s = max(0.0, gateway.clock.wall() - gateway.started_wall_s)
    return Alive(service=gateway.config.service.name, version=request.app.version, uptime_s=round(uptime_s, 3))


async def readyz(gateway: GatewayOf) -> Response:
    """Readiness: 200 while requests are taken, 503 before the start is complete and while draining."""
    if gateway.draining:
        return JSONResponse({"ready": False, "reason": "draining"}, 503, {"retry-after": "1"})
    if not gateway.ready:
        return JSONResponse({"ready": False, "reason": "starting"}, 503, {"retry-after": "1"})
    return JSONResponse({"ready": True})


async def health(gateway: GatewayOf, response: Response) -> Health:
    """The fleet's state by the last probes; 503 when nothing at all can be served. Asks no model server."""
    summary = summarize(gateway.registry)
    if summary.status == "unhealthy":
        response.status_code = 503
    name = gateway.config.service.name
    return Health(
        status=summary.status,
        gateway=_NAME if name == _UNNAMED else name,
        models=list(summary.models),
        unavailable=list(summary.unavailable),
        timestamp=_timestamp(gateway.clock.wall()),
    )


def _embedding_model(config: GatewayConfig, registry: Registry) -> str | None:
    if config.embeddings.model:
        return config.embeddings.model
    return next(
        (target.name for target in registry.targets.values() if target.deployments and target.deployments[0].mode == "embedding"), None
    )


async def dependencies(gateway: GatewayOf) -> Dependencies:
    """The stores' state."""
    storage = gateway.config.storage
    configured = {"postgres": storage.database_url, "redis": storage.redis_url, "qdrant": storage.qdrant_url}
    states: dict[str, Any] = {name: None if url is None else False for name, url in configured.items()}
    details = {
        name: "not configured" if url is None else "configured, but this release does not use it yet" for name, url in configured.items()
    }
    model = _embedding_model(gateway.config, gateway.registry)
    if model is not None:
        target = gateway.registry.find(model)
        usable = target is not None and any(deployment_usable(deployment) for deployment in target.deployments)
        details["embedding_model"] = "available" if usable else "no such model here" if target is None else "not available now"
    else:
        details["embedding_model"] = "not configured"
    return Dependencies(**states, embedding_model=model, details=details)


def _shown_name(endpoint: Endpoint, number: int, admin: bool) -> str:
    # A name made from the address would give the address away.
    return endpoint.name if admin or endpoint.address.host not in endpoint.name else f"endpoint-{number}"


def _breaker(breaker: Any, now_s: float) -> BreakerState:
    return BreakerState(state=breaker.state, failures=breaker.failures, retry_after_s=round(breaker.retry_after_s(now_s), 3))


def _deployment(deployment: Deployment, numbers: dict[Endpoint, int], admin: bool, now_s: float) -> DeploymentStatus:
    endpoint = deployment.endpoint
    facts = endpoint.facts
    return DeploymentStatus(
        model=deployment.model,
        endpoint=_shown_name(endpoint, numbers.setdefault(endpoint, len(numbers) + 1), admin),
        address=str(endpoint.address) if admin else None,
        provider=endpoint.provider.name if endpoint.provider is not None else None,
        version=facts.version or None,
        available=deployment_usable(deployment),
        healthy=facts.healthy,
        error=facts.error or None,
        checked_s_ago=round(max(0.0, now_s - facts.checked_s), 3) if facts.checked_s else None,
        in_flight=deployment.in_flight,
        max_concurrent=deployment.max_concurrent or None,
        weight=deployment.weight,
        breaker=_breaker(deployment.breaker, now_s),
        endpoint_breaker=_breaker(endpoint.breaker, now_s),
    )


async def models_status(gateway: GatewayOf, identity: Visitor) -> ModelsStatus:
    """Every public name with its deployments; addresses are shown to admin keys only."""
    registry = gateway.registry
    now_s = gateway.clock.monotonic()
    admin = identity is not None and identity.admin
    numbers = {endpoint: number for number, endpoint in enumerate(registry.endpoints.values(), 1)}
    return ModelsStatus(
        status=summarize(registry).status,
        models=[
            TargetStatus(
                name=target.name,
                kind=target.kind,
                tier=target.tier or None,
                policy=target.policy or None,
                available=any(deployment_usable(deployment) for deployment in target.deployments),
                deployments=[_deployment(deployment, numbers, admin, now_s) for deployment in target.deployments],
            )
            for target in registry.targets.values()
            if _visible(identity, target.name)
        ],
        timestamp=_timestamp(gateway.clock.wall()),
    )


def _visible(identity: Identity | None, name: str) -> bool:
    return identity is None or identity.admin or identity.may_use(name)


def router(health_path: str) -> APIRouter:
    """The routes.

    Args:
        health_path: Path of the health report.
    """
    found = APIRouter(tags=["state"])
    found.add_api_route("/healthz", healthz, methods=["GET"], response_model=Alive)
    found.add_api_route("/readyz", readyz, methods=["GET"])
    found.add_api_route("/healthz/deps", dependencies, methods=["GET"], response_model=Dependencies)
    found.add_api_route(health_path, health, methods=["GET"], response_model=Health)
    found.add_api_route("/models/status", models_status, methods=["GET"], response_model=ModelsStatus)
    return found
