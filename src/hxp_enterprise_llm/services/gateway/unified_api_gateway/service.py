"""`hx_gateway.Service`, by its former name."""

from hx_gateway import Service as UnifiedAPIGatewayService

__all__ = ["UnifiedAPIGatewayService"]
