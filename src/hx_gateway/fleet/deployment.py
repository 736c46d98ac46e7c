"""One model on one endpoint: what a request is finally sent to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hx_gateway.core.context import KeyLimits
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
        limits: Most requests and tokens a minute (`routing.ceilings`); None for no limit.
        tags: What requests may ask for by, where tags are filtered.
        mode: ``chat``, ``embedding`` or empty for anything.
        pace: Learned speeds.

    What probes and answers tell of the model there is carried here by `health.teach`, so that nobody has to look it up
    for a request: its size, what it cannot do, how much context it has, how much of it is not on the accelerator.
    """

    __slots__ = (
        "account", "breaker", "context_length", "cool_until_s", "dimensions", "endpoint", "expected_dimensions", "identity", "in_flight",
        "limited_until_s", "limits", "load_prior_s", "loaded_context", "max_concurrent", "mode", "model", "options", "pace", "place", "prices", "response_head",
        "size", "spilled", "tags", "unable", "upstream_model", "weight",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        upstream_model: str,
        endpoint: Endpoint,
        *,
        weight: float = 1.0,
        max_concurrent: int = 0,
        limits: KeyLimits | None = None,
        tags: frozenset[str] = frozenset(),
        mode: str = "",
        prices: Prices | None = None,
        options: DeploymentOptions | None = None,
        breaker: Breaker | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.model = model
        self.upstream_model = upstream_model
        self.endpoint = endpoint
        self.place = f"{endpoint.name}/{upstream_model}"  # whose prompts are cached together
        self.weight = weight
        self.max_concurrent = max_concurrent
        self.limits = limits
        self.account: Any = None  # access.account.Account of its limits, owned by routing.ceilings
        self.tags = tags
        self.mode = mode
        self.prices = prices or Prices()
        self.options = options or DeploymentOptions()
        self.breaker = breaker or Breaker()
        self.in_flight = 0
        self.pace = pace or Pace()
        self.size = 0.0  # bytes of memory the model takes; 0.0 for unknown
        self.context_length = 0  # most tokens of prompt and answer together; 0 for unknown
        self.loaded_context = 0  # tokens of context it is loaded with, as an Ollama server tells; 0 when not loaded or not told
        self.dimensions = 0  # length of the embeddings it was seen to give; 0 before the first
        self.expected_dimensions = 0  # length of its siblings' embeddings, which its first answer has to match; 0 for any
        self.identity = ""  # digest of its model, or what else tells it from another of the same name
        self.unable: frozenset[str] = frozenset()  # of `fleet.facts.CAPABILITIES`, those it is known to lack
        self.spilled = -1.0  # share of it outside the accelerator's memory when it was last loaded; -1.0 for unknown
        self.load_prior_s = self.pace.load_s  # what was assumed of its load time, until one was seen
        self.cool_until_s = 0.0  # it said it is busy, or has had all it may: not asked before this monotonic time
        self.limited_until_s = 0.0  # it has had all that its limits allow, until then
        shown = model.encode("ascii", "replace").decode()
        self.response_head = f"x-hx-model: {shown}\r\n".encode()

    def adopt(self, other: Deployment) -> None:
        """Take over the settings of ``other``, made from a newer configuration; the live state stays."""
        self.weight = other.weight
        self.max_concurrent = other.max_concurrent
        if self.limits != other.limits:
            self.limits = other.limits
            if self.cool_until_s <= self.limited_until_s:
                self.cool_until_s = 0.0
        self.tags = other.tags
        self.mode = other.mode
        self.prices = other.prices
        self.options = other.options
        self.breaker.threshold = other.breaker.threshold
        self.breaker.timeout_s = other.breaker.timeout_s

    def akin(self, other: Deployment) -> bool:
        """Whether another one may be taken to be as fast, where nothing is known: it has the same model, all of it on an accelerator."""
        # Outside the accelerator's memory other speeds hold, which the probes foretell.
        return other is not self and other.model == self.model and other.spilled <= 0.0 and self.spilled <= 0.0

    def inform(self, siblings: Iterable[Deployment]) -> None:
        """Tell deployments of the same model, of which nothing was seen yet, what was seen here."""
        for sibling in siblings:
            if self.akin(sibling):
                sibling.pace.guess(self.pace)

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
