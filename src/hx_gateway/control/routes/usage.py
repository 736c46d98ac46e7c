"""Usage and cost, and the log of requests: for admin keys of everyone, for others of their own key; as JSON or CSV."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from hx_gateway.access.moments import written
from hx_gateway.control.dependencies import Caller, Gateway, GatewayOf, siblings_of
from hx_gateway.control.openapi import failures
from hx_gateway.control.stores import REACH_S, named
from hx_gateway.control.usage_forms import (
    Asked,
    Format,
    LogPage,
    LogRow,
    Story,
    UsageReport,
    UsageRow,
    csv_writer,
    cursor_of,
    log_row,
    place_of,
    usage_row,
)
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure, Unavailable
from hx_gateway.housekeeping import read_state
from hx_gateway.ledger.reports import BUCKETS, GROUPS, Filter, Page, Place

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_Answer = TypeVar("_Answer")
_LONGEST_S = 12.0  # more than a statement may take
_AGAIN_S = 5.0
_USUAL_DAYS = 30
_MOST_SUMS = 50_000
_BATCH = 1000
_DAY_MS = 86_400_000
_UNSURE_MS = 1000  # what came while the journal was last read may not have been seen
_SHEET: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


async def ask(gateway: Gateway, caller: Identity | None, work: Callable[[AsyncConnection], Awaitable[_Answer]]) -> _Answer:
    """Let the store answer, but do not wait long for one that cannot.

    Raises:
        Failure: ``store_unavailable``.
    """
    backing = gateway.backing
    name, admin = named(backing), caller is None or caller.admin
    reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run() -> _Answer:
        store = await backing.store()
        async with store.reading() as connection:
            from hx_gateway.stores.sql.reports import prepare

            await prepare(connection)
            if not reached.done():
                reached.set_result(None)
            return await work(connection)

    def ended(done: asyncio.Task[_Answer]) -> None:
        if not done.cancelled():
            done.exception()  # looked at, also where nobody waits for it any more
        if not reached.done():
            reached.set_result(None)

    # The first time this takes long, which is nothing the store can do about, and would hold up the event loop.
    await asyncio.to_thread(lambda: [importlib.import_module(f"hx_gateway.stores.sql.{name}") for name in ("upgrade", "reports")])
    # What hangs on a dead server cannot even be cancelled quickly: it is left to itself.
    asking = asyncio.create_task(run())
    asking.add_done_callback(ended)
    try:
        await asyncio.wait((reached,), timeout=REACH_S)
        if not reached.done():
            raise Failure(errors.STORE_UNAVAILABLE, f"{name} does not answer; try again when it does", retry_after_s=_AGAIN_S)
        await asyncio.wait((asking,), timeout=_LONGEST_S)
        if not asking.done():
            raise Failure(
                errors.STORE_UNAVAILABLE, f"{name} takes too long over this; ask for less, with from and to", retry_after_s=_AGAIN_S
            )
        return asking.result()
    except Unavailable as error:
        raise Failure(errors.STORE_UNAVAILABLE, f"{name} cannot be used{f': {error}' if admin else ''}", retry_after_s=_AGAIN_S) from None
    finally:
        asking.cancel()


def _as_of(gateway: Gateway) -> str | None:
    """Up to when the journal of this machine is surely in the store."""
    state = read_state(gateway.backing.folder)
    shipped = (state or {}).get("duties", {}).get("ship", {}).get("ok_ms", 0)
    return written(shipped - _UNSURE_MS) if shipped else None


def _sheet(name: str, body: str | AsyncIterator[str]) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}.csv"', "cache-control": "no-store"}
    make = Response if isinstance(body, str) else StreamingResponse
    return make(body, media_type="text/csv; charset=utf-8", headers=headers)


def _groups(by: str, endpoints: bool) -> list[str]:
    names = [name for name in dict.fromkeys(part.strip() for part in by.split(",")) if name]
    if unknown := [name for name in names if name not in GROUPS]:
        raise Failure(errors.INVALID_VALUE, f"by: {unknown[0]!r} is none of {', '.join(GROUPS)}", param="by")
    if "endpoint" in names and not endpoints:
        raise Failure(errors.ADMIN_ONLY, "by: endpoints are not shown to this key", param="by")
    return names


def _shows_endpoints(caller: Identity | None) -> bool:
    return caller is None or caller.admin or caller.show_endpoints


async def _report(gateway: Gateway, caller: Identity | None, asked: Filter, by: str, bucket: str, limit: int, form: str) -> Any:
    groups = _groups(by, _shows_endpoints(caller))
    if asked.from_ms is None:
        begin_ms = (asked.to_ms or int(time.time() * 1000)) - _USUAL_DAYS * _DAY_MS
        asked = asked.since(begin_ms - begin_ms % _DAY_MS)

    async def sums(connection: AsyncConnection) -> list[dict[str, Any]]:
        from hx_gateway.stores.sql import reports

        return await reports.usage(connection, asked, groups, bucket or None, limit + 1)

    as_of = _as_of(gateway)
    rows = [usage_row(row) for row in await ask(gateway, caller, sums)]
    if form == "csv":
        shown = [name for name in UsageRow.model_fields if name not in GROUPS and (name != "at" or bucket) or name in groups]
        return _sheet("usage", csv_writer(shown)(rows[:limit]))
    return {"data": rows[:limit], "has_more": len(rows) > limit, "as_of": as_of}


By = Annotated[str, Query(max_length=256, description=f"What to keep apart, with commas between: {', '.join(GROUPS)}.")]
Bucket = Annotated[Literal["", "hour", "day", "month"], Query(description=f"Sums for each {', '.join(BUCKETS)} (UTC); else for all time.")]
Sums = Annotated[int, Query(ge=1, le=_MOST_SUMS, description="Most rows.")]


async def usage(
    gateway: GatewayOf,
    caller: Caller,
    asked: Asked,
    by: By = "",
    bucket: Bucket = "",
    limit: Sums = 1000,
    form: Annotated[Format, Query(alias="format")] = "json",
) -> Any:
    """Requests, tokens and cost, summed. The last 30 days unless `from` says otherwise. An admin key sees all, another its own."""
    return await _report(gateway, caller, asked, by, bucket, limit, form)


async def own_usage(gateway: GatewayOf, caller: Caller, asked: Asked, by: By = "", bucket: Bucket = "", limit: Sums = 1000) -> Any:
    """Requests, tokens and cost of the key that asks, summed. The last 30 days unless `from` says otherwise."""
    if caller is not None:
        asked = asked.of_key(caller.name)
    return await _report(gateway, caller, asked, by, bucket, limit, "json")


async def log(
    gateway: GatewayOf,
    caller: Caller,
    asked: Asked,
    cursor: Annotated[str, Query(max_length=128, description="`next` of the page before.")] = "",
    limit: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="Most rows: 100, and at most 1000, as JSON; without it all as CSV.")
    ] = None,
    form: Annotated[Format, Query(alias="format")] = "json",
) -> Any:
    """The log of requests, newest first, also those that were refused or failed. An admin key sees all, another its own."""
    place, endpoints = place_of(cursor), _shows_endpoints(caller)

    async def pages(place: Place | None, size: int) -> Page:
        async def read(connection: AsyncConnection) -> Page:
            from hx_gateway.stores.sql import reports

            return await reports.page(connection, asked, place, size)

        return await ask(gateway, caller, read)

    as_of = _as_of(gateway)
    if form == "json":
        found = await pages(place, min(limit or 100, 1000))
        data = [log_row(row, endpoints) for row in found.rows]
        return {"data": data, "has_more": found.next is not None, "next": cursor_of(found.next), "as_of": as_of}
    lines = csv_writer([name for name in LogRow.model_fields if endpoints or name != "endpoint"])
    first = await pages(place, min(limit or _BATCH, _BATCH))  # a store that is away is an error and not half a sheet

    async def sheet() -> AsyncIterator[str]:
        page, left = first, limit
        while True:
            yield lines(log_row(row, endpoints) for row in page.rows)
            left = None if left is None else left - len(page.rows)
            if page.next is None or left == 0:
                return
            page = await pages(page.next, min(left or _BATCH, _BATCH))

    return _sheet("requests", sheet())


async def story(id: str, request: Request, gateway: GatewayOf, caller: Caller) -> Any:
    """One request with everything that is known of it, by its id (`x-hx-decision-id`). An admin key sees all, another its own."""
    endpoints = _shows_endpoints(caller)
    id = id.rpartition("-")[2].upper()  # an answer's id has it behind a word such as chatcmpl-

    async def read(connection: AsyncConnection) -> dict[str, Any] | None:
        from hx_gateway.stores.sql import reports

        return await reports.one(connection, id)

    row = await ask(gateway, caller, read)
    if row is None or (caller is not None and not caller.admin and row["key_name"] != caller.name):
        raise Failure(
            errors.NOT_FOUND, f"id: no request {id!r} is in the log; it may arrive within seconds, or be past its retention", param="id"
        )
    trail = [
        {"endpoint": endpoint if endpoints else None, "error": error, "duration_ms": took_ms}
        for endpoint, error, took_ms in row["trail"] or ()
    ]
    bodies = {
        name: body.decode(errors="replace") if body is not None else None for name in ("request", "response") for body in (row[name],)
    }
    decided = [one for answer in await siblings_of(request).ask("decision", id) for one in answer][::-1] if endpoints else []
    return {**log_row(row, endpoints), **bodies, "trail": trail, "decisions": decided}


def router() -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["usage"], responses=failures("401", "403", "503"))
    sums: dict[str, Any] = {"methods": ["GET"], "response_model": UsageReport, "response_model_exclude_unset": True}
    routes.add_api_route("/admin/usage", usage, responses=_SHEET, **sums)
    routes.add_api_route("/v1/usage", own_usage, **sums)
    routes.add_api_route("/admin/requests", log, methods=["GET"], response_model=LogPage, responses=_SHEET)
    routes.add_api_route("/admin/requests/{id}", story, methods=["GET"], response_model=Story, responses=failures("404"))
    return routes
