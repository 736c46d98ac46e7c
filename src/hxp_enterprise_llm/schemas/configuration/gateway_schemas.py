"""`hx_gateway.GatewayConfig`, by its former name."""

from hx_gateway import GatewayConfig as GatewayConfigSchema

__all__ = ["GatewayConfigSchema"]
