"""What the end of an attempt means for the deployment: its leases, breakers, cool-down and learned speeds."""

from __future__ import annotations

import logging
from math import inf

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Blame, Failure
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.ghosts import haunt
from hx_gateway.fleet.pace import LESSON_S
from hx_gateway.routing.ask import Ask

ON_ENDPOINT = (errors.CONNECT_FAILED, errors.CONNECT_TIMEOUT, errors.CONNECTION_RESET)
"""Failures of the whole server, not of one model on it."""
LOOK_S = 2.0
"""Seconds after which a server is looked at whose model has failed so often that it is being rested: to see whether it is back."""
_COOL_S = 1.0  # how long a server that said it is busy is left alone, where it did not say how long
_MOST_COOL_S = 30.0
_log = logging.getLogger(__name__)
NO_TRIALS = (0, 0)


def lease(deployment: Deployment) -> tuple[int, int]:
    """An attempt begins: count it, and return its numbers as a trial of the deployment's breaker and of its endpoint's."""
    endpoint = deployment.endpoint
    deployment.in_flight += 1
    endpoint.in_flight += 1
    if deployment.breaker.state == "closed" and endpoint.breaker.state == "closed":
        return NO_TRIALS
    return deployment.breaker.start(), endpoint.breaker.start()


def answered(deployment: Deployment, exchange: Exchange, began_s: float, alone: bool, ask: Ask | None, now_s: float) -> None:
    """The attempt was answered in full.

    Args:
        deployment: Where.
        exchange: With its token counts.
        began_s: Monotonic time of the first byte; of the last, where the answer came whole.
        alone: Whether nothing else was under way at the endpoint when it was sent.
        ask: The request as the router sent it; None where it was not asked.
        now_s: Monotonic time.
    """
    endpoint = deployment.endpoint
    if deployment.breaker.failures or endpoint.breaker.failures:  # as one that is not closed has
        deployment.breaker.succeeded(now_s)
        endpoint.breaker.succeeded(now_s)
    pace = deployment.pace
    if exchange.prompt_tokens > 0:
        pace.tokens += exchange.prompt_tokens
        if exchange.completion_tokens > 0:
            pace.tokens += exchange.completion_tokens
    if now_s >= pace.learn_at_s:
        pace.learn_at_s = now_s + LESSON_S
        called_s = exchange.call_s
        among, believed = (ask.among, ask.believed_tokens) if ask is not None else (0, 0.0)
        read = exchange.prompt_tokens - (exchange.cached_tokens if exchange.cached_tokens >= 0 else believed)
        whole_s = now_s - called_s
        # What the engine did not work on it, it waited for a slot.
        line_s = whole_s - exchange.engine_s if among and 0.0 < exchange.engine_s <= whole_s else -1.0
        pace.answered(whole_s, began_s - called_s, read, exchange.completion_tokens, alone, exchange.load_s, line_s, among)
        deployment.inform((exchange.candidates.whole or exchange.candidates).deployments)
    if endpoint.residency.managed:
        endpoint.residency.answered(deployment, now_s)


def failed(deployment: Deployment, failure: Failure, trials: tuple[int, int], now_s: float) -> float:
    """The attempt failed: whose breaker hears of it is decided by the failure's kind alone.

    Returns:
        Within how many seconds the server should be probed: at once after a failure of its own; inf where nothing changed.
    """
    kind = failure.kind
    mine, servers = deployment.breaker, deployment.endpoint.breaker
    if kind.blame is Blame.CLIENT:  # it answered, and rightly so
        mine.succeeded(now_s)
        servers.succeeded(now_s)
        return inf
    if kind.breaks:
        deployment.pace.failed(now_s)
    if kind in ON_ENDPOINT:
        servers.failed(now_s, trials[1])
        mine.abandoned(trials[0])
        return 0.0
    if kind.breaks:
        was = mine.state
        mine.failed(now_s, trials[0])
        servers.abandoned(trials[1])
        return LOOK_S if was == "closed" and mine.state == "open" else inf
    if kind.blame is Blame.BUSY:
        wait_s = min(failure.retry_after_s or _COOL_S, _MOST_COOL_S)
        deployment.cool_until_s = max(deployment.cool_until_s, now_s + wait_s)
    abandoned(deployment, trials)
    return inf


def timed(failure: Failure, begun: bool) -> Failure:
    """The failure of a stream, by whether anything of it was passed on: only then is it too late to go elsewhere."""
    kind = failure.kind
    if begun and kind.elsewhere:
        return Failure(errors.STREAM_STALLED if kind is errors.FIRST_BYTE_TIMEOUT else errors.STREAM_BROKEN, failure.message)
    if not begun and kind is errors.STREAM_BROKEN:
        return Failure(errors.CONNECTION_RESET, failure.message)
    if not begun and kind is errors.STREAM_STALLED:
        return Failure(errors.FIRST_BYTE_TIMEOUT, failure.message)
    return failure


def unreadable(error: Exception, deployment: Deployment, exchange: Exchange) -> Failure:
    """What it means that an answer could not be read; the trace of what nobody foresaw goes to the log."""
    if isinstance(error, Failure):
        return error
    _log.error("answer of %s to request %s could not be read", deployment.endpoint.name, exchange.id, exc_info=error)
    return Failure(errors.BAD_RESPONSE, "the model server's answer could not be read")


def left(deployment: Deployment, exchange: Exchange, tokens: float, now_s: float) -> None:
    """The client went away before the first byte.

    Args:
        deployment: Where it was asked.
        exchange: With the time of the call.
        tokens: Of the prompt, believed not to be cached; 0.0 where nobody counted.
        now_s: Monotonic time.
    """
    pace = deployment.pace
    haunt(deployment, exchange.call_s, max(pace.first_byte_s, tokens / pace.prefill_rate), now_s)


def abandoned(deployment: Deployment, trials: tuple[int, int]) -> None:
    """The attempt ended without telling anything of the server."""
    if trials is not NO_TRIALS:
        deployment.breaker.abandoned(trials[0])
        deployment.endpoint.breaker.abandoned(trials[1])
