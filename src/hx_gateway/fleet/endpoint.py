"""One model server: its address, dialect, credentials, and the live state that routing and breaker read."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hx_gateway.core.context import HOT_ROUTES
from hx_gateway.fleet.breaker import Breaker
from hx_gateway.fleet.facts import EndpointFacts
from hx_gateway.fleet.residency import Residency

if TYPE_CHECKING:
    from hx_gateway.fleet.ghosts import Ghost


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model server listens.

    Args:
        scheme: ``http`` or ``https``.
        host: Name or IP address, without brackets.
        port: TCP port.
        base: Path in front of every route, without a final slash and without ``/v1`` or ``/api``.
    """

    scheme: str
    host: str
    port: int
    base: str = ""

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL such as ``http://llm-01:11434/v1``; a final ``/v1`` or ``/api`` is dropped, and of ``/api/v1`` only the ``/v1``.

        Raises:
            ValueError: It is no http(s) URL with a host.
        """
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http:// or https:// URL with a host")
        path = parts.path.rstrip("/")
        base = path.removesuffix("/v1") if path.endswith("/v1") else path.removesuffix("/api")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80), base)

    @property
    def authority(self) -> str:
        """``host:port`` as the Host header carries it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.base}"


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each phase of a call may last, in seconds; 0 means no limit.

    ``first_byte_s`` and ``between_bytes_s`` bound waiting, never the length of a stream; ``load_s`` replaces
    ``first_byte_s`` where the model is known to be not in memory.
    """

    connect_s: float = 3.0
    first_byte_s: float = 30.0
    between_bytes_s: float = 30.0
    load_s: float = 120.0
    total_s: float = 0.0


class Endpoint:
    """One model server.

    Args:
        name: Its name in configuration, status and headers.
        address: Where it listens.
        provider: The dialect it speaks (`core.interfaces.Provider`); None until detected.
        api_key: Bearer key for it; empty for none.
        deadlines: Phase limits of calls to it.
        headers: Further header lines sent with each call.
        max_concurrent: Most calls at once; 0 for no limit.
        tls: ``ssl.SSLContext`` for https, else None.
        breaker: Its circuit breaker.
        slots: Requests it works on at the same time, as configured; 0 to take what the server tells.
        memory_bytes: Memory its models may take together; 0 for unknown.
        max_loaded_models: Most models it holds at once; 0 for unknown.
        disk_rate: Bytes per second at which it reads a model from its disk.
    """

    __slots__ = (
        "address", "api_key", "breaker", "cache_trust", "configured_slots", "cool_until_s", "deadlines", "disk_rate", "facts", "ghosts", "head",
        "in_flight", "max_concurrent", "name", "paths", "pending_s", "pool", "provider", "residency", "response_head", "slots", "tls",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        address: Address,
        provider: Any = None,
        *,
        api_key: str = "",
        deadlines: Deadlines | None = None,
        headers: dict[str, str] | None = None,
        max_concurrent: int = 0,
        tls: Any = None,
        breaker: Breaker | None = None,
        slots: int = 0,
        memory_bytes: float = 0.0,
        max_loaded_models: int = 0,
        disk_rate: float = 1e9,
    ) -> None:
        self.name = name
        self.address = address
        self.provider = provider
        self.api_key = api_key
        self.deadlines = deadlines or Deadlines()
        self.max_concurrent = max_concurrent
        self.tls = tls
        self.breaker = breaker or Breaker()
        self.facts = EndpointFacts()
        self.in_flight = 0
        self.ghosts: list[Ghost] = []  # in flight, too
        self.pending_s = 0.0  # seconds of reading prompts that were sent and not yet answered by a first byte
        self.configured_slots = slots
        self.slots = slots  # as configured, else as the server tells; 0 for unknown
        self.disk_rate = disk_rate
        self.residency = Residency(memory_bytes, max_loaded_models)
        self.cool_until_s = 0.0  # it said it is busy: not asked before this monotonic time; inf while drained
        self.cache_trust = 1.0  # share of what the prefix index believes that turns out to be cached
        self.pool: Any = None  # upstream.pool.Pool, owned by the upstream side
        base = address.base.encode("latin-1") + b"/v1"
        self.paths = {route: base + route.path.encode() for route in HOT_ROUTES}  # of OpenAI's dialect
        self.response_head = b"x-hx-endpoint: %b\r\n" % name.encode("ascii", "replace")
        lines = [f"host: {address.authority}"]
        if api_key:
            lines.append(f"authorization: Bearer {api_key}")
        lines += [f"{key.lower()}: {value}" for key, value in (headers or {}).items()]
        self.head = "".join(f"{line}\r\n" for line in lines).encode("latin-1")

    @property
    def drained(self) -> bool:
        """Whether it was taken out of service: it gets nothing new, whatever its health."""
        return self.cool_until_s == inf

    def adopt(self, other: Endpoint) -> None:
        """Take over the settings of ``other``, made from a newer configuration; the live state stays."""
        self.deadlines = other.deadlines
        self.head = other.head
        self.tls = other.tls
        self.max_concurrent = other.max_concurrent
        self.provider = other.provider or self.provider
        self.configured_slots = other.configured_slots
        self.slots = other.configured_slots or self.facts.slots
        self.disk_rate = other.disk_rate
        self.residency.memory = other.residency.memory
        self.residency.most = other.residency.most
        self.breaker.threshold = other.breaker.threshold
        self.breaker.timeout_s = other.breaker.timeout_s

    def __repr__(self) -> str:
        return f"<Endpoint {self.name} {self.address} in_flight={self.in_flight} {self.breaker!r}>"


@dataclass(frozen=True, slots=True)
class Prices:
    """What a deployment costs, in the operator's currency."""

    per_request: float = 0.0
    per_prompt_token: float = 0.0
    per_completion_token: float = 0.0
    per_cached_token: float | None = None  # of a prompt token that the engine had cached; None for that of any other
    per_engine_second: float = 0.0
    free: bool = field(init=False, default=True)  # nothing has a price

    def __post_init__(self) -> None:
        prices = (self.per_request, self.per_prompt_token, self.per_completion_token, self.per_cached_token, self.per_engine_second)
        object.__setattr__(self, "free", not any(prices))


@dataclass(slots=True)
class DeploymentOptions:
    """Engine settings of one deployment that the client does not send."""

    num_ctx: int | None = None
    keep_alive: str | int | None = None
    dimensions: int | None = None  # expected length of an embedding; checked on every answer
    truncate_dimensions: bool = False  # cut and renormalise is allowed for this model
    embedding_field: str = "input"  # "prompt" for a server that wants that
    digest: str = ""  # what the digest of its model has to begin with; empty for any
    defaults: dict[str, Any] = field(default_factory=dict)  # fields of chats and completions that the client did not send
    extra: dict[str, Any] = field(default_factory=dict)
