"""What is known of an exchange under way, and the ways it ends: its lease goes back and its client hears of it, once."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Call, StreamReader
from hx_gateway.dataplane import verdict
from hx_gateway.dataplane.answer import EVENTS, request_id, success_lines
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.openai.sse import error_event

if TYPE_CHECKING:
    from hx_gateway.access.account import Hold
    from hx_gateway.dataplane.proxy import Proxy
    from hx_gateway.routing.ask import Ask


class Passage:
    """One exchange's way through the proxy: its state, what its client is sent, and its ends.

    `run.Run` adds the steps: attempts and what comes of their calls. Two counts are kept here and exact on every way out:
    the lease (``in_flight`` of deployment and endpoint, taken when an attempt begins) goes back in `_release`, which every
    end of an attempt goes through; the place in the proxy goes back in `_end`, which every end of an exchange goes through.
    """

    __slots__ = (
        "ahead_s", "alone", "ask", "beat_s", "begun", "call", "called", "ceiling", "deployment", "done", "dropped", "exchange", "fell_from", "give_up_s",
        "id_line", "leased", "loading", "opened", "provider", "proxy", "queued_at_s", "reader", "reason", "total_at_s", "trials",
        "tried", "turned_away",
    )  # fmt: skip

    def __init__(self, proxy: Proxy, exchange: Exchange) -> None:
        self.proxy = proxy
        self.exchange = exchange
        self.call: Call | None = None
        self.deployment: Deployment | None = None
        self.reader: StreamReader | None = None
        self.begun = False  # an event of the answer was passed on
        self.opened = False  # the head was sent
        self.loading = False
        self.dropped: Sequence[str] = ()
        self.done = False
        self.tried: Sequence[Deployment] = ()
        self.ask: Ask | None = None
        self.ahead_s = 0.0
        self.alone = False
        self.trials = verdict.NO_TRIALS
        self.leased = False
        self.ceiling: Hold | None = None  # what the attempt holds of its deployment's limits
        self.called = False  # its turn in the queue came
        self.queued_at_s = 0.0
        self.give_up_s = inf
        self.turned_away = False
        self.fell_from: tuple[str, ...] = ()
        self.reason = ""
        self.beat_s = 0.0
        limit_s = proxy.total_s
        if exchange.timeout_s and not 0.0 < limit_s < exchange.timeout_s:
            limit_s = exchange.timeout_s  # the client's own, where it is the shorter one
        self.total_at_s = exchange.received_s + limit_s if limit_s else inf
        self.id_line = b"x-request-id: %b\r\n" % request_id(exchange)  # both ways

    # What the client is sent

    def _head(self, kind: bytes) -> bytes:
        return success_lines(self.exchange, self.deployment, kind, self.id_line, self)

    def _open(self) -> None:
        self.exchange.client.begin(self.exchange, 200, self._head(EVENTS))
        self.opened = True

    def _begin(self) -> None:
        self.begun = True
        proxy = self.proxy
        proxy.waiting.discard(self)
        if self.ahead_s and self.deployment is not None:  # its prompt has been read
            proxy.router.read(self.deployment.endpoint, self.ahead_s)
            self.ahead_s = 0.0
        if not self.opened:
            self._open()

    def _answer(self, body: bytes, kind: bytes) -> None:
        self._succeeded(200)
        exchange = self.exchange
        if self.opened:
            exchange.client.end(body)
        else:
            exchange.client.respond(exchange, 200, self._head(kind), body)

    def _answer_failure(self, failure: Failure) -> None:
        exchange = self.exchange
        if self.opened:  # by a sign of life: the status is gone, the failure is an event
            exchange.outcome = failure.kind
            exchange.status = 200
            self._finish()
            exchange.client.end(error_event(failure))
        else:
            self._end()
            self.proxy.refuse(exchange, failure)

    # Ends

    def _succeeded(self, status: int) -> None:
        deployment = self._release()
        exchange = self.exchange
        now_s = exchange.ended_s = monotonic()
        ask = self.ask
        if ask is not None and ask.blocks and exchange.cached_tokens >= 0:
            self.proxy.router.verified(ask, exchange.prompt_tokens, exchange.cached_tokens)
        verdict.answered(deployment, exchange, exchange.first_byte_s if self.begun else now_s, self.alone, ask, now_s)
        self.proxy.attempted(exchange, None)
        exchange.status = status
        self._finish()

    def _blame(self, deployment: Deployment, failure: Failure, asked: bool = True) -> None:
        """Lay the blame for an attempt; a server that was not even asked has neither failed nor answered."""
        exchange = self.exchange
        now_s = monotonic()
        if asked:
            look_s = verdict.failed(deployment, failure, self.trials, now_s)
            if look_s < inf:
                self.proxy.alarm(deployment.endpoint, look_s)
        else:
            verdict.abandoned(deployment, self.trials)
        if exchange.trail is None:
            exchange.trail = []
        exchange.trail.append((deployment.endpoint.name, failure.kind.code, round((now_s - exchange.call_s) * 1000, 3)))
        self.proxy.attempted(exchange, failure)

    def _release(self, worked: bool = True) -> Deployment:
        """The attempt is over; ``worked`` tells whether the server did anything for it."""
        deployment = self.deployment
        assert deployment is not None
        if self.ceiling is not None:
            hold, self.ceiling, exchange = self.ceiling, None, self.exchange
            prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
            self.proxy.ceilings.settle(deployment, hold, *((prompt, completion) if worked else (0, -1)), monotonic() - exchange.call_s)
        endpoint = deployment.endpoint
        deployment.in_flight -= 1
        endpoint.in_flight -= 1
        self.leased = False
        if self.proxy.hotel.size:
            self.proxy.hotel.vacancy()
        if self.ahead_s:
            self.proxy.router.read(endpoint, self.ahead_s)
            self.ahead_s = 0.0
        return deployment

    def _finish(self) -> None:
        self._end()
        self.proxy.finished(self.exchange)

    def _end(self) -> None:
        self.done = True
        proxy = self.proxy
        if proxy.waiting:
            proxy.waiting.discard(self)
        proxy.in_flight -= 1
        self.exchange.owner = None
