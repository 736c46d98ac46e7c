"""How the gateway's own words reach a client: header lines and error bodies."""

from __future__ import annotations

import math
import re

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure

JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_request_id = re.compile(rb"[A-Za-z0-9._:\-]{1,128}\Z")


def request_id(exchange: Exchange) -> bytes:
    """The id sent back and upstream: the client's own where it is a plain token, else ours."""
    given = exchange.notes.get(b"x-request-id")
    if given is not None and _request_id.match(given):
        return given
    return exchange.id.encode()


def failure_lines(exchange: Exchange, failure: Failure) -> bytes:
    """Header lines of an error answer."""
    lines = b"%bx-request-id: %b\r\n" % (JSON, request_id(exchange))
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
