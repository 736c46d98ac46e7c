"""`hx_gateway.Monitor` and `hx_gateway.summarize`, by their former path."""

from hx_gateway import Monitor as HealthMonitor
from hx_gateway import Summary as HealthSummary
from hx_gateway import summarize

__all__ = ["HealthMonitor", "HealthSummary", "summarize"]
