"""Groups that learn, for administrators: how their champion and challenger stand, and changing that by hand."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from hx_gateway.control.audit import NOBODY, audit
from hx_gateway.control.dependencies import Administrator, Gateway, GatewayOf
from hx_gateway.control.openapi import failures
from hx_gateway.control.stores import answering
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure

if TYPE_CHECKING:
    from hx_gateway.core.context import Identity

_LATEST = 2000  # decisions of a group that are looked at
_SPAN_S = 86_400


class Promotion(BaseModel):
    """Which artifact, and whether it decides at once."""

    model_config = ConfigDict(extra="forbid")

    version: str = Field(min_length=6, max_length=128, description="version of an artifact of the group, or how it begins")
    now: bool = Field(default=False, description="true: it decides from here on; false: it runs in shadow first")


class Trial(BaseModel):
    """Champion against challenger, in answers that were judged."""

    answers: int = Field(description="judged answers that both had foretold")
    needed: int = Field(description="how many it takes before one of them wins")
    lead: float | None = Field(description="by how much the challenger's mean squared error is smaller; negative where it is larger")
    error: float | None = Field(description="standard error of that")
    errors_needed: float = Field(description="standard errors by which the lead must differ from 0")


class Artifact(BaseModel):
    """A scorer of the group."""

    version: str = Field(description="empty for one that was not trained")
    role: Literal["champion", "challenger", ""]
    added_at: str | None


class Event(BaseModel):
    """Something that became of an artifact."""

    at: str = Field(description="ISO 8601, UTC")
    action: str = Field(description="shadow, promoted, demoted or retired")
    version: str
    why: str


class Routed(BaseModel):
    """The latest decisions of the group in all gateways of the store, two thousand at most."""

    decisions: int
    models: dict[str, int] = Field(description="by model that answered")
    rules: dict[str, int] = Field(description="by what decided: share, quality, term, order, explore")
    shadowed: int = Field(description="of them, those that the challenger was asked, draws left out")
    agreed: int = Field(description="of those, how many it would have given to the same model")


class LearningGroup(BaseModel):
    """A group that learns."""

    group: str
    models: list[str] = Field(description="the weakest and cheapest first")
    strong_share: float | None = Field(description="the target, if it is a share")
    quality: float | None = Field(description="the target, if it is a quality")
    embedding: str | None = Field(description="the model whose embeddings of prompts it reads beside their words")
    revision: int = Field(description="grows with every change; 0 before it has begun")
    judged: int = Field(description="judged answers that it learned from")
    trial: Trial
    artifacts: list[Artifact]
    events: list[Event] = Field(description="the latest hundred, oldest first")
    routed: Routed


class LearningGroups(BaseModel):
    """Every group that learns."""

    object: Literal["list"] = "list"
    data: list[LearningGroup]


class Changed(BaseModel):
    """Who decides now."""

    object: Literal["learning.change"] = "learning.change"
    group: str
    version: str = Field(description="of the artifact that was promoted or demoted")
    role: Literal["champion", "challenger", ""] = Field(description="that it has now")
    changed: bool = Field(description="false where it was so already")


async def standings(gateway: Gateway, span_s: int = _SPAN_S) -> list[dict[str, Any]]:
    """The fields of `LearningGroup` for every group that learns; the store is left alone where none does.

    Raises:
        Failure: The store cannot be used.
    """
    groups = {name: group for name, group in gateway.config.groups.items() if group.learned is not None}
    found: list[dict[str, Any]] = []
    if not groups:
        return found
    async with answering(gateway.backing) as store:
        from hx_gateway.stores import promotion
        from hx_gateway.stores.sql.routed import tally

        for name, group in groups.items():
            settings = group.learned
            assert settings is not None
            told = await promotion.told(store, name)
            challenger = next((one["version"] for one in told["artifacts"] if one["role"] == "challenger"), None)
            told["trial"] |= {"needed": settings.trial_answers, "errors_needed": settings.trial_errors}
            routed = await tally(store, name, int((time.time() - span_s) * 1000), _LATEST, challenger)
            target = {"strong_share": settings.strong_share, "quality": settings.quality, "embedding": settings.embedding}
            found.append({**told, "models": list(group.models), **target, "routed": routed})
    return found


async def promote(gateway: Gateway, request: Request, caller: Identity | None, group: str, version: str, now: bool) -> dict[str, Any]:
    """Have an artifact run in shadow, or decide; the fields of `Changed`.

    Raises:
        Failure: There is no such group or artifact, or the store cannot be used.
    """
    _known(gateway, group)
    async with answering(gateway.backing) as store:
        from hx_gateway.stores import promotion

        try:
            version = await promotion.version_of(store, group, version)
        except promotion.NotPossible as error:
            raise Failure(errors.NOT_FOUND, f"version: {error}; GET /admin/learning lists them", param="version") from None
        role = await promotion.promote(store, group, version, now, _why(caller))
    if role:
        audit(gateway, request, caller, "router.promote", group, version=version[:12], role=role)
    return {"group": group, "version": version, "role": role or "champion", "changed": bool(role)}


async def demote(gateway: Gateway, request: Request, caller: Identity | None, group: str) -> dict[str, Any]:
    """Take the champion out; the fields of `Changed`.

    Raises:
        Failure: There is no such group, or no champion that could be taken out, or the store cannot be used.
    """
    _known(gateway, group)
    async with answering(gateway.backing) as store:
        from hx_gateway.stores import promotion

        try:
            champion, _ = await promotion.demote(store, group, _why(caller))
        except promotion.NotPossible as error:
            raise Failure(errors.CONFLICT, str(error), param="group") from None
    audit(gateway, request, caller, "router.demote", group, version=champion[:12])
    return {"group": group, "version": champion, "role": "", "changed": True}


def _known(gateway: Gateway, group: str) -> None:
    settings = gateway.config.groups.get(group)
    if settings is None or settings.learned is None:
        raise Failure(errors.NOT_FOUND, f"{group!r} is no group that learns; GET /admin/learning lists them", param="group")


def _why(caller: Identity | None) -> str:
    return f"by hand, {caller.name if caller is not None else NOBODY}"


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["routing"], responses=failures("401", "403", "503"))

    @routes.get("/admin/learning", response_model=LearningGroups)
    async def listed(
        gateway: GatewayOf,
        caller: Administrator,
        seconds: Annotated[int, Query(ge=60, le=30 * 86_400, description="How far back decisions are looked at, in seconds.")] = _SPAN_S,
    ) -> Any:
        """Every group that learns: champion and challenger, how they compare, what became of artifacts, who got what. Needs an admin key."""
        return {"data": await standings(gateway, seconds)}

    @routes.post("/admin/learning/{group:path}/promote", response_model=Changed, responses=failures("404"))
    async def promoted(group: str, body: Annotated[Promotion, Body()], request: Request, gateway: GatewayOf, caller: Administrator) -> Any:
        """Have an artifact run in shadow, or decide at once; gateways take it over within seconds. Needs an admin key."""
        return await promote(gateway, request, caller, group, body.version, body.now)

    @routes.post("/admin/learning/{group:path}/demote", response_model=Changed, responses=failures("404", "409"))
    async def demoted(group: str, request: Request, gateway: GatewayOf, caller: Administrator) -> Any:
        """Take the champion out: the challenger decides, or the stated order until answers were judged. Needs an admin key."""
        return await demote(gateway, request, caller, group)

    return routes
