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
        name: Short name used in logs, metrics and configuration (``chat``, ``completions``, ``embeddings``, ``forward``).
        path: Path below a server's OpenAI root (``/chat/completions``); empty for ``forward``, which keeps the client's path.
    """

    name: str
    path: str


CHAT = Route("chat", "/chat/completions")
COMPLETIONS = Route("completions", "/completions")
EMBEDDINGS = Route("embeddings", "/embeddings")
FORWARD = Route("forward", "")
HOT_ROUTES = (CHAT, COMPLETIONS, EMBEDDINGS)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is calling: the key behind a request, never the key itself.

    Args:
        name: The key's name in configuration or store.
        admin: Whether admin routes and addresses of endpoints are open to it.
        models: Names of models and groups it may use; None means all.
        show_endpoints: Whether ``x-hx-endpoint`` is sent to it.
    """

    name: str
    admin: bool = False
    models: frozenset[str] | None = None
    show_endpoints: bool = True

    def may_use(self, name: str) -> bool:
        """Whether the key is allowed the model or group ``name``."""
        return self.models is None or name in self.models


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
        "cached_tokens",
        "call_s",
        "candidates",
        "client",
        "completion_tokens",
        "deployment",
        "estimated",
        "facts",
        "first_byte_s",
        "forward",
        "id",
        "identity",
        "load_s",
        "method",
        "notes",
        "outcome",
        "owner",
        "prompt_tokens",
        "received_s",
        "route",
        "status",
        "target",
        "task",
        "timeout_s",
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

        self.owner: ExchangeOwner | None = None  # who to tell when the client goes away or reads slowly
        self.deployment: Any = None  # fleet.deployment.Deployment of the last attempt
        self.attempts = 0
        self.call_s = 0.0
        self.first_byte_s = 0.0
        self.status = 0
        self.outcome: ErrorKind | None = None
        self.prompt_tokens = -1
        self.completion_tokens = -1
        self.cached_tokens = -1
        self.estimated = False  # token counts are estimates
        self.load_s = 0.0  # seconds of it that went into loading the model, where the server tells

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
