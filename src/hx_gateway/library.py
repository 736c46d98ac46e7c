"""The gateway in a program of one's own: settings by flat names, a service that listens in one's own event loop, and its fleet without HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from hx_gateway.config.environment import NAMES
from hx_gateway.config.load import Loaded, load, load_text
from hx_gateway.config.schema import GatewayConfig
from hx_gateway.config.shape import nearest
from hx_gateway.core.context import CHAT
from hx_gateway.gateway import Gateway

_PREFIX = "api_gateway_"


class FlatConfig:
    """A configuration by flat names: those of the environment variables in lower case, ``API_GATEWAY_`` left out where it begins one.

    A whole section of the file, such as ``models`` or ``groups``, is given by its own name::

        FlatConfig(port=8000, load_balancer_algorithm="round_robin", models={"phi-3-mini": {"endpoint": "http://llm-09:11403"}})

    Args:
        settings: The settings; everything else is left at its default. The environment is not read.

    Attributes:
        config: The whole configuration; `loaded` is the same with its warnings.

    Raises:
        TypeError: There is no setting of a name.
        hx_gateway.ConfigError: A value cannot be used; lists every reason.
    """

    def __init__(self, **settings: Any) -> None:
        self._paths = {name.lower().removeprefix(_PREFIX): path for name, path in NAMES}
        data: dict[str, Any] = {name: dict(given) for name, given in settings.items() if name in GatewayConfig.model_fields}
        for name, value in settings.items():
            path = self._paths.get(name.removeprefix(_PREFIX))
            if path is not None:
                data.setdefault(str(path[0]), {})[str(path[1])] = value
            elif name not in data:
                raise TypeError(f"there is no setting {name}{nearest(name, [*self._paths, *GatewayConfig.model_fields])}")
        self.loaded: Loaded = load_text(json.dumps(data), "settings", {})  # JSON is YAML
        self.config = self.loaded.config

    def __getattr__(self, name: str) -> Any:
        path = self.__dict__.get("_paths", {}).get(name.removeprefix(_PREFIX))
        if path is None:
            raise AttributeError(f"{type(self).__name__} has no setting {name}")
        return getattr(getattr(self.config, str(path[0])), str(path[1]))


Config = GatewayConfig | FlatConfig


def from_file(path: str | Path, environ: dict[str, str] | None = None) -> GatewayConfig:
    """The configuration in a YAML file.

    Args:
        path: The file.
        environ: What overrides it, and what ``env:`` refers to; None for nothing.

    Raises:
        hx_gateway.ConfigError: It cannot be read or used; lists every reason.
    """
    return load(Path(path), environ or {}).config


class LoadBalancer:
    """The fleet and its router without a server: what can be used now, and where a request would go.

    Use it as ``async with LoadBalancer(config) as balancer``: the fleet is watched meanwhile. Without that nothing is asked, and every
    server counts as available.

    Args:
        config: The configuration.
    """

    def __init__(self, config: Config) -> None:
        self.gateway = Gateway(config.config if isinstance(config, FlatConfig) else config)

    async def __aenter__(self) -> LoadBalancer:
        await self.gateway.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.gateway.stop()

    def get_health_status(self) -> dict[str, Any]:
        """What ``GET /health`` answers: status, gateway, models, unavailable, timestamp."""
        from hx_gateway.control.routes.health import health_of

        return health_of(self.gateway).model_dump()

    def get_available_models(self) -> list[str]:
        """The names that something can serve now: models, groups and aliases, in the order of the configuration."""
        health = self.get_health_status()
        return [name for name in health["models"] if name not in health["unavailable"]]

    def explain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Where a chat would go and why, as ``POST /v1/route/explain`` answers it; nothing is sent.

        Args:
            body: A chat completion's.

        Raises:
            hx_gateway.Failure: It would be refused.
        """
        return self.gateway.explain(CHAT, json.dumps(body).encode(), {}, None)


class Service(LoadBalancer):
    """A gateway that listens, in the running event loop: one worker, no signal handlers, logging left to the program.

    Use it as ``async with Service(config) as service``, or call `start` and `stop`.

    Args:
        config: The configuration; with port 0 it takes a free one. ``service.workers`` does not count here.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._server: Any = None
        self._running: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens.

        Raises:
            RuntimeError: It does not.
        """
        if self._server is None or not self._server.servers:
            raise RuntimeError("the service is not started")
        host, port = self._server.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.gateway.config.service.tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        """Start the gateway and open the port.

        Raises:
            OSError: The port cannot be opened.
            RuntimeError: It is started already, or ended before it was.
        """
        from hx_gateway.server.app import GatewayServer

        if self._running is not None:
            raise RuntimeError("the service is started already")
        opened = asyncio.get_running_loop().create_future()
        self._server = GatewayServer(self.gateway, started=lambda: opened.set_result(None), guest=True)
        self._running = asyncio.create_task(self._served(), name="gateway")
        await asyncio.wait({opened, self._running}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            running, self._running = self._running, None
            await running
            raise RuntimeError("the gateway ended before it was started")

    async def _served(self) -> None:
        try:
            await self._server._serve()  # serve() would take the program's signals
        except SystemExit:  # how uvicorn says that it cannot listen; it has logged why
            await self.gateway.stop()
            service = self.gateway.config.service
            raise OSError(f"{service.host}:{service.port} cannot be listened on") from None

    async def stop(self) -> None:
        """Refuse what is new, let running answers finish within the drain timeout, and stop; nothing where it is not started."""
        running, self._running = self._running, None
        if running is not None:
            self._server.should_exit = True
            await running

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
