"""`hx_gateway.FlatConfig`, by its former name."""

from hx_gateway import FlatConfig as UnifiedAPIGatewayConfig

__all__ = ["UnifiedAPIGatewayConfig"]
