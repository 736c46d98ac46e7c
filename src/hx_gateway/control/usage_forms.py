"""What reports on usage are asked with and answered as: parameters, fields, and rows of CSV that no spreadsheet takes for a formula."""

from __future__ import annotations

import base64
import binascii
import csv
import io
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from hx_gateway.access.moments import moment_ms, written
from hx_gateway.control.dependencies import Caller
from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.ledger.reports import Filter, Place

Format = Annotated[Literal["json", "csv"], Query(description="json, or csv for a spreadsheet.")]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NAME = {"max_length": 256}


def _moment(text: str, name: str) -> int | None:
    """A moment in Unix milliseconds, from ``2030-01-31T12:00:00Z``, Unix seconds, or a span back from now such as ``7d``."""
    if not text:
        return None
    now_ms = int(time.time() * 1000)
    try:
        if text.isdigit():
            return int(text) * 1000 if len(text) <= 11 else int(text[:18])
        if text[-1:].lower() in "smhdw":
            return 2 * now_ms - moment_ms(text, now_ms)
        return moment_ms(text, now_ms)
    except (ValueError, OverflowError):
        sentence = "should be a moment such as 2030-01-31T12:00:00Z, Unix seconds, or a span back from now such as 7d"
        raise Failure(errors.INVALID_VALUE, f"{name}: {sentence}", param=name) from None


async def _asked(
    caller: Caller,
    key: Annotated[str | None, Query(description="Name of the key; a key that is no admin key sees only its own.", **_NAME)] = None,
    team: Annotated[str | None, Query(description="Team of the key.", **_NAME)] = None,
    model: Annotated[str | None, Query(description="Model that was asked last.", **_NAME)] = None,
    group: Annotated[str | None, Query(description="Group that was asked for; empty for none.", **_NAME)] = None,
    endpoint: Annotated[str | None, Query(description="Endpoint that was asked last.", **_NAME)] = None,
    outcome: Annotated[str | None, Query(description="`ok`, or the code of an error.", **_NAME)] = None,
    route: Annotated[str | None, Query(description="chat, completions, embeddings or forward.", **_NAME)] = None,
    cached: Annotated[str | None, Query(description="`hit` or `shared` where the cache answered; empty where it did not.", **_NAME)] = None,
    user: Annotated[str | None, Query(description="End user; read from rows, not from the roll-up.", **_NAME)] = None,
    status: Annotated[int | None, Query(ge=100, le=599, description="HTTP status; read from rows.")] = None,
    stream: Annotated[bool | None, Query(description="Whether the answer was streamed; read from rows.")] = None,
    min_ms: Annotated[float | None, Query(ge=0, description="Least duration in milliseconds; read from rows.")] = None,
    start: Annotated[
        str, Query(alias="from", max_length=64, description="Not before: a moment, Unix seconds, or a span back such as 7d.")
    ] = "",
    end: Annotated[str, Query(alias="to", max_length=64, description="Before: the same.")] = "",
) -> Filter:
    """Which requests are meant, as far as the caller may see them.

    Raises:
        Failure: A value cannot be used (422), or asks for what only an admin key may see (403).
    """
    since, until = _moment(start, "from"), _moment(end, "to")
    if since is not None and until is not None and since >= until:
        raise Failure(errors.INVALID_VALUE, "to: should be later than from", param="to")
    found = Filter(key, team, model, group, endpoint, outcome, route, cached, user, status, stream, min_ms, since, until)
    for name, value in found.given().items():
        if isinstance(value, str) and "\0" in value:
            raise Failure(errors.INVALID_VALUE, f"{name}: holds a character that no name has", param=name)
    return own(found, caller) if caller is not None and not caller.admin else found


Asked = Annotated[Filter, Depends(_asked)]
"""Which requests are meant, as far as the caller may see them."""


def own(asked: Filter, caller: Identity) -> Filter:
    """The same of one key.

    Raises:
        Failure: It asks for another, or for endpoints that are not shown to it.
    """
    if asked.key not in (None, caller.name):
        raise Failure(errors.ADMIN_ONLY, "key: the usage of other keys needs an admin key; leave it out to see your own", param="key")
    if asked.endpoint is not None and not caller.show_endpoints:
        raise Failure(errors.ADMIN_ONLY, "endpoint: endpoints are not shown to this key", param="endpoint")
    return asked.of_key(caller.name)


def cursor_of(place: Place | None) -> str | None:
    """A place in the log as text that means nothing to others."""
    return None if place is None else base64.urlsafe_b64encode(f"{place.at_ms}.{place.id}".encode()).decode().rstrip("=")


def place_of(cursor: str) -> Place | None:
    """The place that `cursor_of` wrote.

    Raises:
        Failure: It did not.
    """
    if not cursor:
        return None
    try:
        at_ms, _, id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode("ascii").partition(".")
        if not id or "\0" in id or not 0 <= int(at_ms) < 1 << 62:
            raise ValueError(id)
        return Place(int(at_ms), id)
    except (ValueError, binascii.Error):
        raise Failure(errors.INVALID_VALUE, "cursor: should be `next` of the page before, unchanged", param="cursor") from None


class UsageRow(BaseModel):
    """Sums of one group in one bucket; what is not grouped by is left out."""

    at: str | None = Field(default=None, description="beginning of the bucket, UTC")
    key: str | None = None
    team: str | None = None
    model: str | None = None
    group: str | None = None
    endpoint: str | None = None
    outcome: str | None = None
    route: str | None = None
    cached: str | None = None
    requests: int
    failed: int = Field(description="requests with another outcome than ok")
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = Field(description="of the prompts, those that engines had cached")
    cost: float = Field(description="in the operator's money")
    engine_s: float = Field(description="seconds that engines worked")
    mean_ms: float = Field(description="mean duration")
    mean_ttft_ms: float | None = Field(description="mean time to the first byte of the model server; null where none came")


class UsageReport(BaseModel):
    """Usage and cost."""

    object: Literal["usage"] = "usage"
    data: list[UsageRow]
    has_more: bool = Field(description="whether there are more rows than `limit`; ask for fewer groups or a shorter time")
    as_of: str | None = Field(description="everything that ended before is counted; null where nobody knows")


class LogRow(BaseModel):
    """One request."""

    id: str
    at: str = Field(description="when it came, UTC")
    duration_ms: float
    ttft_ms: float | None
    queued_ms: float
    load_ms: float
    route: str
    key: str
    team: str
    user: str
    asked: str = Field(description="the name the client used")
    model: str
    group: str
    endpoint: str | None = Field(description="null where it is not shown to the key")
    attempts: int
    status: int
    outcome: str
    stream: bool
    cached: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    estimated: bool = Field(description="whether a count of tokens is an estimate")
    cost: float
    engine_s: float
    tags: list[str]


class LogPage(BaseModel):
    """Requests, newest first."""

    object: Literal["list"] = "list"
    data: list[LogRow] = Field(description="may be few, or none, on a page that is not the last: rare things are searched for page by page")
    has_more: bool
    next: str | None = Field(description="value of `cursor` for the next page; null on the last")
    as_of: str | None = Field(description="everything that ended before is there; null where nobody knows")


class Attempt(BaseModel):
    """An attempt that failed."""

    endpoint: str | None
    error: str
    duration_ms: float


class Story(LogRow):
    """One request with everything that is known of it."""

    object: Literal["request"] = "request"
    trail: list[Attempt] = Field(description="attempts that failed before the last")
    digest: str | None = Field(description="digest of the model, where the registry has it")
    request: str | None = Field(description="the body, where bodies are kept")
    response: str | None = Field(description="the answer's body, where bodies are kept")
    decisions: list[dict[str, Any]] = Field(description="routing decisions, while a worker remembers them")


def usage_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `stores.sql.reports.usage` as `UsageRow` has it."""
    summed = {name: value for name, value in row.items() if name not in ("at_ms", "engine_ms", "duration_ms", "ttft_ms", "ttft_count")}
    return {
        **({"at": written(row["at_ms"])} if row["at_ms"] is not None else {}),
        **summed,
        "engine_s": round(row["engine_ms"] / 1000, 6),
        "mean_ms": round(row["duration_ms"] / row["requests"], 3),
        "mean_ttft_ms": round(row["ttft_ms"] / row["ttft_count"], 3) if row["ttft_count"] else None,
    }


def log_row(row: dict[str, Any], endpoints: bool) -> dict[str, Any]:
    """A row of `usage` as `LogRow` has it.

    Args:
        row: The row.
        endpoints: Whether endpoints may be shown.
    """
    seconds, millis = divmod(row["at_ms"], 1000)
    renamed = {"key": row["key_name"], "group": row["grp"], "at": f"{written(seconds * 1000)[:-1]}.{millis:03d}Z"}
    hidden = {} if endpoints else {"endpoint": None}
    return {**row, **renamed, **hidden, "engine_s": round(row["engine_ms"] / 1000, 6), "tags": row["tags"] or []}


def csv_writer(columns: Sequence[str]) -> Callable[[Iterable[dict[str, Any]]], str]:
    """Returns what turns rows into lines of CSV; the first it is given are headed by the names of the columns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(columns)

    def lines(rows: Iterable[dict[str, Any]]) -> str:
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    return lines


def _cell(value: Any) -> Any:
    """A value as it may stand in a spreadsheet: what clients chose is text there and never a formula."""
    if isinstance(value, list):
        value = " ".join(value)
    if isinstance(value, str) and value.lstrip(" \n").startswith(_FORMULA):
        return f"'{value}"
    return value
