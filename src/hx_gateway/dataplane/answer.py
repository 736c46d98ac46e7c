"""How the gateway's own words reach a client: header lines and error bodies."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Headers

if TYPE_CHECKING:
    from hx_gateway.fleet.deployment import Deployment


class Told(Protocol):
    """What a run can tell of its way to the answer."""

    reason: str
    fell_from: tuple[str, ...]
    dropped: Sequence[str]


JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_STREAM_TYPES = (b"text/event-stream", b"application/x-ndjson")
_request_id = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")


def is_stream(headers: Headers) -> bool:
    """Whether a model server's answer comes piece by piece."""
    return any(name == b"content-type" and value.lower().startswith(_STREAM_TYPES) for name, value in headers)


def request_id(exchange: Exchange) -> bytes:
    """The id sent back and upstream: the client's own where it is a plain token, else ours."""
    given = exchange.notes.get(b"x-request-id")
    if given is not None and _request_id.match(given):
        return given
    return exchange.id.encode()


def success_lines(exchange: Exchange, deployment: Deployment | None, kind: bytes, id_line: bytes, run: Told) -> bytes:
    """Header lines of a model server's answer.

    Args:
        exchange: The exchange.
        deployment: Who answers; None where that is not known yet (a stream that waits for a place).
        kind: Content-type line and what belongs to it.
        id_line: The line with the request id.
        run: What else there is to tell.
    """
    identity = exchange.identity
    shown = identity is None or identity.show_endpoints
    lines = b"".join((
        kind, id_line, exchange.candidates.head,
        deployment.response_head if deployment is not None else b"",
        deployment.endpoint.response_head if deployment is not None and shown else b"",
        b"x-hx-decision-id: ", exchange.id.encode(), b"\r\n", exchange.limit_lines,
    ))  # fmt: skip
    if exchange.attempts > 1:
        lines += b"x-hx-attempts: %d\r\n" % exchange.attempts
    if run.reason and shown:
        lines += b"x-hx-reason: %b\r\n" % run.reason.encode("ascii", "replace")
    if run.fell_from:
        lines += b"x-hx-fallback-from: %b\r\n" % ", ".join(run.fell_from).encode("ascii", "replace")
    if exchange.queued_s:
        lines += b"x-hx-queue-ms: %d\r\n" % round(exchange.queued_s * 1000)
    if run.dropped:
        lines += b"x-hx-params-dropped: %b\r\n" % ", ".join(run.dropped).encode("ascii", "replace")
    return lines


def failure_lines(exchange: Exchange, failure: Failure) -> bytes:
    """Header lines of an error answer."""
    lines = b"%bx-request-id: %b\r\n%b" % (JSON, request_id(exchange), exchange.limit_lines)
    wait_s = failure.retry_after_s
    if wait_s is not None:
        lines += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (math.ceil(wait_s), math.ceil(wait_s * 1000))
    if failure.should_retry is not None:
        lines += b"x-should-retry: %b\r\n" % (b"true" if failure.should_retry else b"false")
    elif failure.kind is errors.INVALID_API_KEY:
        lines += b'www-authenticate: Bearer realm="hx-gateway"\r\n'
    if exchange.attempts > 1:
        lines += b"x-hx-attempts: %d\r\n" % exchange.attempts
    return lines
