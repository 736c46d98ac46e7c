"""Reports on usage: sums from the hourly roll-up, and pages of the request log whose cost does not grow with the log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import BigInteger, and_, case, cast, desc, func, literal, select, text, tuple_, union_all

from hx_gateway.core.identifiers import time_of
from hx_gateway.ledger.reports import GROUPS, Filter, Page, Place
from hx_gateway.stores.sql.schema import BODIES, REGISTRY, USAGE, USAGE_DAILY, USAGE_HOURLY

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
_INDEXED = ("key", "endpoint", "outcome", "model")  # likely to leave least first
_SCAN = 5000  # rows looked at by one statement of a page
_BUDGET_S = 0.15  # after which a page is returned as it is
_NEAR_MS, _FAR_MS = 2_000, 900_000  # a clock may be set while a request runs
_LAYERS = ((USAGE_DAILY, DAY_MS), (USAGE_HOURLY, HOUR_MS))
_ROW_ONLY = ("user", "status", "stream", "min_ms")
_SUMMED = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "cost", "engine_ms", "duration_ms", "ttft_ms", "ttft_count")


async def prepare(connection: AsyncConnection) -> None:
    """The first thing to do on a connection; a server that does not answer is met here."""
    if connection.dialect.name == "postgresql":
        # A plan made for any limit and any time would read everything and sort it.
        await connection.execute(text("SET LOCAL plan_cache_mode = force_custom_plan"))


async def usage(connection: AsyncConnection, asked: Filter, by: Sequence[str], bucket: str | None, limit: int) -> list[dict[str, Any]]:
    """Sums, in order of time and then of cost.

    Args:
        connection: Prepared by `prepare`.
        asked: Which requests.
        by: Of `GROUPS`.
        bucket: Of `BUCKETS`, by UTC; None for one sum over all time.
        limit: Most sums to return.

    Returns:
        Rows with ``at_ms`` (beginning of the bucket; None without), what they are grouped by, the summed columns of `usage_hourly`,
        and ``failed``, the requests whose outcome was not ``ok``.
    """
    source = _source(asked, bucket)
    groups: list[Any] = [source.c[GROUPS[name]].label(name) for name in by]
    if bucket is not None:
        groups.insert(0, _bucket(source.c.hour_ms, bucket, connection.dialect.name).label("at_ms"))
    names = [column.name for column in groups]  # by name: two expressions with parameters are never the same to Postgres
    failed = func.sum(case((source.c.outcome != "ok", source.c.requests), else_=0)).label("failed")
    sums = [func.sum(source.c[name]).label(name) for name in _SUMMED]
    order = [*names[: bucket is not None], desc("cost"), desc("requests"), *names]
    found = await connection.execute(select(*groups, *sums, failed).group_by(*names).order_by(*order).limit(limit))
    return [{"at_ms": None, **_whole(row)} for row in found.mappings() if row["requests"]]


def _whole(row: Any) -> dict[str, Any]:
    """Postgres sums large integers to decimals."""
    return {
        name: int(value) if name in ("requests", "failed") or name.endswith(("tokens", "count")) else value for name, value in row.items()
    }


def _source(asked: Filter, bucket: str | None) -> FromClause:
    """What is to be summed, in the form of the roll-up by hour: sums of whole days, of the hours around them, and rows for the rest."""
    given = asked.given()
    layers = [] if any(name in given for name in _ROW_ONLY) else _LAYERS[bucket == "hour" :]
    parts = _parts(asked, given, layers, asked.from_ms, asked.to_ms)
    return (parts[0] if len(parts) == 1 else union_all(*parts)).subquery()


def _parts(
    asked: Filter, given: dict[str, Any], layers: Sequence[tuple[Any, int]], start: int | None, end: int | None
) -> list[Select[Any]]:
    if not layers:
        return [_rows(asked, given, start, end)]
    (table, unit_ms), *finer = layers
    first = None if start is None else -(-start // unit_ms) * unit_ms
    last = None if end is None else end // unit_ms * unit_ms
    if first is not None and last is not None and first >= last:
        return _parts(asked, given, finer, start, end)
    time, *others = table.c
    parts = [select(time.label("hour_ms"), *others).where(*_conditions(table, given), *_between(time, first, last))]
    if start != first:
        parts += _parts(asked, given, finer, start, first)
    if end != last:
        parts += _parts(asked, given, finer, last, end)
    return parts


def _rows(asked: Filter, given: dict[str, Any], start: int | None, end: int | None) -> Select[Any]:
    table = USAGE.c
    values: dict[str, ColumnElement[Any]] = {
        "hour_ms": table.at_ms - table.at_ms % HOUR_MS,
        "requests": cast(literal(1), BigInteger),
        "ttft_count": cast(case((table.ttft_ms.is_not(None), 1), else_=0), BigInteger),
        **{name: func.coalesce(table[name], 0) for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "ttft_ms")},
    }
    columns = [values.get(column.name, table.get(column.name)).label(column.name) for column in USAGE_HOURLY.columns]  # type: ignore[union-attr]
    return select(*columns).where(*_conditions(USAGE, given), *_between(table.at_ms, start, end))


def _bucket(hour_ms: ColumnElement[Any], bucket: str, kind: str) -> ColumnElement[Any]:
    if bucket == "hour":
        return hour_ms + 0
    if bucket == "day":
        return hour_ms - hour_ms % DAY_MS
    if kind == "sqlite":
        return cast(func.strftime("%s", hour_ms // 1000, "unixepoch", "start of month"), BigInteger) * 1000
    month = func.date_trunc("month", func.timezone("UTC", func.to_timestamp(hour_ms // 1000)))
    return cast(func.date_part("epoch", month), BigInteger) * 1000


async def page(connection: AsyncConnection, asked: Filter, before: Place | None, limit: int) -> Page:
    """A page of the request log, newest first.

    However rare what is asked for is, a page looks at a bounded number of rows: where it found less than ``limit`` meanwhile, the next
    one goes on.

    Args:
        connection: Prepared by `prepare`.
        asked: Which requests.
        before: Where the last page ended; None for the first page.
        limit: Most rows to return.
    """
    given = asked.given()
    leading = next((name for name in _INDEXED if name in given and given[name] != "ok"), "")
    rest = {name: value for name, value in given.items() if name != leading}
    ends_s = time.monotonic() + _BUDGET_S
    rows: list[dict[str, Any]] = []
    while True:
        end_ms = await _latest(connection, asked, before) if any(name in GROUPS for name in rest) else asked.to_ms
        if end_ms == 0:
            return Page(rows, None)
        wanted = limit - len(rows)
        reach = select(USAGE).where(
            *_conditions(USAGE, {leading: given[leading]} if leading else {}), *_between(USAGE.c.at_ms, asked.from_ms, end_ms)
        )
        if before is not None:
            # The time once more by itself: Postgres leaves out whole partitions by it, and not by the pair.
            reach = reach.where(USAGE.c.at_ms <= before.at_ms, tuple_(USAGE.c.at_ms, USAGE.c.id) < tuple_(*before))
        reach = reach.order_by(USAGE.c.at_ms.desc(), USAGE.c.id.desc()).limit(_SCAN if rest else wanted)
        # The order of what is looked at is that of what is found.
        looked = reach.subquery()
        statement = select(looked).where(*_conditions(looked, rest)).limit(wanted) if rest else reach
        rows += [_decoded(row) for row in (await connection.execute(statement)).mappings()]
        if len(rows) >= limit:
            return Page(rows, Place(rows[-1]["at_ms"], rows[-1]["id"]))
        if not rest:
            return Page(rows, None)
        edge = (await connection.execute(select(looked.c.at_ms, looked.c.id).offset(_SCAN - 1).limit(1))).first()
        if edge is None:
            return Page(rows, None)
        before = Place(*edge)
        if time.monotonic() >= ends_s:
            return Page(rows, before)


async def _latest(connection: AsyncConnection, asked: Filter, before: Place | None) -> int | None:
    """Before which time the newest of what is asked for must be, as the roll-up has it; 0 where there is none."""
    hour = USAGE_HOURLY.c.hour_ms
    given = {name: value for name, value in asked.given().items() if name in GROUPS}
    bounds = [*_between(hour, None if asked.from_ms is None else asked.from_ms - asked.from_ms % HOUR_MS, asked.to_ms)]
    if before is not None:
        bounds.append(hour <= before.at_ms)
    found = await connection.scalar(select(hour).where(*_conditions(USAGE_HOURLY, given), *bounds).order_by(hour.desc()).limit(1))
    if found is None:
        return 0
    return int(found) + HOUR_MS if asked.to_ms is None else min(int(found) + HOUR_MS, asked.to_ms)


async def one(connection: AsyncConnection, id: str) -> dict[str, Any] | None:
    """Everything that is kept of one request; None for an unknown id.

    Returns:
        The row, with ``digest`` of its model where that is known, and ``request`` and ``response`` (bytes) where bodies are kept.
    """
    at_ms = time_of(id)
    if at_ms < 0:
        return None
    for reach_ms in (_NEAR_MS, _FAR_MS):
        near = _between(USAGE.c.at_ms, at_ms - reach_ms, at_ms + reach_ms)
        row = (await connection.execute(select(USAGE).where(USAGE.c.id == id, *near))).mappings().first()
        if row is not None:
            break
    else:
        return None
    served = and_(REGISTRY.c.model == row["model"], REGISTRY.c.endpoint == row["endpoint"])
    digest = await connection.scalar(select(REGISTRY.c.digest).where(served).order_by(REGISTRY.c.seen_ms.desc()).limit(1))
    bodies = (await connection.execute(select(BODIES.c.request, BODIES.c.response).where(BODIES.c.id == id))).first()
    request, response = bodies if bodies is not None else (None, None)
    return {**_decoded(row), "digest": digest or None, "request": request, "response": response}


def _decoded(row: Any) -> dict[str, Any]:
    return {name: msgspec.json.decode(value) if name in ("trail", "tags") and value is not None else value for name, value in row.items()}


def _conditions(table: FromClause, given: dict[str, Any]) -> list[ColumnElement[bool]]:
    found = []
    for name, value in given.items():
        if name == "min_ms":
            found.append(table.c.duration_ms >= value)
        elif name == "stream":
            found.append(table.c.stream.is_(value))
        else:
            found.append(table.c[GROUPS.get(name, name)] == value)
    return found


def _between(column: ColumnElement[Any], start: int | None, end: int | None) -> list[ColumnElement[bool]]:
    return [*([column >= start] if start is not None else []), *([column < end] if end is not None else [])]
