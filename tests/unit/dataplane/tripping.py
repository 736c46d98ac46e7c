"""Plug-ins for a gateway in a test: each part trips where it is told to, and model servers answer when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.dataplane.run import Run
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.routing.pickers import LeastBusy
from hx_gateway.testing.factories import DeafClient


@dataclass
class Mood:
    """What the plug-ins below do now; one object, since the gateway makes them itself."""

    trips: str = ""
    times: int = 0  # how often it still does
    stage_waits: int = 0  # how many requests will have to wait in a stage
    waiting: dict[Exchange, asyncio.Event] = field(default_factory=dict)

    def trip(self, where: str) -> None:
        """Raise if it is here that something trips.

        Raises:
            ZeroDivisionError: It is.
        """
        if self.trips == where and self.times:
            self.times -= 1
            raise ZeroDivisionError(where)


MOOD = Mood()


class Picker(LeastBusy):
    """Trips at choosing."""

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        """The least busy."""
        MOOD.trip("pick")
        return super().pick(target, usable)


def term(ask: Any, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Seconds; trips at choosing and, where there is nothing to choose, at telling the reason."""
    MOOD.trip("term")
    return deployment.endpoint.in_flight * 0.1


class Reader:
    """Trips at reading a stream."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    @property
    def failure(self) -> Failure | None:
        """As it is."""
        return self.reader.failure  # type: ignore[no-any-return]

    @property
    def complete(self) -> bool:
        """Whether it is complete."""
        MOOD.trip("complete")
        return self.reader.complete  # type: ignore[no-any-return]

    def feed(self, data: bytes) -> bytes:
        """What to pass on."""
        MOOD.trip("feed")
        return self.reader.feed(data)  # type: ignore[no-any-return]

    def finish(self) -> bytes:
        """What is still due."""
        MOOD.trip("finish")
        return self.reader.finish()  # type: ignore[no-any-return]

    def partial(self) -> None:
        """Count what there is."""
        MOOD.trip("partial")
        self.reader.partial()


class Provider(OpenAIProvider):
    """Trips at each of its duties; embeddings take three calls."""

    def prepare(self, exchange: Exchange, deployment: Any) -> Outgoing | list[Outgoing]:
        """The request."""
        MOOD.trip("prepare")
        try:
            MOOD.trip("cannot")
        except ZeroDivisionError:
            raise Failure(errors.UNSUPPORTED_PARAMETER, "it cannot") from None
        outgoing = super().prepare(exchange, deployment)
        assert isinstance(outgoing, Outgoing)
        return [outgoing, outgoing, outgoing] if exchange.route is EMBEDDINGS else outgoing

    def whole(self, exchange: Exchange, deployment: Any, body: bytes) -> bytes:
        """The answer."""
        MOOD.trip("whole")
        return super().whole(exchange, deployment, body)

    def join(self, exchange: Exchange, deployment: Any, bodies: Sequence[bytes]) -> bytes:
        """The first of the answers."""
        MOOD.trip("join")
        return bodies[0]

    def reader(self, exchange: Exchange, deployment: Any) -> Any:
        """A reader that may trip."""
        MOOD.trip("reader")
        return Reader(super().reader(exchange, deployment))

    def failure(self, exchange: Exchange, deployment: Any, status: int, headers: Any, body: bytes) -> Failure:
        """What went wrong."""
        MOOD.trip("failure")
        return super().failure(exchange, deployment, status, headers, body)


def stage(gateway: Any) -> Any:
    """A stage that trips, or waits until it is told to go on."""

    def run(exchange: Exchange) -> Any:
        MOOD.trip("stage")
        if not MOOD.stage_waits:
            return None
        MOOD.stage_waits -= 1
        return wait(exchange)

    async def wait(exchange: Exchange) -> None:
        MOOD.waiting[exchange] = event = asyncio.Event()
        try:
            await event.wait()
            MOOD.trip("stage")
        finally:
            MOOD.waiting.pop(exchange, None)

    return run


TRIPS = (
    "pick", "term", "prepare", "cannot", "whole", "join", "reader", "feed", "finish", "complete", "partial", "failure", "send", "stage", "attempted",
    "finished",
)  # fmt: skip


class Watcher:
    """An observer that counts, and trips."""

    def __init__(self) -> None:
        self.ended: dict[str, int] = {}

    def attempted(self, exchange: Exchange, failure: Failure | None) -> None:
        """Trip."""
        MOOD.trip("attempted")

    def finished(self, exchange: Exchange) -> None:
        """Count."""
        self.ended[exchange.id] = self.ended.get(exchange.id, 0) + 1
        MOOD.trip("finished")


class Client(DeafClient):
    """The client's side, strict about what it is told and when."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = False
        self.left = False

    @property
    def over(self) -> bool:
        """Nothing more may come."""
        return self.ended or self.aborted or self.left

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer."""
        assert not self.over and not self.begun
        super().respond(exchange, status, headers, body)

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """The head."""
        assert not self.over and not self.begun
        self.begun = True
        super().begin(exchange, status, headers)

    def write(self, data: bytes) -> None:
        """A piece."""
        assert self.begun and not self.over
        super().write(data)

    def end(self, data: bytes = b"") -> None:
        """The end."""
        assert self.begun and not self.over
        super().end(data)


class Call:
    """A request at a model server, until it is answered, failed or cancelled."""

    def __init__(self, endpoint: Endpoint, outgoing: Outgoing, handler: Any) -> None:
        self.endpoint = endpoint
        self.outgoing = outgoing
        self.handler = handler
        self.cancelled = False
        self.streaming = False
        self.paused = False

    @property
    def run(self) -> Run | None:
        """Whose it is; of a part, that of all parts."""
        fanout = getattr(self.handler, "fanout", None)
        owner = self.handler if fanout is None else fanout.owner
        assert owner is None or isinstance(owner, Run)
        return owner

    def cancel(self) -> None:
        """Nothing more is told to the handler."""
        self.cancelled = True

    def pause(self) -> None:
        """The client is slow."""
        self.paused = True

    def resume(self) -> None:
        """It caught up."""
        self.paused = False


class Pool:
    """Keeps calls until the test says what becomes of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.calls: list[Call] = []

    def send(self, outgoing: Outgoing, handler: Any, total_at_s: float = inf, first_byte_s: float = 0.0) -> None:
        """Keep it; what goes to a server that is being rested must be its one trial."""
        MOOD.trip("send")
        handler.call = call = Call(self.endpoint, outgoing, handler)
        run = call.run
        assert run is not None and run.deployment is not None
        for breaker, trial in zip((run.deployment.breaker, self.endpoint.breaker), run.trials, strict=True):
            assert breaker.state == "closed" or trial == breaker.trial != 0, f"{call.run!r} goes to a server that is being rested"
        self.calls.append(call)

    def under_way(self) -> list[Call]:
        """Those that something can still come of."""
        self.calls = [call for call in self.calls if not call.cancelled]
        return self.calls

    def sweep(self, now_s: float) -> None:
        """No deadlines here."""

    def close(self) -> None:
        """Nothing is open."""
