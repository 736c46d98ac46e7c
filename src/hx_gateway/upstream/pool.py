"""The connections to one model server: constant-time checkout, bounded idling, one coarse sweep for every deadline."""

from __future__ import annotations

import asyncio
import ssl
from math import inf
from time import monotonic

from hx_gateway.core import errors
from hx_gateway.core.interfaces import CallHandler, Outgoing
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.upstream.connection import CLOSED, IDLE, REST_S, Connection

_LATE = "no connection to the model server within the connect timeout"


class Connecting:
    """A call whose connection is still being made; its handler's ``call`` until then."""

    __slots__ = ("cancelled", "paused", "task")

    def __init__(self) -> None:
        self.cancelled = False
        self.paused = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class Pool:
    """Connections to one endpoint.

    Args:
        endpoint: The model server.
        idle_s: Seconds an unused connection is kept.
        max_idle: Most unused connections kept.
        max_body: Largest answer, in bytes, that is collected whole.
    """

    __slots__ = ("connections", "endpoint", "idle", "idle_s", "max_body", "max_idle", "resting", "tasks")

    def __init__(self, endpoint: Endpoint, idle_s: float = 60.0, max_idle: int = 2048, max_body: int = 1 << 26) -> None:
        self.endpoint = endpoint
        self.idle_s = idle_s
        self.max_idle = max_idle
        self.max_body = max_body
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.resting: list[Connection] = []

    def send(self, outgoing: Outgoing, handler: CallHandler, total_at_s: float = inf, first_byte_s: float = 0.0) -> None:
        """Send a request on a free connection, or on a new one.

        Args:
            outgoing: The request.
            handler: Told of all that comes of it.
            total_at_s: Monotonic time of the total deadline.
            first_byte_s: Seconds to wait for the head; 0 takes the endpoint's own.
        """
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.phase is IDLE:
                deadlines = self.endpoint.deadlines
                connection.between_s = deadlines.between_bytes_s or inf
                connection.start(outgoing, handler, first_byte_s or deadlines.first_byte_s or inf, total_at_s)
                return
        self.again(outgoing, handler, total_at_s, first_byte_s)

    def again(self, outgoing: Outgoing, handler: CallHandler, total_at_s: float, first_byte_s: float = 0.0) -> None:
        """Send a request on a new connection."""
        connecting = Connecting()
        handler.call = connecting
        task = asyncio.get_running_loop().create_task(self._connect(connecting, outgoing, handler, total_at_s, first_byte_s))
        connecting.task = task
        self.tasks.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if task.cancelled() and not connecting.cancelled:  # by `close`, perhaps before it began
                handler.failed(
                    errors.CONNECT_FAILED, "the gateway closed its connections to the model server while this one was being made"
                )

        task.add_done_callback(over)

    async def _connect(
        self, connecting: Connecting, outgoing: Outgoing, handler: CallHandler, total_at_s: float, first_byte_s: float
    ) -> None:
        endpoint = self.endpoint
        deadlines = endpoint.deadlines
        address = endpoint.address
        limit_s = min(deadlines.connect_s or inf, total_at_s - monotonic())
        failed, message = errors.CONNECT_FAILED, ""
        connection = None
        try:
            async with asyncio.timeout(limit_s if limit_s < inf else None):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self),
                    address.host,
                    address.port,
                    ssl=endpoint.tls,
                    server_hostname=address.host if endpoint.tls is not None else None,
                )
        except TimeoutError:
            if monotonic() >= total_at_s:  # the request ran out of time, the server may be well
                failed, message = errors.TOTAL_TIMEOUT, "the request's total deadline passed while a connection was being made"
            else:
                failed, message = errors.CONNECT_TIMEOUT, _LATE
        except ssl.SSLError as error:
            message = f"TLS to the model server failed: {error.reason or error}"
        except (OSError, UnicodeError) as error:  # a host name that cannot be encoded is one that cannot be found
            message = f"cannot connect to the model server: {getattr(error, 'strerror', None) or error}"
        if connecting.cancelled:
            if connection is not None:
                connection.transport.abort()
            return
        if connection is None:
            handler.failed(failed, message)
            return
        self.connections.add(connection)
        connection.between_s = deadlines.between_bytes_s or inf
        connection.start(outgoing, handler, first_byte_s or deadlines.first_byte_s or inf, total_at_s)
        if connecting.paused:
            connection.pause()

    def release(self, connection: Connection) -> None:
        """Take back a connection whose answer was complete and clean."""
        if len(self.idle) < self.max_idle and not connection.transport.is_closing():
            connection.deadline_s = monotonic() + self.idle_s
            self.idle.append(connection)
        else:
            connection.phase = CLOSED
            connection.transport.abort()

    def rest(self, connection: Connection) -> None:
        """Leave a connection unread for a moment."""
        resting = self.resting
        resting.append(connection)
        if len(resting) == 1:
            asyncio.get_running_loop().call_later(REST_S, self._wake)

    def _wake(self) -> None:
        resting, self.resting = self.resting, []
        for connection in resting:
            connection.wake()

    def lost(self, connection: Connection) -> None:
        """Forget a closed connection; in the idle list it is skipped at checkout."""
        self.connections.discard(connection)

    def sweep(self, now_s: float) -> None:
        """End every phase whose deadline has passed, and drop closed connections from the idle list."""
        for connection in [c for c in self.connections if c.deadline_s <= now_s]:
            connection.expire()
        if any(connection.phase is not IDLE for connection in self.idle):
            self.idle = [connection for connection in self.idle if connection.phase is IDLE]

    def close(self) -> None:
        """Close every connection; calls under way fail, those whose connection is being made once the loop runs again."""
        for task in list(self.tasks):
            task.cancel()
        for connection in list(self.connections):
            connection.transport.abort()
