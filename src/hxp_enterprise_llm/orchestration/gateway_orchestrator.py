"""`hx_gateway.Gateway`, which puts everything together, by its former name."""

from hx_gateway import Gateway as GatewayOrchestrator
from hx_gateway import build

__all__ = ["GatewayOrchestrator", "build"]
