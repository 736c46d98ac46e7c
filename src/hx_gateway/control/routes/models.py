"""GET /v1/models: the names a key may use, in OpenAI's shape, with what the gateway knows of each under ``hx``."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from hx_gateway.control.dependencies import Caller, Gateway, GatewayOf
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.fleet.checks import DIGEST_SHOWN
from hx_gateway.fleet.facts import ModelFacts
from hx_gateway.fleet.registry import Target
from hx_gateway.health.summary import deployment_usable


class Capabilities(BaseModel):
    """What a model can be used for; null where nobody said, or where the places that serve it differ."""

    chat: bool | None
    completions: bool | None
    embeddings: bool | None
    vision: bool | None
    tools: bool | None
    thinking: bool | None


class About(BaseModel):
    """What the gateway adds to OpenAI's fields."""

    kind: str = Field(description="model, alias or group")
    tier: str | None = Field(description="quality tier of a group")
    mode: str | None = Field(description="chat or embedding; null for anything")
    capabilities: Capabilities
    dimensions: int | None = Field(description="length of its embeddings, where configured or seen")
    context_length: int | None = Field(
        description="tokens of prompt and answer together, where known; the least of the places that serve it"
    )
    digest: str | None = Field(description="beginning of the model's digest, where it is known and the same everywhere")
    models: list[str] = Field(description="the models that serve it")
    deployments: int = Field(description="in how many places it is served")
    available: bool = Field(description="whether any of them can be used now")


class Model(BaseModel):
    """One name, as OpenAI describes a model."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time; when this gateway started")
    owned_by: str = "hx-gateway"
    hx: About


class ModelList(BaseModel):
    """All names the key may use."""

    object: Literal["list"] = "list"
    data: list[Model]


def _same(values: set[Any]) -> Any:
    """The one value all have in common, else None."""
    return next(iter(values)) if len(values) == 1 else None


def _facts(target: Target) -> list[ModelFacts | None]:
    return [deployment.endpoint.facts.of(deployment.upstream_model) for deployment in target.deployments]


def _able(known: list[ModelFacts | None], capability: str) -> bool | None:
    """Whether a model can do something, as far as its servers told."""
    told = {
        None if facts is None else True if capability in facts.able else False if capability in facts.unable else None for facts in known
    }
    return next(iter(told)) if len(told) == 1 else None


def describe(target: Target, created_s: int) -> Model:
    """A public name as an entry of the list."""
    deployments, known = target.deployments, _facts(target)
    mode = _same({deployment.mode for deployment in deployments}) or None
    chats = _able(known, "completion") if mode is None else mode == "chat"
    contexts = {deployment.context_length or deployment.options.num_ctx or 0 for deployment in deployments} - {0}
    about = About(
        kind=target.kind,
        tier=target.tier or None,
        mode=mode,
        capabilities=Capabilities(
            chat=chats,
            completions=chats,
            embeddings=_able(known, "embedding") if mode is None else mode == "embedding",
            vision=_able(known, "vision"),
            tools=_able(known, "tools"),
            thinking=_able(known, "thinking"),
        ),
        dimensions=_same({deployment.options.dimensions or deployment.dimensions or None for deployment in deployments}),
        context_length=min(contexts, default=None),
        digest=_same({facts.digest[:DIGEST_SHOWN] if facts is not None else "" for facts in known}) or None,
        models=list(dict.fromkeys(deployment.model for deployment in deployments)),
        deployments=len(deployments),
        available=any(deployment_usable(deployment) for deployment in deployments),
    )
    return Model(id=target.name, created=created_s, hx=about)


def _listed(gateway: Gateway, identity: Identity | None) -> ModelList:
    created_s = int(gateway.started_wall_s)
    targets = [target for target in gateway.registry.targets.values() if not target.hidden]
    return ModelList(data=[describe(target, created_s) for target in targets if identity is None or identity.may_use(target.name)])


async def models(gateway: GatewayOf, identity: Caller) -> ModelList:
    """Every model, alias and group that the key may use, but those that are hidden (gateway.hidden)."""
    return _listed(gateway, identity)


async def model(id: str, gateway: GatewayOf, identity: Caller) -> Model | ModelList:
    """One model, alias or group; its name may contain ``/`` and ``:``. DELETE answers 405: models are part of the configuration."""
    if not id:  # the list, asked for with a final slash
        return _listed(gateway, identity)
    registry = gateway.registry
    target = registry.find(id)
    if target is not None and (identity is None or identity.may_use(target.name)):
        return describe(target, int(gateway.started_wall_s))
    allowed = [name for name, target in registry.targets.items() if not target.hidden and (identity is None or identity.may_use(name))]
    near = registry.nearest(id, allowed)
    hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else "GET /v1/models lists those there are"
    raise Failure(errors.MODEL_NOT_FOUND, f"the model {id!r} does not exist here; {hint}", param="model")


def router() -> APIRouter:
    """The routes, with and without ``/v1``."""
    found = APIRouter(tags=["inference"])
    for prefix in ("/v1", ""):
        shown = bool(prefix)
        found.add_api_route(f"{prefix}/models", models, methods=["GET"], response_model=ModelList, include_in_schema=shown)
        found.add_api_route(
            f"{prefix}/models/{{id:path}}", model, methods=["GET"], response_model=Model | ModelList, include_in_schema=shown
        )
    return found
