"""`hx_gateway.Breaker`, by its former name."""

from hx_gateway import Breaker as CircuitBreaker

__all__ = ["CircuitBreaker"]
