"""HX Gateway: the one OpenAI-compatible door to a private fleet of model servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hx_gateway.config.problems import ConfigError as ConfigError
    from hx_gateway.config.schema import GatewayConfig as GatewayConfig
    from hx_gateway.core.errors import Failure as Failure
    from hx_gateway.fleet.breaker import Breaker as Breaker
    from hx_gateway.gateway import Gateway as Gateway
    from hx_gateway.gateway import build as build
    from hx_gateway.health.monitor import Monitor as Monitor
    from hx_gateway.health.summary import Summary as Summary
    from hx_gateway.health.summary import summarize as summarize
    from hx_gateway.library import FlatConfig as FlatConfig
    from hx_gateway.library import LoadBalancer as LoadBalancer
    from hx_gateway.library import Service as Service
    from hx_gateway.library import from_file as from_file

_HOMES = {
    "Breaker": "fleet.breaker",
    "ConfigError": "config.problems",
    "Failure": "core.errors",
    "FlatConfig": "library",
    "Gateway": "gateway",
    "GatewayConfig": "config.schema",
    "LoadBalancer": "library",
    "Monitor": "health.monitor",
    "Service": "library",
    "Summary": "health.summary",
    "build": "gateway",
    "from_file": "library",
    "summarize": "health.summary",
}

__all__ = [
    "Breaker",
    "ConfigError",
    "Failure",
    "FlatConfig",
    "Gateway",
    "GatewayConfig",
    "LoadBalancer",
    "Monitor",
    "Service",
    "Summary",
    "build",
    "from_file",
    "summarize",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for: the package alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hx_gateway' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hx_gateway.{_HOMES[name]}"), name)
