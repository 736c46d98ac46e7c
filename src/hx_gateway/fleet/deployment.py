"""One model on one endpoint: what a request is finally sent to."""

from __future__ import annotations

from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.endpoint import DeploymentOptions, Endpoint, Prices
from hx_gateway.fleet.pace import Pace


class Deployment:
    """A model served by an endpoint.

    Args:
        model: The gateway's name for the model.
        upstream_model: The name the endpoint knows it by.
        endpoint: The server.
        weight: Share of traffic relative to its siblings; 0 takes none.
        max_concurrent: Most requests at once; 0 for no limit.
        mode: ``chat``, ``embedding`` or empty for anything.
        pace: Learned speeds.
    """

    __slots__ = (
        "breaker", "cool_until_s", "endpoint", "in_flight", "max_concurrent", "mode", "model", "options", "pace", "prices", "response_head",
        "size", "upstream_model", "weight",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        upstream_model: str,
        endpoint: Endpoint,
        *,
        weight: float = 1.0,
        max_concurrent: int = 0,
        mode: str = "",
        prices: Prices | None = None,
        options: DeploymentOptions | None = None,
        breaker: Breaker | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.model = model
        self.upstream_model = upstream_model
        self.endpoint = endpoint
        self.weight = weight
        self.max_concurrent = max_concurrent
        self.mode = mode
        self.prices = prices or Prices()
        self.options = options or DeploymentOptions()
        self.breaker = breaker or Breaker()
        self.in_flight = 0
        self.pace = pace or Pace()
        self.size = 0.0  # bytes of memory the model takes; 0.0 for unknown
        self.cool_until_s = 0.0  # it said it is busy: not asked before this monotonic time
        shown = model.encode("ascii", "replace").decode()
        self.response_head = f"x-hx-model: {shown}\r\n".encode()

    @property
    def full(self) -> bool:
        """Whether it, or its endpoint, is at its limit of concurrent requests."""
        endpoint = self.endpoint
        return bool(
            (self.max_concurrent and self.in_flight >= self.max_concurrent)
            or (endpoint.max_concurrent and endpoint.in_flight >= endpoint.max_concurrent)
        )

    def __repr__(self) -> str:
        return f"<Deployment {self.model} on {self.endpoint.name} in_flight={self.in_flight} {self.breaker!r}>"
