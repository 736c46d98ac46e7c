"""Whether the gateway lives, takes requests, and what state its fleet and stores are in."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from hx_gateway.config.schema import ServiceSettings
from hx_gateway.control.dependencies import Gateway, GatewayOf, Visitor
from hx_gateway.control.rag import embedding_model, vector_state
from hx_gateway.control.stores import redis_state, sql_state
from hx_gateway.core.context import Identity
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.health.summary import deployment_usable, summarize, why_unusable
from hx_gateway.routing.ceilings import Ceilings

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


class ModelKnown(BaseModel):
    """What the server told of the model; null where it did not."""

    digest: str | None = Field(description="digest of its content")
    size_bytes: int | None = Field(description="memory it takes, or the size of its file while it is not loaded")
    family: str | None
    quantization: str | None
    capabilities: list[str] | None
    context_length: int | None = Field(description="most tokens of prompt and answer together")
    dimensions: int | None = Field(description="length of its embeddings, as configured or seen")
    loaded: bool | None = Field(description="whether it is in memory")
    loaded_context: int | None = Field(description="tokens of context it is loaded with")
    accelerator_share: float | None = Field(description="share of it in the accelerator's memory, from 0 to 1, while loaded")
    expires: str | None = Field(description="when it leaves memory unless used; ISO 8601, UTC")


class EngineKnown(BaseModel):
    """What the server told of itself; null where it did not."""

    name: str | None = Field(description="ollama, llamacpp, vllm or sglang")
    slots: int | None = Field(description="requests it works on at the same time, as configured or told")
    running: int | None = Field(description="requests it works on, by the last probe")
    waiting: int | None = Field(description="requests in its own queue, by the last probe")
    cache_used: float | None = Field(description="share of its KV cache in use, by the last probe")
    sleeping: bool = Field(description="whether its model is out of memory until the next request")


class DeploymentStatus(BaseModel):
    """One model at one endpoint."""

    model: str
    endpoint: str
    address: str | None = Field(description="shown to admin keys only")
    provider: str | None
    version: str | None
    available: bool
    reason: str | None = Field(
        description="why it is not available: excluded; draining or drained by an administrator, with or without requests still under way; "
        "down by the last probe; resting by its breaker"
    )
    excluded: str | None = Field(description="why it may not serve this name, where it may not")
    healthy: bool | None = Field(description="by the last probe; null before the first")
    error: str | None
    checked_s_ago: float | None = Field(description="seconds since the last probe")
    in_flight: int = Field(
        description="requests under way in all workers (in others as of a quarter of a second ago), one that Ollama still reads for a "
        "client that left included"
    )
    max_concurrent: int | None
    requests_per_minute: int | None = Field(description="most requests it may have in a minute; null for no limit")
    requests_left: int | None = Field(description="of those, how many it may have at once now, from all workers")
    tokens_per_minute: int | None = Field(description="most tokens it may have in a minute; null for no limit")
    tokens_left: int | None = Field(description="of those, how many it may have at once now, from all workers")
    weight: float
    breaker: BreakerState
    endpoint_breaker: BreakerState
    facts: ModelKnown
    engine: EngineKnown


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
    worker: int = Field(
        description="process that answers; breakers and what probes found are as this one knows them, each worker has its own"
    )
    warnings: list[str] = Field(description="what should be looked into, in words")
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


def health_of(gateway: Gateway) -> Health:
    """The fleet's state by the last probes; asks no model server."""
    summary, name = summarize(gateway.registry), gateway.config.service.name
    return Health(
        status=summary.status,
        gateway=_NAME if name == _UNNAMED else name,
        models=list(summary.models),
        unavailable=list(summary.unavailable),
        timestamp=_timestamp(gateway.clock.wall()),
    )


async def health(gateway: GatewayOf, response: Response) -> Health:
    """The fleet's state by the last probes; 503 when nothing at all can be served. Asks no model server."""
    report = health_of(gateway)
    if report.status == "unhealthy":
        response.status_code = 503
    return report


async def dependencies(gateway: GatewayOf, identity: Visitor) -> Dependencies:
    """The stores' state; addresses, paths and errors are told to admin keys only."""
    states: dict[str, Any] = {}
    details: dict[str, str] = {}
    admin = identity is not None and identity.admin
    states["postgres"], details["postgres"] = sql_state(gateway.backing, admin)
    states["redis"], details["redis"] = redis_state(gateway.backing, admin)
    states["qdrant"], details["qdrant"], details["vectors"] = await vector_state(gateway, admin)
    model = embedding_model(gateway.config, gateway.registry)
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


def _known(deployment: Deployment) -> ModelKnown:
    facts = deployment.endpoint.facts
    about, held = facts.of(deployment.upstream_model), facts.in_memory(deployment.upstream_model)
    told = facts.loaded is not None
    return ModelKnown(
        digest=about.digest or None if about is not None else None,
        size_bytes=int(deployment.size) or None,
        family=about.family or None if about is not None else None,
        quantization=about.quantization or None if about is not None else None,
        capabilities=sorted(about.able) if about is not None and (about.able or about.unable) else None,
        context_length=deployment.context_length or deployment.options.num_ctx,
        dimensions=deployment.dimensions or deployment.options.dimensions,
        loaded=held is not None if told else None,
        loaded_context=deployment.loaded_context or None,
        accelerator_share=round(1.0 - held.spilled, 3) if held is not None else None,
        expires=_timestamp(held.expires_s) if held is not None and held.expires_s else None,
    )


def _engine(endpoint: Endpoint) -> EngineKnown:
    facts, load = endpoint.facts, endpoint.facts.load
    return EngineKnown(
        name=facts.engine or None,
        slots=endpoint.slots or None,
        running=load.running if load is not None else None,
        waiting=load.waiting if load is not None else None,
        cache_used=load.cache_used if load is not None else None,
        sleeping=facts.sleeping,
    )


def _deployment(
    deployment: Deployment,
    in_flight: int,
    ceilings: Ceilings,
    numbers: dict[Endpoint, int],
    admin: bool,
    now_s: float,
    excluded: str = "",
) -> DeploymentStatus:
    endpoint = deployment.endpoint
    facts = endpoint.facts
    limits = deployment.limits
    requests_left, tokens_left = ceilings.left(deployment, now_s)
    reason = "excluded" if excluded else why_unusable(deployment, in_flight)
    return DeploymentStatus(
        model=deployment.model,
        endpoint=_shown_name(endpoint, numbers.setdefault(endpoint, len(numbers) + 1), admin),
        address=str(endpoint.address) if admin else None,
        provider=endpoint.provider.name if endpoint.provider is not None else None,
        version=facts.version or None,
        available=not reason,
        reason=reason or None,
        excluded=excluded or None,
        healthy=facts.healthy,
        error=facts.error or None,
        checked_s_ago=round(max(0.0, now_s - facts.checked_s), 3) if facts.checked_s else None,
        in_flight=in_flight,
        max_concurrent=deployment.max_concurrent or None,
        requests_per_minute=limits.burst or None if limits is not None else None,
        requests_left=requests_left,
        tokens_per_minute=limits.tokens_per_minute or None if limits is not None else None,
        tokens_left=tokens_left,
        weight=deployment.weight,
        breaker=_breaker(deployment.breaker, now_s),
        endpoint_breaker=_breaker(endpoint.breaker, now_s),
        facts=_known(deployment),
        engine=_engine(endpoint),
    )


async def models_status(gateway: GatewayOf, identity: Visitor) -> ModelsStatus:
    """Every public name with its deployments; addresses are shown to admin keys only."""
    registry, ceilings = gateway.registry, gateway.proxy.ceilings
    now_s = gateway.clock.monotonic()
    admin = identity is not None and identity.admin
    numbers = {endpoint: number for number, endpoint in enumerate(registry.endpoints.values(), 1)}
    return ModelsStatus(
        status=summarize(registry).status,
        worker=os.getpid(),
        warnings=[
            notice.says(lambda endpoint: _shown_name(endpoint, numbers.setdefault(endpoint, len(numbers) + 1), admin))
            for notice in registry.notices
            if _visible(identity, notice.name)
        ],
        models=[
            TargetStatus(
                name=target.name,
                kind=target.kind,
                tier=target.tier or None,
                policy=target.policy or None,
                available=any(deployment_usable(deployment) for deployment in target.deployments),
                deployments=[
                    *(
                        _deployment(deployment, gateway.under_way(deployment), ceilings, numbers, admin, now_s)
                        for deployment in target.deployments
                    ),
                    *(
                        _deployment(deployment, deployment.in_flight, ceilings, numbers, admin, now_s, reason)
                        for deployment, reason in target.excluded
                    ),
                ],
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
