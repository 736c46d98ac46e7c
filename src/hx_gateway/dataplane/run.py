"""The steps of one exchange: attempts, the wait for a place, and what comes of each call to a model server."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.errors import ErrorKind, Failure
from hx_gateway.core.interfaces import Headers, Provider
from hx_gateway.dataplane import verdict, waits
from hx_gateway.dataplane.answer import EVENTS, JSON, is_stream
from hx_gateway.dataplane.fanout import Fanout
from hx_gateway.dataplane.metering import estimate as needed
from hx_gateway.dataplane.passage import Passage
from hx_gateway.dataplane.suiting import roomier, served
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.openai.answers import as_stream
from hx_gateway.openai.sse import error_event
from hx_gateway.openai.usage import estimate

if TYPE_CHECKING:
    from hx_gateway.access.account import Account
    from hx_gateway.fleet.registry import Target

_log = logging.getLogger(__name__)


class Run(Passage):
    """One exchange on its way: owns it and handles its calls."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Run {self.exchange!r} on {self.deployment!r} tried={len(self.tried)}>"

    # An attempt

    def attempt(self, last: Failure | None = None) -> None:
        """Send the request to the next deployment; ``last`` is what the previous one failed with."""
        try:
            exchange = self.exchange
            now_s = monotonic()
            proxy = self.proxy
            ask = self.ask
            if ask is None:
                ask = self.ask = proxy.ask(exchange, self.tried)
            router = proxy.router
            # Who comes while others wait for the same name waits behind them.
            target = ask.target
            behind = proxy.hotel.size and not self.called and proxy.hotel.waiting(target.name)
            decision = proxy.weighing(target) if proxy.explained else None  # while there is time for it: for some of many requests
            deployment = None if behind else router.choose(ask, now_s, decision)
            if deployment is not None and deployment.limits is not None:
                first = deployment
                deployment, self.ceiling = proxy.ceilings.within(router, ask, first, now_s, self._needed)
                if deployment is not first:
                    decision = None  # it was about another
            if deployment is None:
                self._nowhere(last, now_s)
                return
            endpoint = deployment.endpoint
            self.alone = endpoint.in_flight == 0
            self.trials = verdict.lease(deployment)
            self.leased = True
            self.deployment = exchange.deployment = deployment
            if ask.prompt_tokens:
                self.reason = router.reason(ask, deployment, now_s)
                if ask.choice is not None:
                    self.reason = f"{ask.choice.words()}; {self.reason}" if self.reason else ask.choice.words()
                self.ahead_s = router.sent(ask, deployment, now_s)
            elif endpoint.residency.managed:
                endpoint.residency.sent(deployment, now_s)
            proxy.decisions.append((exchange.id, target.name, target.policy, deployment, exchange.attempts, self.reason, decision))
            exchange.attempts += 1
            exchange.call_s = now_s
            self.provider: Provider = endpoint.provider or proxy.guess(endpoint)
            try:
                outgoing = self.provider.prepare(exchange, deployment)
            except Failure as failure:
                self._failed(failure, asked=False)
                return
            loaded = endpoint.facts.loaded
            self.loading = loaded is not None and deployment.upstream_model not in loaded
            first_byte_s = endpoint.deadlines.load_s if self.loading else 0.0
            if isinstance(outgoing, list):
                for part in outgoing:
                    part.headers += self.id_line
                self.dropped = outgoing[0].dropped
                Fanout(endpoint.pool, outgoing, self, self.total_at_s, first_byte_s).start()
                return
            outgoing.headers += self.id_line
            self.dropped = outgoing.dropped
            if outgoing.stream and not self.opened:
                proxy.wait(self, now_s)
            endpoint.pool.send(outgoing, self, self.total_at_s, first_byte_s)
        except Exception as error:  # blame: the gateway's own, or a plug-in's; a lease must not leak with it
            self._fault(error)

    def _needed(self, account: Account) -> int:
        """Tokens that the request may need, of a deployment's limits."""
        return needed(self.exchange, account)[0]

    def _fault(self, error: Exception) -> None:
        """What nobody foresaw happened to an attempt: what it holds goes back, and the client gets an answer."""
        exchange = self.exchange
        _log.error("internal error in request %s", exchange.id, exc_info=error)
        if self.done:
            return  # its client has its answer, or is gone
        if self.call is not None:
            self.call.cancel()
        failure = Failure(errors.INTERNAL, f"an internal error occurred; it is logged under request id {exchange.id}")
        if self.leased:
            self._failed(failure, asked=False)
        else:
            self._answer_failure(failure)

    def beat(self, now_s: float) -> None:
        """Tell a client that waits for a stream that it is not forgotten; from here on the status is 200."""
        self.beat_s = now_s
        if not self.opened:
            self._open()
        self.exchange.client.write(waits.comment(self, now_s))

    # Where no deployment can take it

    def _nowhere(self, last: Failure | None, now_s: float) -> None:
        """Nothing of the name can take the request: let another stand in, or wait for a place, or say so."""
        exchange = self.exchange
        standing = waits.standing_in(self, exchange.candidates.down, now_s)
        if standing is not None:
            self.fall(standing, last)
        elif not waits.queue(self, last, now_s):
            self._answer_failure(waits.exhausted(self, last, now_s))

    def fall(self, target: Target, last: Failure | None) -> None:
        """Go on with a name that stands in for the one that was asked."""
        self.fell_from = (*self.fell_from, self.exchange.candidates.name)
        self.exchange.candidates = target
        self.tried = ()
        self.ask = None
        self.attempt(last)

    def ready(self) -> bool:
        try:
            waits.renew(self)
            ask = self.ask = self.ask or self.proxy.ask(self.exchange, self.tried)
            return self.proxy.router.choose(ask, monotonic(), picking=False) is not None
        except Exception:  # blame: a plug-in's; nobody waits behind it: the attempt will tell the client
            return True

    def admit(self) -> None:
        self.called = True
        self._waited()
        self.attempt()

    def give_up(self) -> None:
        failure = waits.waited_long(self, monotonic())
        self._waited()
        self._answer_failure(failure)

    def _waited(self) -> None:
        self.exchange.queued_s += monotonic() - self.queued_at_s
        self.queued_at_s = 0.0

    # What comes of a call

    def answered(self, status: int, headers: Headers, body: bytes) -> None:
        if self.done:
            return
        deployment = self.deployment
        assert deployment is not None
        exchange = self.exchange
        if not exchange.first_byte_s:
            exchange.first_byte_s = monotonic()
        provider = self.provider
        try:
            if not 200 <= status < 300:
                failure = provider.failure(exchange, deployment, status, headers, body)
                failure.message = failure.message.replace("\n", " ")
                self._failed(failure)
                return
            body = provider.whole(exchange, deployment, body)
            if exchange.facts.stream:  # the server does not stream, though asked
                body = as_stream(body, exchange.facts.include_usage)
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._failed(verdict.unreadable(error, deployment, exchange))
            return
        self._answer(body, EVENTS if exchange.facts.stream else JSON)

    def joined(self, bodies: list[bytes]) -> None:
        """All parts of a request of several calls were answered."""
        deployment = self.deployment
        assert deployment is not None
        exchange = self.exchange
        exchange.first_byte_s = monotonic()
        try:
            body = self.provider.join(exchange, deployment, bodies)
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._failed(verdict.unreadable(error, deployment, exchange))
            return
        self._answer(body, JSON)

    def began(self, status: int, headers: Headers) -> bool:
        self.exchange.first_byte_s = monotonic()
        if status != 200 or not is_stream(headers):
            return False
        deployment = self.deployment
        assert deployment is not None
        try:
            self.reader = self.provider.reader(self.exchange, deployment)
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._unread(error)
        return True

    def received(self, data: bytes) -> None:
        reader = self.reader
        if reader is None or self.done:
            return
        try:
            data = reader.feed(data)
            complete = reader.complete and reader.failure is None
            if complete:
                data += reader.finish()
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._unread(error)
            return
        if complete and reader.failure is None:  # all is said; to a client the words that say so are the end
            self._all_said(data)
            return
        if data:
            if not self.begun:
                self._begin()
            self.exchange.client.write(data)
        if reader.failure is not None:
            self._broke(reader.failure)

    def ended(self) -> None:
        reader = self.reader
        if reader is None or self.done:
            return
        try:
            data = reader.finish()
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._unread(error)
            return
        if reader.failure is not None:
            if data and self.begun:
                self.exchange.client.write(data)
            self._broke(reader.failure)
            return
        self._all_said(data)

    def _all_said(self, data: bytes) -> None:
        if not self.begun:
            self._begin()
        self._succeeded(200)
        self.exchange.client.end(data)

    def failed(self, kind: ErrorKind, message: str) -> None:
        if self.done:
            return
        reader = self.reader
        try:
            complete = reader is not None and reader.complete
        except Exception as error:  # blame: an answer our reading did not foresee is the server's
            self._unread(error)
            return
        if complete:
            self.ended()  # it had said all it had to say
            return
        deployment = self.deployment
        assert deployment is not None
        if self.loading and kind is errors.FIRST_BYTE_TIMEOUT:
            kind, message = errors.LOAD_TIMEOUT, "the model was not loaded in time (performance.load_timeout_seconds)"
        self._broke(Failure(kind, f"{message} ({deployment.endpoint.name})"))

    # What comes of a failure

    def _broke(self, failure: Failure) -> None:
        """The call failed, or its stream reported an error."""
        if self.call is not None:
            self.call.cancel()
        failure = verdict.timed(failure, self.begun)
        if not self.begun:
            self._failed(failure)
            return
        self._blame(self._release(), failure)
        self._cut_off()
        exchange = self.exchange
        exchange.outcome = failure.kind
        exchange.status = 200
        self._finish()
        exchange.client.end(error_event(failure))

    def _unread(self, error: Exception) -> None:
        """The reader of a stream tripped over it."""
        deployment = self.deployment
        assert deployment is not None
        self._broke(verdict.unreadable(error, deployment, self.exchange))

    def _failed(self, failure: Failure, asked: bool = True) -> None:
        """The attempt failed before anything was passed on: go elsewhere, or answer with the failure."""
        deployment = self._release(False)
        self._blame(deployment, failure, asked)
        exchange = self.exchange
        now_s = monotonic()
        again = exchange.attempts < self.proxy.max_attempts + len(self.fell_from) and now_s < self.total_at_s
        if failure.kind is errors.CONTEXT_LENGTH:
            larger = roomier(exchange, deployment, self.tried) if again else None
            if larger is not None and served(exchange, larger, self.proxy, now_s):
                self._anew(deployment)
                exchange.candidates = larger
                self.attempt(failure)
                return
            standing = waits.standing_in(self, exchange.candidates.context, now_s)
            if standing is not None:
                self._anew(deployment)
                self.fall(standing, failure)
                return
        if failure.kind.elsewhere:
            self._anew(deployment)
            if again:
                waits.renew(self)
                self.attempt(failure)
                return
            failure = waits.exhausted(self, failure, now_s)
        self._answer_failure(failure)

    def _anew(self, deployment: Deployment) -> None:
        """Forget the call that failed: what was counted of it, and the deployment as one to be tried."""
        exchange = self.exchange
        self.call = self.reader = None
        exchange.first_byte_s = exchange.call_s = exchange.load_s = exchange.engine_s = 0.0
        exchange.prompt_tokens = exchange.completion_tokens = exchange.cached_tokens = -1
        self.tried = (*self.tried, deployment)
        self.ask = None

    # The client

    def client_gone(self) -> None:
        if self.done:
            return
        if self.call is not None:
            self.call.cancel()
        if self.leased:
            deployment, ask = self._release(), self.ask
            verdict.abandoned(deployment, self.trials)
            if not self.begun:
                verdict.left(deployment, self.exchange, ask.prompt_tokens - ask.believed_tokens if ask else 0.0, monotonic())
            self._cut_off()
        elif self.queued_at_s:
            self._waited()
            self.proxy.hotel.leave(self.exchange.candidates.name, self)
        exchange = self.exchange
        exchange.status = errors.CLIENT_CLOSED.status
        exchange.outcome = errors.CLIENT_CLOSED
        self._finish()

    def _cut_off(self) -> None:
        """The answer ends before its end: what the server did for it is counted as far as it is known."""
        try:
            if self.reader is not None:
                self.reader.partial()
        except Exception:  # blame: a plug-in's; its answer is over, and what it counted too
            _log.exception("the answer to request %s could not be counted", self.exchange.id)
        estimate(self.exchange, 0)

    def pause(self) -> None:
        if self.call is not None:
            self.call.pause()

    def resume(self) -> None:
        if self.call is not None:
            self.call.resume()
