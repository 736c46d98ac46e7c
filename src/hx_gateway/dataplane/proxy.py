"""Carries resolved exchanges to deployments, and sends every answer that is not a model server's."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.access.limiter import Limiter
from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Observer, Provider, Response, unheard
from hx_gateway.dataplane.answer import failure_lines, request_id
from hx_gateway.dataplane.features import ask_of
from hx_gateway.dataplane.flight import Carried
from hx_gateway.dataplane.learned import learning_ask
from hx_gateway.dataplane.queue import Hotel
from hx_gateway.dataplane.run import Run
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.ceilings import Ceilings
from hx_gateway.routing.router import Decision, Router

if TYPE_CHECKING:
    from hx_gateway.dataplane.explain import Remembered
    from hx_gateway.fleet.deployment import Deployment
    from hx_gateway.fleet.endpoint import Endpoint
    from hx_gateway.fleet.registry import Target
    from hx_gateway.routing.learned.choice import Learned


DECISIONS = 2000
_EXPLAINED = 5  # choices of which all that was weighed is kept, between two sweeps
_WEIGHED = 20_000  # deployments that were weighed, in all that is kept: about half a kilobyte each
_log = logging.getLogger(__name__)


class Proxy:
    """Carries exchanges to deployments and their answers back.

    Args:
        router: Chooses deployments.
        guess: The provider to take for an endpoint whose dialect is not known yet.
        observers: Told of every attempt and every end.
        max_attempts: Most attempts for one request, the first included.
        total_s: Total deadline of a request in seconds; 0 for none.
        heartbeat_s: Seconds after which a client that waits for a stream gets a comment, and again; 0 for never.
        hotel: Where requests wait for a place; none refuses them at once.
        find: The target of a public name.
        alarm: Told of a server that should be probed soon, and within how many seconds.
        ceilings: The limits of deployments; none keeps them in memory of its own.
    """

    __slots__ = (
        "_finishers",
        "_hearers",
        "_observers",
        "_weighed",
        "alarm",
        "ceilings",
        "decisions",
        "explained",
        "find",
        "guess",
        "heartbeat_s",
        "hotel",
        "in_flight",
        "learned",
        "max_attempts",
        "plain",
        "router",
        "total_s",
        "waiting",
    )

    def __init__(
        self,
        router: Router,
        guess: Callable[[Endpoint], Provider],
        observers: Sequence[Observer] = (),
        max_attempts: int = 3,
        total_s: float = 0.0,
        heartbeat_s: float = 0.0,
        hotel: Hotel | None = None,
        find: Callable[[str], Target | None] = lambda name: None,
        alarm: Callable[[Endpoint, float], None] = lambda endpoint, within_s: None,
        ceilings: Ceilings | None = None,
    ) -> None:
        self.alarm = alarm
        self.ceilings = ceilings or Ceilings(Limiter())
        self.router = router
        self.guess = guess
        self.observers = tuple(observers)
        self.max_attempts = max_attempts
        self.total_s = total_s
        self.heartbeat_s = heartbeat_s
        self.hotel = hotel or Hotel(0, 0.0)
        self.find = find
        self.decisions: deque[Remembered] = deque(maxlen=DECISIONS)  # the latest choices, to be read back by id
        self.explained = _EXPLAINED
        self._weighed: deque[Decision] = deque(maxlen=DECISIONS)
        self.waiting: set[Run] = set()  # streams without a first byte
        self.plain: dict[Target, Ask] = {}  # of names whose policy asks nothing of the request; emptied on reload
        self.learned: Mapping[str, Learned] = {}  # by group, those that learn
        self.in_flight = 0

    @property
    def observers(self) -> tuple[Observer, ...]:
        """Those who are told of every end, and unless their ``attempted`` is `unheard` of every attempt."""
        return self._observers

    @observers.setter
    def observers(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        self._finishers = tuple(observer.finished for observer in observers)
        self._hearers = tuple(one.attempted for one in observers if getattr(type(one), "attempted", None) is not unheard)

    def ask(self, exchange: Exchange, tried: Sequence[Deployment] = ()) -> Ask:
        """What the router needs to know of an exchange."""
        target: Target = exchange.candidates
        if self.learned and (learned := self.learned.get(target.group)) is not None:
            return learning_ask(learned, exchange, self.router.policy(target.policy).affine, tried)
        if tried:
            return self.ask_of(exchange, target, tried)
        ask = self.plain.get(target)
        return self.ask_of(exchange, target) if ask is None else ask

    def ask_of(self, exchange: Exchange, target: Target, tried: Sequence[Deployment] = ()) -> Ask:
        """The same for another name; the prompt is looked into only where the name's policy cares."""
        policy = self.router.policy(target.policy)
        if policy.picker is None:
            return ask_of(exchange, target, policy.affine, tried)
        if tried:
            return Ask(target, tried=tried)
        ask = self.plain[target] = Ask(target)
        return ask

    def wait(self, run: Run, now_s: float) -> None:
        """A stream was asked for and nothing has come yet."""
        if self.heartbeat_s:
            run.beat_s = now_s
            self.waiting.add(run)

    def weighing(self, target: Target) -> Decision:
        """A decision that is to say all that is weighed for it; the oldest ones forget that, where so many deployments were that it adds up."""
        self.explained -= 1
        kept, decision = self._weighed, Decision(target.policy)
        while kept and len(kept) >= _WEIGHED // max(1, len(target.deployments)):
            kept.popleft().candidates = []
        kept.append(decision)
        return decision

    def sweep(self, now_s: float) -> None:
        """Send a sign of life to those who have waited long, and away those who waited too long."""
        self.explained = _EXPLAINED
        if self.hotel.size:
            self.hotel.sweep(now_s)
        late_s = now_s - self.heartbeat_s
        for run in [run for run in self.waiting if run.beat_s <= late_s]:
            run.beat(now_s)

    def start(self, exchange: Exchange) -> None:
        """Find an answer for an exchange that all stages let pass."""
        self.in_flight += 1
        exchange.owner = run = Run(self, exchange)
        run.attempt()

    def attempted(self, exchange: Exchange, failure: Failure | None) -> None:
        """Tell the observers that an attempt is over; what fails in one of them touches neither the request nor the others."""
        for attempted in self._hearers:
            try:
                attempted(exchange, failure)
            except Exception:  # blame: the observer's own
                _log.exception("an observer failed at an attempt of request %s", exchange.id)

    def finished(self, exchange: Exchange) -> None:
        """Tell the observers that the outcome is known; what fails in one of them touches neither the request nor the others."""
        if type(exchange) is Carried:
            if exchange.flight is not None:
                exchange.flight.landed()
            return
        if not exchange.ended_s:
            exchange.ended_s = monotonic()
        for finished in self._finishers:
            try:
                finished(exchange)
            except Exception:  # blame: the observer's own
                _log.exception("an observer failed at the end of request %s", exchange.id)

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send an answer that a stage made."""
        exchange.owner = None
        exchange.status = response.status
        exchange.outcome = response.outcome
        self.finished(exchange)
        lines = b"%bx-request-id: %b\r\n%b" % (response.headers, request_id(exchange), exchange.limit_lines)
        exchange.client.respond(exchange, response.status, lines, response.body)

    def refuse(self, exchange: Exchange, failure: Failure) -> None:
        """Send a failure as the whole answer."""
        exchange.owner = None
        exchange.outcome = failure.kind
        exchange.status = status = failure.status
        self.finished(exchange)
        if failure.kind is errors.CLIENT_CLOSED:
            return
        body = failure.upstream_body or failure.body()
        exchange.client.respond(exchange, status, failure_lines(exchange, failure), body)
