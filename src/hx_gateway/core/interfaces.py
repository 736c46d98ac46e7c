"""Every seam of the gateway on one page: what a stage, provider, observer, client side and upstream call must be."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

if TYPE_CHECKING:
    from hx_gateway.core.context import Exchange
    from hx_gateway.core.errors import ErrorKind, Failure

Headers = list[tuple[bytes, bytes]]
"""Header names in lower case, with their values, in the order received."""


class Response:
    """A whole answer made by the gateway itself.

    Args:
        status: HTTP status.
        body: The body bytes.
        headers: Complete header lines (``name: value`` CRLF), without length, connection and date.
        outcome: The error kind it stands for; None for success.
    """

    __slots__ = ("body", "headers", "outcome", "status")

    def __init__(self, status: int, body: bytes, headers: bytes = b"", outcome: ErrorKind | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.outcome = outcome


TAKEN = Response(0, b"")
"""What a stage returns that sees to the answer itself."""


class Stage(Protocol):
    """One purpose on the way of every request, before the proxy.

    Returns None to go on, a `Response` to answer now, `TAKEN` where it has made itself the exchange's owner and the answer comes
    from there, another `Exchange` to go on with that one in its place (the stage owns the first), or an awaitable of any of these
    when it really has to wait. May raise `Failure`, which becomes the error answer.
    """

    def __call__(self, exchange: Exchange, /) -> Response | Exchange | Awaitable[Response | Exchange | None] | None: ...


class Observer(Protocol):
    """Looks at exchanges, never changes them; must not raise and must not wait."""

    def attempted(self, exchange: Exchange, failure: Failure | None, /) -> None:
        """One attempt on ``exchange.deployment`` is over; ``failure`` is None when it answered."""
        ...

    def finished(self, exchange: Exchange, /) -> None:
        """The outcome is known. Called once, before the last byte is handed to the client."""
        ...


def unheard(self: Any, exchange: Exchange, failure: Failure | None, /) -> None:
    """The `Observer.attempted` of those to whom only the end counts: it is never called."""


class ClientSide(Protocol):
    """The client's end of an exchange. Frames bytes; knows nothing of models.

    ``headers`` are complete header lines without length, connection and date, which belong to the client side.
    """

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """Send a whole answer and finish."""
        ...

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """Send the head of an answer whose length is not known."""
        ...

    def write(self, data: bytes) -> None:
        """Send a piece of the body begun."""
        ...

    def end(self, data: bytes = b"") -> None:
        """Send the last piece, if any, and finish the body begun."""
        ...

    def abort(self) -> None:
        """Break off the answer so that the client can tell it is not complete."""
        ...


class ExchangeOwner(Protocol):
    """Whoever is working on an exchange; the client side tells it about the client."""

    def client_gone(self) -> None:
        """The client closed its connection: stop work for it at once."""
        ...

    def pause(self) -> None:
        """The client reads slower than we write: stop reading upstream."""
        ...

    def resume(self) -> None:
        """The client caught up."""
        ...


class Outgoing(msgspec.Struct, eq=False, gc=False):
    """One request to a model server, in that server's dialect.

    Args:
        path: Absolute path on the endpoint, with query if any.
        body: The body; empty with GET.
        stream: Whether a streamed answer may come.
        method: HTTP method.
        headers: Further complete header lines, e.g. from the client, cleaned.
        content_type: Of the body; empty to leave the header to ``headers``.
        dropped: Names of the client's fields that the dialect cannot express; reported in ``x-hx-params-dropped``.
    """

    path: bytes
    body: bytes
    stream: bool = False
    method: bytes = b"POST"
    headers: bytes = b""
    content_type: bytes = b"application/json"
    dropped: Sequence[str] = ()


class Call(Protocol):
    """A request under way at a model server."""

    def cancel(self) -> None:
        """Stop it at once: the connection is closed, nothing more is told to the handler."""
        ...

    def pause(self) -> None:
        """Stop reading the answer."""
        ...

    def resume(self) -> None:
        """Go on reading the answer."""
        ...


class CallHandler(Protocol):
    """Receives what comes of a call: either `answered`, or `began` + `received`* + `ended`; or `failed` at any point.

    ``call`` is set by the upstream side, and changes when a connection was made.
    """

    call: Call | None

    def answered(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer."""
        ...

    def began(self, status: int, headers: Headers) -> bool:
        """The head of an answer to a call with ``stream``; True to get the body piece by piece, False to get it whole."""
        ...

    def received(self, data: bytes) -> None:
        """Body bytes, without their framing."""
        ...

    def ended(self) -> None:
        """The body came to its proper end."""
        ...

    def failed(self, kind: ErrorKind, message: str) -> None:
        """The call failed; nothing more will come."""
        ...


class StreamReader(Protocol):
    """Turns a model server's stream into OpenAI's server-sent events, whole events at a time.

    ``failure`` is set when the stream itself reports an error; what `feed` returned before stays valid.
    """

    failure: Failure | None

    def feed(self, data: bytes) -> bytes:
        """Bytes as they came from the server; returns whole events to pass on (maybe none yet)."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the stream said itself that it has ended; a connection that breaks after that breaks nothing."""
        ...

    def partial(self) -> None:
        """The answer is cut off here: fill the token counts of what was passed on, as far as they can be told."""
        ...

    def finish(self) -> bytes:
        """The server ended its stream in order; returns what is still due, ``[DONE]`` included, or sets ``failure``."""
        ...


class Provider(Protocol):
    """A dialect that model servers speak. One instance per name, without state of its own.

    ``deployment`` is a `fleet.deployment.Deployment`, typed loosely to keep this floor free of upper ones.
    """

    name: str

    def prepare(self, exchange: Exchange, deployment: Any) -> Outgoing | list[Outgoing]:
        """The request in the server's dialect; a list when it takes several calls, whose bodies go to `join`.

        Raises:
            Failure: The request asks for what this dialect cannot do.
        """
        ...

    def whole(self, exchange: Exchange, deployment: Any, body: bytes) -> bytes:
        """A whole successful answer as an OpenAI body; fills the token counts of ``exchange``.

        Raises:
            Failure: The answer is not valid (never a 2xx without a valid body).
        """
        ...

    def join(self, exchange: Exchange, deployment: Any, bodies: Sequence[bytes]) -> bytes:
        """The answers to a list of requests, in their order, as one OpenAI body."""
        ...

    def reader(self, exchange: Exchange, deployment: Any) -> StreamReader:
        """A reader for one streamed answer."""
        ...

    def failure(self, exchange: Exchange, deployment: Any, status: int, headers: Headers, body: bytes) -> Failure:
        """What a non-2xx answer means: whose fault it is and what the client shall see."""
        ...
