"""`hx_gateway.LoadBalancer`, by its former path."""

from hx_gateway import LoadBalancer

__all__ = ["LoadBalancer"]
