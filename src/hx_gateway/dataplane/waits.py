"""What becomes of a request that no deployment can take now: another name stands in, it waits for a place, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.errors import Blame, Failure
from hx_gateway.dataplane.queue import PRIORITIES
from hx_gateway.dataplane.suiting import served, suited

if TYPE_CHECKING:
    from hx_gateway.dataplane.run import Run
    from hx_gateway.fleet.deployment import Deployment
    from hx_gateway.fleet.registry import Target


def standing_in(run: Run, names: Sequence[str], now_s: float) -> Target | None:
    """The first name of a fallback chain that the key may use and that can take the request now: its deployments that suit it."""
    identity = run.exchange.identity
    proxy = run.proxy
    for name in names:
        target = proxy.find(name)
        if target is None or target.name == run.exchange.candidates.name or target.name in run.fell_from:
            continue
        if identity is not None and not identity.may_use(target.name):
            continue
        target = suited(run.exchange, target, measured=True)
        if not target.overrun and served(run.exchange, target, proxy, now_s):
            return target
    return None


def renew(run: Run) -> None:
    """Go on with the name as it is configured now: a reload may have brought other servers, or taken some away."""
    exchange = run.exchange
    before: Target = exchange.candidates
    target = run.proxy.find(before.name)
    if target is None or target is (before.whole or before):
        return
    fit = suited(exchange, target)
    view = target.view(fit.deployments, fit.needs, fit.overrun, before.instead_of, fit.among) if before.instead_of else fit
    exchange.candidates = view
    run.ask = None


def queue(run: Run, last: Failure | None, now_s: float) -> bool:
    """Let the request wait for a place; False where waiting has no sense, or the queue is full."""
    proxy, exchange = run.proxy, run.exchange
    target: Target = exchange.candidates
    hotel = proxy.hotel
    if not hotel.most or run.queued_at_s or not occupied(target, now_s) or pause_s(target, now_s) > hotel.longest_s:
        return False
    if last is not None:
        if last.kind is not errors.UPSTREAM_BUSY or exchange.attempts >= proxy.max_attempts + len(run.fell_from):
            return False
        run.tried = ()
        run.ask = None
    if run.ask is None:
        run.ask = proxy.ask(exchange)
    identity = exchange.identity
    key = identity.name if identity is not None else ""
    priority = PRIORITIES.get(exchange.notes.get(b"x-hx-priority", b"normal"), 1)
    run.give_up_s = min(now_s + hotel.longest_s - exchange.queued_s, run.total_at_s)
    if hotel.enter(target.name, run, key, priority, run.called) < 0:
        run.turned_away = True
        return False
    if last is not None:
        hotel.vacancy()  # what it has tried may be tried again, perhaps at once: as the trial of one that rests
    run.queued_at_s = now_s
    if exchange.facts.stream and not run.opened:
        proxy.wait(run, now_s)
    return True


def occupied(target: Target, now_s: float) -> bool:
    """Whether some deployment would take the request if it were not full, or had not asked for a pause."""
    return any(deployment.full or now_s < deployment.cool_until_s for deployment in _open(target))


def _open(target: Target) -> Iterator[Deployment]:
    """The deployments that are neither being rested, nor drained, nor without weight."""
    for deployment in target.deployments:
        endpoint = deployment.endpoint
        if deployment.weight and deployment.breaker.state == "closed" and endpoint.breaker.state == "closed" and not endpoint.drained:
            yield deployment


def pause_s(target: Target, now_s: float) -> float:
    """Seconds until one of them may be asked that has had all it may in a minute, or asked for a pause; 0.0 where one is only full."""
    return min((max(0.0, deployment.cool_until_s - now_s) for deployment in _open(target)), default=0.0)


def likely_wait_s(target: Target, ahead: int, now_s: float) -> float:
    """Seconds until a place is free for a request with so many before it, by what requests took lately, and by the limits of a minute."""
    places = sum(deployment.max_concurrent or deployment.endpoint.max_concurrent or 1 for deployment in target.deployments)
    lasted = [deployment.pace.service_s for deployment in target.deployments if deployment.pace.service_s]
    each_s = sum(lasted) / len(lasted) if lasted else 1.0
    return max(1.0, pause_s(target, now_s), (ahead + 1) * each_s / max(1, places))


def comment(run: Run, now_s: float) -> bytes:
    """A sign of life for a client that waits for a stream."""
    if not run.queued_at_s:
        return b": waiting for the model\n\n"
    target: Target = run.exchange.candidates
    ahead = max(0, run.proxy.hotel.waiting(target.name) - 1)
    return b": queued, at most %d ahead, about %d s\n\n" % (ahead, round(likely_wait_s(target, ahead, now_s)))


def exhausted(run: Run, last: Failure | None, now_s: float) -> Failure:
    """What to answer when nothing is left to try."""
    target: Target = run.exchange.candidates
    if last is None:
        if run.turned_away:
            waiting = run.proxy.hotel.waiting(target.name)
            return Failure(
                errors.QUEUE_FULL,
                f"every deployment of {target.name!r} is full, and {waiting} requests wait for a place already (queue.max_waiting)",
                retry_after_s=likely_wait_s(target, waiting, now_s),
            )
        if occupied(target, now_s):
            return Failure(
                errors.UPSTREAM_BUSY,
                f"every deployment of {target.name!r} is at its limit of concurrent requests (max_concurrent), or of requests or tokens a minute "
                "(requests_per_minute, tokens_per_minute), or asked for a pause",
                retry_after_s=likely_wait_s(target, 0, now_s),
            )
        wait_s = run.proxy.router.retry_after_s(run.ask, now_s) if run.ask is not None else 1.0
        return Failure(
            errors.NO_DEPLOYMENT,
            f"no deployment of {target.name!r} can take the request now: every one is failing and being rested, or drained",
            retry_after_s=wait_s,
        )
    if last.kind is errors.UPSTREAM_BUSY and last.retry_after_s is None:
        last.retry_after_s = likely_wait_s(target, 0, now_s)
    elif last.kind.blame is Blame.ENDPOINT and run.exchange.attempts > 1:
        last.should_retry = False  # our own tries are spent; a client that repeats them multiplies the load
    return last


def waited_long(run: Run, now_s: float) -> Failure:
    """What to answer to a request that waited as long as it may."""
    target: Target = run.exchange.candidates
    return Failure(
        errors.QUEUE_TIMEOUT,
        f"no deployment of {target.name!r} became free within {now_s - run.queued_at_s:.0f} s (queue.max_wait_seconds)",
        retry_after_s=likely_wait_s(target, run.proxy.hotel.waiting(target.name), now_s),
    )
