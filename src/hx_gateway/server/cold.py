"""Requests that are not hot: run through the control app by uvicorn's own ASGI cycle, on the same connection."""

from __future__ import annotations

import asyncio
import logging
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

if TYPE_CHECKING:
    from hx_gateway.server.door import Door
    from hx_gateway.server.reader import Request

_error_log = logging.getLogger("uvicorn.error")
_access_log = logging.getLogger("uvicorn.access")


class Cold:
    """One ASGI request on a door's connection.

    Args:
        door: The connection.
        request: The request, its body complete.
        done: Called when the response is complete.
    """

    __slots__ = ("cycle", "flow")

    def __init__(self, door: Door, request: Request, done: Callable[[], None]) -> None:
        transport = door.transport
        self.flow = FlowControl(transport)
        self.cycle = RequestResponseCycle(
            scope=_scope(door, request),  # type: ignore[arg-type]
            transport=transport,
            flow=self.flow,
            logger=_error_log,
            access_logger=_access_log,
            access_log=False,
            default_headers=door.state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=request.keep_alive and not door.closing,
            on_response=done,
        )
        self.cycle.body += b"".join(request.pieces)
        self.cycle.more_body = False
        self.cycle.message_event.set()
        task = asyncio.get_running_loop().create_task(self.cycle.run_asgi(door.config.loaded_app))
        door.state.tasks.add(task)
        task.add_done_callback(door.state.tasks.discard)

    def disconnected(self) -> None:
        """The client is gone: the app's `receive` says so."""
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self.flow.resume_writing()


def _scope(door: Door, request: Request) -> dict[str, Any]:
    raw_path, query = request.target, b""
    try:
        parsed = httptools.parse_url(request.target)
        raw_path, query = parsed.path or b"/", parsed.query or b""
    except httptools.HttpParserInvalidURLError:
        pass  # an authority or asterisk form: no route will match it
    peer = door.transport.get_extra_info("peername")
    here = door.transport.get_extra_info("sockname")
    return {
        "type": "http",
        "asgi": {"version": door.config.asgi_version, "spec_version": "2.3"},
        "http_version": "1.0" if request.http10 else "1.1",
        "server": (here[0], here[1]) if isinstance(here, tuple) else None,
        "client": (peer[0], peer[1]) if isinstance(peer, tuple) else None,
        "scheme": "https" if door.transport.get_extra_info("sslcontext") else "http",
        "root_path": "",
        "method": request.method.decode("ascii"),
        "path": urllib.parse.unquote(raw_path.decode("latin-1")),
        "raw_path": raw_path,
        "query_string": query,
        "headers": [(name.lower(), value) for name, value in request.headers],
        "state": door.app_state.copy(),
    }
