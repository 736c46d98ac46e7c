"""The visible order of stages that every inference request runs through before it is sent to a model server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import TAKEN, Response, Stage

STAGES = {
    "authenticate": "hx_gateway.dataplane.stages.authenticate:build",
    "inspect": "hx_gateway.dataplane.stages.inspect:build",
    "resolve": "hx_gateway.dataplane.stages.resolve:build",
    "limits": "hx_gateway.dataplane.stages.limits:build",
    "cache": "hx_gateway.dataplane.stages.cache:build",
    "embed": "hx_gateway.dataplane.stages.embed:build",
    "admission": "hx_gateway.dataplane.stages.admission:build",
}
"""Built-in stages. Each path is a function that takes the gateway and returns the stage, or None where it has nothing to do."""

_log = logging.getLogger(__name__)


class Pipeline:
    """Runs the stages, in order; only a stage that really has to wait costs a task.

    Args:
        stages: In the order they run.
        proceed: Takes the exchange when no stage answered it.
        answer: Sends a stage's answer to the client.
        refuse: Sends a failure to the client.
    """

    __slots__ = ("answer", "proceed", "refuse", "stages")

    def __init__(
        self,
        stages: Sequence[Stage],
        proceed: Callable[[Exchange], None],
        answer: Callable[[Exchange, Response], None],
        refuse: Callable[[Exchange, Failure], None],
    ) -> None:
        self.stages = tuple(stages)
        self.proceed = proceed
        self.answer = answer
        self.refuse = refuse

    def run(self, exchange: Exchange) -> None:
        """Take an exchange through all stages and hand it on."""
        try:
            for number, stage in enumerate(self.stages):
                answer = stage(exchange)
                if answer is not None:
                    if isinstance(answer, Response):
                        if answer is not TAKEN:
                            self.answer(exchange, answer)
                    elif isinstance(answer, Exchange):
                        exchange = answer
                        continue
                    else:
                        waiter = Waiter(self, exchange)
                        exchange.owner = waiter
                        waiter.task = asyncio.get_running_loop().create_task(self._rest(waiter, answer, number + 1))
                    return
            proceed = self.proceed
            proceed(exchange)
        except Failure as failure:
            self.refuse(exchange, failure)
        except Exception:  # blame: the gateway's own; the client gets an id, the log the trace
            self.fault(exchange)

    async def _rest(self, waiter: Waiter, waiting: Awaitable[Response | Exchange | None], number: int) -> None:
        exchange = waiter.exchange
        try:
            answer = await waiting
            while not isinstance(answer, Response):
                if answer is not None:
                    waiter.exchange = exchange = answer
                    exchange.owner = waiter
                if number == len(self.stages):
                    exchange.owner = None
                    self.proceed(exchange)
                    return
                result = self.stages[number](exchange)
                number += 1
                answer = result if result is None or isinstance(result, Response | Exchange) else await result
            if answer is not TAKEN:
                exchange.owner = None
                self.answer(exchange, answer)
        except Failure as failure:
            self.refuse(exchange, failure)
        except Exception:  # blame: the gateway's own; the client gets an id, the log the trace
            self.fault(exchange)

    def fault(self, exchange: Exchange) -> None:
        """Answer with a plain 500 and put the trace of the exception being handled into the log."""
        _log.exception("internal error in request %s", exchange.id)
        self.refuse(exchange, Failure(errors.INTERNAL, f"an internal error occurred; it is logged under request id {exchange.id}"))


class Waiter:
    """Owns an exchange while a stage waits; a client that leaves ends the wait."""

    __slots__ = ("exchange", "pipeline", "task")

    def __init__(self, pipeline: Pipeline, exchange: Exchange) -> None:
        self.pipeline = pipeline
        self.exchange = exchange
        self.task: asyncio.Task[None] | None = None

    def client_gone(self) -> None:
        if self.task is not None:
            self.task.cancel()
        self.pipeline.refuse(self.exchange, Failure(errors.CLIENT_CLOSED, "the client left"))

    def pause(self) -> None:
        """Nothing is being written yet."""

    def resume(self) -> None:
        """Nothing is being written yet."""
