"""One model on one endpoint: what a request is finally sent to."""

from __future__ import annotations

from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.endpoint import DeploymentOptions, Endpoint, Prices


class Deployment:
    """A model served by an endpoint.

    Args:
        model: The gateway's name for the model.
        upstream_model: The name the endpoint knows it by.
        endpoint: The server.
        weight: Share of traffic relative to its siblings; 0 takes none.
        max_concurrent: Most requests at once; 0 for no limit.
        mode: ``chat``, ``embedding`` or empty for anything.
    """

    __slots__ = (
        "breaker", "endpoint", "first_byte_s", "in_flight", "max_concurrent", "mode", "model", "options", "prices", "response_head", "upstream_model", "weight",
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
        self.first_byte_s = 0.0  # moving average of the wait for the first byte
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
