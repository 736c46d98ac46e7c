"""Keys of the store and the log of what administrators did with them; all of it for admin keys only."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from hx_gateway.access.keys import new_key
from hx_gateway.access.moments import written
from hx_gateway.control.audit import NOBODY
from hx_gateway.control.dependencies import Administrator, Gateway, GatewayOf
from hx_gateway.control.key_bodies import KeyChange, KeyDraft, KeyMade, KeyRotation, KeyShown, now_ms, revoked, rotated
from hx_gateway.control.openapi import failures
from hx_gateway.control.stores import answering
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure, Unavailable

if TYPE_CHECKING:
    from hx_gateway.access.snapshot import StoredKey
    from hx_gateway.stores.sql.engine import Store
    from hx_gateway.stores.sql.keys import By

_log = logging.getLogger(__name__)


class KeyList(BaseModel):
    """Keys in the order they were made."""

    object: Literal["list"] = "list"
    data: list[KeyShown]
    has_more: bool
    next: str | None = Field(description="value of `after` for the next page; null on the last")


class Deed(BaseModel):
    """One thing an administrator did."""

    object: Literal["audit"] = "audit"
    id: str
    at: str
    actor: str = Field(description="name of the key that was used, or who used the command line")
    key_id: str | None = Field(description="id of the key that was used, where it is one of the store")
    action: str = Field(description="e.g. key.create, key.revoke, reload, endpoint.drain, rag.delete_everything")
    subject: str = Field(description="name of what it was done to")
    result: str = Field(description="ok, or what became of it in a word, e.g. refused")
    detail: dict[str, Any] = Field(description="what changed; never a key")
    address: str = Field(description="from where")


class DeedList(BaseModel):
    """What was done, newest first."""

    object: Literal["list"] = "list"
    data: list[Deed]
    has_more: bool
    next: str | None = Field(description="value of `before` for the next page; null on the last")


@contextlib.asynccontextmanager
async def _keys(gateway: Gateway) -> AsyncIterator[tuple[Store, Any]]:
    """The store and what there is to do with its keys, with failures in the words of the API."""
    async with answering(gateway.backing) as store:
        from hx_gateway.stores.sql import keys

        try:
            yield store, keys
        except keys.KeyMissing as error:
            raise Failure(errors.NOT_FOUND, f"{error}; GET /admin/keys lists them") from None
        except keys.KeyTaken as error:
            raise Failure(errors.CONFLICT, str(error), param="name") from None
        except keys.KeyEnded as error:
            raise Failure(errors.CONFLICT, str(error), param="id") from None


def _by(request: Request, caller: Identity | None) -> By:
    from hx_gateway.stores.sql.keys import By

    name, id = (caller.name, caller.id) if caller is not None else (NOBODY, "")
    return By(name, request.client.host if request.client else "", id)


async def _renew(gateway: Gateway) -> None:
    try:
        await gateway.backing.renew_keys()
    except (Unavailable, TimeoutError) as error:  # it is done all the same, and heard of when the store is back
        _log.warning("keys were changed, but could not be read again at once: %s", error or "no answer in time")


async def _changed(
    gateway: Gateway, request: Request, caller: Identity | None, id: str, action: str, alter: Callable[[StoredKey], dict[str, Any]]
) -> dict[str, Any]:
    async with _keys(gateway) as (store, keys):
        key = await keys.change(store, id, _by(request, caller), action, alter)
    await _renew(gateway)
    told: dict[str, Any] = key.told(now_ms())
    return told


async def create(body: KeyDraft, request: Request, gateway: GatewayOf, caller: Administrator) -> dict[str, Any]:
    """Make a key; the answer shows it, this once. It is let in by this worker at once, everywhere within a second. Needs an admin key."""
    if body.name in {own.name for own in gateway.config.keys.api_keys}:
        raise Failure(
            errors.CONFLICT, f"the configuration has a key called {body.name!r}, which would win; choose another name", param="name"
        )
    key, text = body.made()
    async with _keys(gateway) as (store, keys):
        await keys.create(store, key, _by(request, caller))
    await _renew(gateway)
    return {**key.told(now_ms()), "key": text}


async def listed(
    gateway: GatewayOf,
    caller: Administrator,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most keys to list.")] = 100,
    after: Annotated[str, Query(max_length=64, description="Only those behind the key with this id.")] = "",
) -> dict[str, Any]:
    """The keys of the store, also expired and revoked ones; those of the configuration are not among them. Needs an admin key."""
    async with _keys(gateway) as (store, keys):
        found = await keys.page(store, limit + 1, after)
    more = len(found) > limit
    data = [key.told(now_ms()) for key in found[:limit]]
    return {"data": data, "has_more": more, "next": data[-1]["id"] if more else None}


async def shown(id: str, gateway: GatewayOf, caller: Administrator) -> dict[str, Any]:
    """One key, by its id or name. Needs an admin key."""
    async with _keys(gateway) as (store, keys):
        told: dict[str, Any] = (await keys.get(store, id)).told(now_ms())
    return told


async def change(id: str, body: KeyChange, request: Request, gateway: GatewayOf, caller: Administrator) -> dict[str, Any]:
    """Change what is named in the body; a moment for `expires` that has passed ends the key. Needs an admin key."""
    return await _changed(gateway, request, caller, id, "key.change", body.changes)


async def revoke(id: str, request: Request, gateway: GatewayOf, caller: Administrator) -> dict[str, Any]:
    """Revoke a key for good; it stays in the records, and is refused everywhere within a second. Needs an admin key."""
    return await _changed(gateway, request, caller, id, "key.revoke", revoked)


async def rotate(id: str, request: Request, gateway: GatewayOf, caller: Administrator, body: KeyRotation | None = None) -> dict[str, Any]:
    """Replace a key; the answer shows the new one, this once, and the old one is let in for `grace` longer. Needs an admin key."""
    text, grace = new_key(), (body or KeyRotation()).grace
    told = await _changed(gateway, request, caller, id, "key.rotate", lambda key: rotated(key, text, grace))
    return {**told, "key": text}


async def deeds(
    gateway: GatewayOf,
    caller: Administrator,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries to list.")] = 50,
    before: Annotated[str, Query(max_length=64, description="Only those older than the entry with this id.")] = "",
    subject: Annotated[str, Query(max_length=256, description="Only what was done to the key or endpoint of this name.")] = "",
    actor: Annotated[str, Query(max_length=256, description="Only what was done with the key of this name.")] = "",
    action: Annotated[str, Query(max_length=64, description="Only this, e.g. key.create; key. for all that begins so.")] = "",
) -> dict[str, Any]:
    """What administrators did, newest first. Needs an admin key."""
    async with _keys(gateway) as (store, keys):
        found = await keys.audit(store, limit + 1, before, subject, actor, action)
    more = len(found) > limit
    data = [
        {**row, "at": written(row["at_ms"]), "key_id": row["detail"].pop("by", None), "result": row["detail"].pop("result", "ok")}
        for row in found[:limit]
    ]
    return {"data": data, "has_more": more, "next": data[-1]["id"] if more else None}


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["keys"], responses=failures("401", "403", "503"))
    absent, conflict = failures("404"), failures("409")
    routes.add_api_route("/admin/keys", listed, methods=["GET"], response_model=KeyList)
    routes.add_api_route("/admin/keys", create, methods=["POST"], status_code=201, response_model=KeyMade, responses=conflict)
    one = "/admin/keys/{id}"
    routes.add_api_route(one, shown, methods=["GET"], response_model=KeyShown, responses=absent)
    routes.add_api_route(one, change, methods=["PATCH"], response_model=KeyShown, responses={**absent, **conflict})
    routes.add_api_route(one, revoke, methods=["DELETE"], response_model=KeyShown, responses=absent)
    routes.add_api_route(f"{one}/rotate", rotate, methods=["POST"], response_model=KeyMade, responses={**absent, **conflict})
    routes.add_api_route("/admin/audit", deeds, methods=["GET"], response_model=DeedList)
    return routes
