"""The one object that travels the straight way: everything known about a request and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from hx_gateway.core.errors import ErrorKind
    from hx_gateway.core.interfaces import ClientSide, ExchangeOwner


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One kind of inference request.

    Args:
        name: Short name used in logs, metrics and configuration (``chat``, ``completions``, ``embeddings``, ``forward``, ``rag``).
        path: Path below a server's OpenAI root (``/chat/completions``); empty for ``forward``, which keeps the client's path, and ``rag``.
    """

    name: str
    path: str


CHAT = Route("chat", "/chat/completions")
COMPLETIONS = Route("completions", "/completions")
EMBEDDINGS = Route("embeddings", "/embeddings")
FORWARD = Route("forward", "")
RAG = Route("rag", "")
HOT_ROUTES = (CHAT, COMPLETIONS, EMBEDDINGS)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much one key may use; 0 is no limit.

    Args:
        requests_per_second: Steady rate of requests.
        burst: Most requests at once after a pause; 0 is one second's worth.
        tokens_per_minute: Steady rate of tokens of prompts and answers; as many may be used at once after a pause.
        max_concurrent: Most requests under way.
        day_cost: Money per day (UTC), in the operator's currency.
        month_cost: The same per calendar month (UTC).
        day_tokens: Tokens per day.
        month_tokens: Tokens per month.
    """

    requests_per_second: float = 0.0
    burst: int = 0
    tokens_per_minute: int = 0
    max_concurrent: int = 0
    day_cost: float = 0.0
    month_cost: float = 0.0
    day_tokens: int = 0
    month_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling: the key behind a request, never the key itself.

    Args:
        name: The key's name in configuration or store.
        admin: Whether admin routes and addresses of endpoints are open to it.
        models: Names of models and groups it may use; None means all.
        show_endpoints: Whether ``x-hx-endpoint`` is sent to it.
        limits: How much it may use; None for no limit.
        id: Its id in the store; empty for keys of the configuration.
        team: Who it is counted for.
        tags: Free labels, for reports.
        owner: Whose it is, for people.
        namespaces: Namespaces of documents it may read and write, and with ``:r`` behind the name those it may only read; None means all.
        expires_s: Unix time from which it is no longer let in; 0.0 for never.
    """

    name: str
    admin: bool = False
    models: frozenset[str] | None = None
    show_endpoints: bool = True
    limits: KeyLimits | None = None
    id: str = ""
    team: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    namespaces: frozenset[str] | None = None
    expires_s: float = 0.0

    def may_use(self, name: str) -> bool:
        """Whether the key is allowed the model or group ``name``."""
        return self.models is None or name in self.models

    def may_read(self, namespace: str) -> bool:
        """Whether the key may search documents of ``namespace``."""
        return self.may_write(namespace) or (self.namespaces is not None and f"{namespace}:r" in self.namespaces)

    def may_write(self, namespace: str) -> bool:
        """Whether the key may add and delete documents of ``namespace``."""
        return self.admin or self.namespaces is None or namespace in self.namespaces


class Exchange:
    """One request and its answer, from the parsed head to the last byte.

    The door fills the first block, the stages the second, the proxy the third. Times are seconds of the monotonic
    clock; 0.0 means "not yet". Token counts are -1 until known.

    ``notes`` holds the headers the gateway itself reads (lower-case names); ``forward`` the header lines that go
    upstream, already cleaned, as pieces to join.
    """

    __slots__ = (
        "asked",
        "attempts",
        "body",
        "cached",
        "cached_tokens",
        "call_s",
        "candidates",
        "choice",
        "client",
        "completion_tokens",
        "deployment",
        "ended_s",
        "engine_s",
        "estimated",
        "facts",
        "first_byte_s",
        "forward",
        "hold",
        "id",
        "identity",
        "limit_lines",
        "load_s",
        "method",
        "notes",
        "outcome",
        "owner",
        "prompt_tokens",
        "queued_s",
        "received_s",
        "route",
        "status",
        "target",
        "task",
        "timeout_s",
        "trace",
        "trail",
        "upstream",
    )

    def __init__(
        self,
        id: str,
        route: Route,
        method: bytes,
        target: bytes,
        notes: dict[bytes, bytes],
        forward: list[bytes],
        body: bytes,
        client: ClientSide,
        received_s: float,
    ) -> None:
        self.id = id
        self.route = route
        self.method = method
        self.target = target
        self.notes = notes
        self.forward = forward
        self.body = body
        self.client = client
        self.received_s = received_s

        self.identity: Identity | None = None
        self.facts: Any = None  # openai.requests.Facts once the body was looked into
        self.asked = ""  # the model or group name the client used
        self.candidates: Any = None  # fleet.registry.Target
        self.timeout_s = 0.0  # the client's own total deadline, 0.0 = none
        self.task: asyncio.Task[None] | None = None

        self.hold: Any = None  # access.limiter.Hold: what is taken of limits until the end
        self.limit_lines = b""  # header lines that tell a limited key what it has left

        self.owner: ExchangeOwner | None = None  # who to tell when the client goes away or reads slowly
        self.deployment: Any = None  # fleet.deployment.Deployment of the last attempt
        self.attempts = 0
        self.call_s = 0.0
        self.first_byte_s = 0.0
        self.ended_s = 0.0  # when its outcome was known
        self.status = 0
        self.outcome: ErrorKind | None = None
        self.prompt_tokens = -1
        self.completion_tokens = -1
        self.cached_tokens = -1
        self.estimated = False  # token counts are estimates
        self.load_s = 0.0  # seconds of it that went into loading the model, where the server tells
        self.engine_s = 0.0  # seconds the engine worked on it, where the server tells
        self.queued_s = 0.0  # seconds it waited for a place
        self.cached = ""  # "hit" from the response cache, "shared" with an identical request under way
        self.trail: list[tuple[str, str, float]] | None = None  # failed attempts: endpoint, error code, milliseconds
        self.upstream = ""  # the endpoint it was forwarded to unread
        self.choice: Any = None  # routing.learned.choice.Choice, in groups that learn
        self.trace: Any = None  # telemetry.tracing.Trace of one that is traced

    def __repr__(self) -> str:
        return f"<Exchange {self.id} {self.route.name} {self.asked!r} status={self.status} attempts={self.attempts}>"


class Nobody:
    """The client side of an exchange that nobody waits for; what is sent to it is lost."""

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """Lost."""

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Lost."""

    def write(self, data: bytes) -> None:
        """Lost."""

    def end(self, data: bytes = b"") -> None:
        """Lost."""

    def abort(self) -> None:
        """Lost."""


NOBODY = Nobody()
