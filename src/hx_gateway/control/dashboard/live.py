"""Pages that live: server-sent events with what has changed, until the session, the gateway or the reader ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from hx_gateway.control.dashboard.frame import Session, SignedOut, desk_of, session_in
from hx_gateway.control.dependencies import gateway_of
from hx_gateway.core import errors
from hx_gateway.core.errors import Failure

EVERY_S = 1.0
"""Seconds between two looks."""
MOST_STREAMS = 64
"""Of one worker."""
_TICK_S = 0.25  # a gateway that ends is not held up for longer
_QUIET_S = 15.0

Look = Callable[[], Awaitable[dict[str, Any]]]


def stream(request: Request, session: Session, look: Look) -> Response:
    """Events for ``hx.js``: what ``look`` returns, as often as it has changed.

    Args:
        request: Of whoever reads.
        session: Whose it is; the stream ends with it.
        look: Returns HTML by the id of the element it goes into, in the order of elements; what is called ``data`` is given to scripts.

    Raises:
        Failure: So many are open that there is no room for another (``overloaded``).
    """
    desk = desk_of(request)
    if desk.streams >= MOST_STREAMS:
        raise Failure(errors.OVERLOADED, f"{MOST_STREAMS} pages of the dashboard are open at this worker; close one", retry_after_s=5.0)
    return StreamingResponse(
        _events(request, look), media_type="text/event-stream", headers={"cache-control": "no-store", "x-accel-buffering": "no"}
    )


async def _events(request: Request, look: Look) -> AsyncIterator[bytes]:
    desk, gateway = desk_of(request), gateway_of(request)
    desk.streams += 1
    seen: dict[str, Any] = {}
    silent_s = 0.0
    try:
        yield b"retry: 1000\n\n"
        while True:
            try:
                session_in(request)
            except SignedOut:
                yield b"event: signed-out\ndata: \n\n"
                return
            if not gateway.draining:
                found = await look()
                changed = {name: value for name, value in found.items() if name == "data" or seen.get(name) != value}
                seen = found
                if changed:
                    yield b"data: " + msgspec.json.encode(changed) + b"\n\n"
                    silent_s = 0.0
            for _ in range(round(EVERY_S / _TICK_S)):
                if gateway.draining:
                    yield b"event: draining\ndata: \n\n"
                    return
                await asyncio.sleep(_TICK_S)
            silent_s += EVERY_S
            if silent_s >= _QUIET_S:
                yield b": still here\n\n"
                silent_s = 0.0
    finally:
        desk.streams -= 1
