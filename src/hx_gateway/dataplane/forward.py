"""Requests the gateway does not interpret: passed to the default upstream as they are, and its answer back."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import ErrorKind, Failure
from hx_gateway.core.interfaces import Call, Headers, Outgoing
from hx_gateway.dataplane.answer import request_id
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.openai.answers import refuses_credentials

if TYPE_CHECKING:
    from hx_gateway.dataplane.proxy import Proxy

# Of an answer: hop-by-hop, or made anew on our side.
_DROPPED = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"content-length", b"date", b"server", b"x-request-id", b"set-cookie")
)  # fmt: skip


class Forward:
    """One exchange with the default upstream; its own status, body and errors are kept."""

    __slots__ = ("begun", "call", "endpoint", "exchange", "proxy")

    def __init__(self, proxy: Proxy, exchange: Exchange, endpoint: Endpoint) -> None:
        self.proxy = proxy
        self.exchange = exchange
        self.endpoint = endpoint
        self.call: Call | None = None
        self.begun = False
        exchange.owner = self

    def start(self) -> None:
        """Send the request.

        Raises:
            Failure: The upstream is drained (``no_deployment``).
        """
        exchange = self.exchange
        if self.endpoint.drained:
            raise Failure(errors.NO_DEPLOYMENT, f"{self.endpoint.name} is drained: its operator has taken it out of service")
        headers = b"%bx-request-id: %b\r\n" % (b"".join(exchange.forward), request_id(exchange))
        path = self.endpoint.address.base.encode("latin-1") + exchange.target
        self.endpoint.in_flight += 1
        self.proxy.in_flight += 1
        exchange.attempts = 1
        exchange.upstream = self.endpoint.name
        outgoing = Outgoing(path, exchange.body, True, exchange.method, headers, b"")
        self.endpoint.pool.send(outgoing, self, inf)

    def began(self, status: int, headers: Headers) -> bool:
        if status in (400, 401):
            return False  # may be about the gateway's own credentials: looked into before it is passed on
        self.begun = True
        exchange = self.exchange
        exchange.status = status
        exchange.client.begin(exchange, status, self._lines(headers))
        return True

    def answered(self, status: int, headers: Headers, body: bytes) -> None:
        if refuses_credentials(status, body):
            message = f"the default upstream, {self.endpoint.name}, refused the gateway's own credentials, or has no database for them"
            self._refuse(Failure(errors.UPSTREAM_CREDENTIALS, message))
            return
        exchange = self.exchange
        exchange.status = status
        self._finish()
        exchange.client.respond(exchange, status, self._lines(headers), body)

    def _lines(self, headers: Headers) -> bytes:
        """The upstream's header lines that concern the client."""
        dropped = set(_DROPPED)
        for name, value in headers:
            if name == b"connection":
                dropped.update(token.strip().lower() for token in value.split(b","))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] not in dropped)
        return b"%bx-request-id: %b\r\n%b" % (lines, request_id(self.exchange), self.exchange.limit_lines)

    def received(self, data: bytes) -> None:
        self.exchange.client.write(data)

    def ended(self) -> None:
        self._finish()
        self.exchange.client.end()

    def failed(self, kind: ErrorKind, message: str) -> None:
        exchange = self.exchange
        if self.begun:
            exchange.outcome = kind
            self._finish()
            exchange.client.abort()
            return
        self._refuse(Failure(kind, f"{message} (the default upstream, {self.endpoint.name})"))

    def _refuse(self, failure: Failure) -> None:
        self.endpoint.in_flight -= 1
        self.proxy.in_flight -= 1
        self.proxy.refuse(self.exchange, failure)

    def client_gone(self) -> None:
        if self.call is not None:
            self.call.cancel()
        self.exchange.outcome = errors.CLIENT_CLOSED
        self.exchange.status = errors.CLIENT_CLOSED.status
        self._finish()

    def pause(self) -> None:
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        if self.call is not None:
            self.call.resume()

    def _finish(self) -> None:
        self.endpoint.in_flight -= 1
        self.proxy.in_flight -= 1
        self.exchange.owner = None
        self.proxy.finished(self.exchange)
