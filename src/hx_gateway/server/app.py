"""A gateway as a uvicorn server: the door in front, the control app behind it, start and drain in order."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable
from time import monotonic

import uvicorn

from hx_gateway.config.load import Loaded
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core.cors import CorsPolicy
from hx_gateway.gateway import SWEEP_S, Gateway
from hx_gateway.server.door import Door
from hx_gateway.server.exporter import Exporter
from hx_gateway.server.hall import Hall
from hx_gateway.server.reloading import Reloading

_BACKLOG = 4096
_LET_GO_S = 2.0  # that idle clients get to ask once more and hear that the connection ends
_log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """uvicorn, with the gateway's life in step: started before the port is open, stopped after the last answer.

    Args:
        gateway: Built, not started.
        started: Called when the port is open.
        again: Loads the configuration anew, for reloads; None for a configuration that cannot be loaded again.
        loaded: As it is loaded now; needed with ``again``.
        beat: Called several times a second, with the monotonic time in seconds, while the event loop turns.
        guest: Whether it runs in somebody else's program, whose garbage collector and threads are left as they are.

    Attributes:
        lasting: Whether the listening sockets live on elsewhere, so that nobody need be turned away by the end of this server.
    """

    def __init__(
        self,
        gateway: Gateway,
        started: Callable[[], None] | None = None,
        again: Callable[[], Loaded] | None = None,
        loaded: Loaded | None = None,
        beat: Callable[[float], object] = lambda now_s: None,
        guest: bool = False,
    ) -> None:
        from hx_gateway.control.app import create_app

        self.gateway = gateway
        config = gateway.config
        self.hall = hall_of(gateway)
        tls = config.service.tls
        app = create_app(gateway)
        self.siblings = app.state.siblings
        super().__init__(
            uvicorn.Config(
                app,
                host=config.service.host,
                port=config.service.port,
                http=functools.partial(Door, hall=self.hall),  # type: ignore[arg-type]
                ws="none",
                loop="uvloop",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=max(1, round(config.http.drain_timeout_seconds)),
                ssl_certfile=tls.cert_file if tls else None,
                ssl_keyfile=tls.key_file if tls else None,
                ssl_keyfile_password=tls.key_password.reveal() if tls and tls.key_password else None,
            )
        )
        self._started = started
        self._beat = beat
        self._guest = guest
        self.lasting = False
        self.reloading = Reloading(gateway, self.hall, again, loaded) if again is not None and loaded is not None else None
        gateway.reloading = self.reloading
        self._exporter = Exporter(gateway)
        self._ticker: asyncio.Task[None] | None = None
        self._parent = os.getppid() if config.service.workers > 1 else 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the gateway, then open the port."""
        await self.gateway.start()
        await self.siblings.start(self.gateway.backing.folder)
        await super().startup(sockets)
        await self._exporter.start()
        if self.reloading is not None:
            self.reloading.start()
        self._ticker = asyncio.create_task(self._tick(), name="doors")
        if not self._guest:
            # What exists now stays: it need not be looked at by every collection, and collections need not be frequent.
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            sys.setswitchinterval(0.0005)  # a chat waits so long, not ten times as long, for a thread that cuts a long document
        if self._started is not None:
            self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what is new, let running answers finish within the drain timeout, then stop the gateway."""
        self.gateway.draining = True
        try:
            if self.lasting:
                await self._let_go()
            await super().shutdown(sockets)
            doors = [door for door in self.server_state.connections if isinstance(door, Door)]
            if doors:
                _log.warning("%d answers were still running at the drain timeout and are broken off", len(doors))
                for door in doors:
                    door.transport.abort()
                await asyncio.sleep(0)
        finally:
            if self._ticker is not None:
                self._ticker.cancel()
            if self.reloading is not None:
                self.reloading.stop()
            await self.siblings.stop()
            await self._exporter.stop()
            await self.gateway.stop()

    async def _let_go(self) -> None:
        """Accept no more, and have every client that is there ask its last: closed at once, an idle one could lose what it just sent."""
        for server in self.servers:
            server.close()
        give_up_s = monotonic() + _LET_GO_S
        while monotonic() < give_up_s:
            doors = [door for door in self.server_state.connections if isinstance(door, Door)]
            idle = [door.last() for door in doors]
            if not any(idle):
                break
            await asyncio.sleep(0.05)

    async def _tick(self) -> None:
        """Keep the doors' deadlines and the Date header."""
        beats = 0
        while True:
            await asyncio.sleep(SWEEP_S)
            beats += 1
            try:
                now_s = monotonic()
                self._beat(now_s)
                self.hall.sweep(self.server_state.connections, now_s)
                if beats % 2 == 0:
                    self.hall.tick()
                if self._parent and os.getppid() != self._parent:
                    _log.error(
                        "the process that keeps the workers is gone, so this one ends: whoever starts the gateway again needs the port"
                    )
                    self.should_exit, self._parent = True, 0
            except Exception:  # blame: the gateway's own; deadlines must go on being kept
                _log.exception("sweeping the client connections failed")


def hall_of(gateway: Gateway) -> Hall:
    """What the doors of a gateway share."""
    config: GatewayConfig = gateway.config
    http = config.http
    return Hall(
        gateway.dispatch,
        gateway.ids.__call__,
        cors_of(config),
        max_head=http.max_head_bytes,
        max_body=http.max_body_bytes,
        head_s=http.head_timeout_seconds,
        body_s=http.body_timeout_seconds,
        idle_s=http.keep_alive_seconds,
    )


def cors_of(config: GatewayConfig) -> CorsPolicy | None:
    """The CORS policy for hot routes; None when it is off."""
    from hx_gateway.control.cors import cors_policy

    return cors_policy(config.cors)
