"""Requests of several calls: a few at a time, answers in order, and one failure ends them all."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.dataplane.fanout import PARALLEL, Fanout
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.dataplane.run import Run
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router
from hx_gateway.testing.factories import make_deployment, make_exchange


class Call:
    """A call that remembers whether it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        """Remember."""
        self.cancelled = True

    def pause(self) -> None:
        """Nothing."""

    def resume(self) -> None:
        """Nothing."""


class FakePool:
    """Keeps calls until the test answers them."""

    def __init__(self) -> None:
        self.sent: list[tuple[Outgoing, Any, Call]] = []
        self.most = 0

    @property
    def under_way(self) -> list[tuple[Outgoing, Any, Call]]:
        """Calls that were neither answered nor cancelled."""
        return [entry for entry in self.sent if entry[1].call is entry[2] and not entry[2].cancelled]

    def send(self, outgoing: Outgoing, handler: Any, total_at_s: float = inf, first_byte_s: float = 0.0) -> None:
        """Keep it."""
        handler.call = call = Call()
        self.sent.append((outgoing, handler, call))
        self.most = max(self.most, len(self.under_way))

    def answer(self, entry: tuple[Outgoing, Any, Call], status: int = 200, body: bytes | None = None) -> None:
        """Answer one: with its own body unless told otherwise."""
        outgoing, handler, _ = entry
        handler.call = None
        handler.answered(status, [], outgoing.body if body is None else body)


class Owner:
    """Who asked."""

    def __init__(self) -> None:
        self.call: Any = None
        self.got: list[Any] = []

    def joined(self, bodies: list[bytes]) -> None:
        """All of them."""
        self.got.append(list(bodies))

    def answered(self, status: int, headers: Any, body: bytes) -> None:
        """One that is no success."""
        self.got.append((status, body))

    def failed(self, kind: Any, message: str) -> None:
        """A failure."""
        self.got.append(kind.code)

    def began(self, status: int, headers: Any) -> bool:
        """Never."""
        raise AssertionError

    def received(self, data: bytes) -> None:
        """Never."""
        raise AssertionError

    def ended(self) -> None:
        """Never."""
        raise AssertionError


def started(count: int) -> tuple[FakePool, Owner]:
    pool, owner = FakePool(), Owner()
    Fanout(pool, [Outgoing(b"/", b"%d" % number) for number in range(count)], owner, inf).start()
    return pool, owner


@given(st.integers(1, 30), st.integers())
def test_a_few_at_a_time_and_joined_in_order(count: int, seed: int) -> None:
    dice = random.Random(seed)
    pool, owner = started(count)
    while pool.under_way:
        pool.answer(dice.choice(pool.under_way))
    assert owner.got == [[b"%d" % number for number in range(count)]]
    assert pool.most == min(count, PARALLEL)


@given(st.integers(2, 20), st.integers(0, 19), st.booleans(), st.integers())
def test_the_first_failure_ends_all(count: int, which: int, refused: bool, seed: int) -> None:
    dice = random.Random(seed)
    pool, owner = started(count)
    left = which % count
    while True:
        entry = dice.choice(pool.under_way)
        if left == 0:
            break
        pool.answer(entry)
        left -= 1
    others = [call for outgoing, _, call in pool.under_way if call is not entry[2]]
    before = len(pool.sent)
    if refused:
        pool.answer(entry, 500, b"no")
    else:
        entry[1].failed(errors.CONNECTION_RESET, "gone")
    assert owner.got == [(500, b"no") if refused else "upstream_reset"]
    assert all(call.cancelled for call in others) and len(pool.sent) == before
    for late in [entry for entry in pool.sent if entry[2] in others]:
        pool.answer(late)
    assert len(owner.got) == 1


def test_cancelled_as_one() -> None:
    pool, owner = started(10)
    owner.call.pause()
    owner.call.resume()
    owner.call.cancel()
    assert all(call.cancelled for _, _, call in pool.sent) and len(pool.sent) == PARALLEL
    pool.answer(pool.sent[0])
    assert owner.got == [] and len(pool.sent) == PARALLEL


class Several:
    """A provider that makes two calls of one request and cannot join what it does not understand."""

    name = "several"

    def prepare(self, exchange: Any, deployment: Any) -> list[Outgoing]:
        """Two calls."""
        return [Outgoing(b"/", b"1"), Outgoing(b"/", b"2")]

    def join(self, exchange: Any, deployment: Any, bodies: list[bytes]) -> bytes:
        """Trip over anything but numbers."""
        return b"%d" % sum(int(body) for body in bodies)


@pytest.mark.parametrize(("body", "status"), [(None, 200), (b"garbage", 502)])
def test_answers_that_cannot_be_joined_leave_nothing_behind(body: bytes | None, status: int, caplog: pytest.LogCaptureFixture) -> None:
    deployment = make_deployment(provider=Several())
    pool = deployment.endpoint.pool = FakePool()
    proxy = Proxy(Router(policy), lambda endpoint: Several())  # type: ignore[arg-type,return-value]
    exchange = make_exchange({"model": "shown-name", "input": "a"}, route=EMBEDDINGS)
    exchange.candidates = Target("shown-name", "model", (deployment,), policy="least_busy")
    proxy.start(exchange)
    assert isinstance(exchange.owner, Run) and deployment.in_flight == 1 == proxy.in_flight
    for entry in list(pool.sent):
        pool.answer(entry, body=body)
    assert exchange.client.status == status  # type: ignore[attr-defined]
    assert deployment.in_flight == deployment.endpoint.in_flight == proxy.in_flight == 0
    assert ("could not be read" in caplog.text) == (status == 502)
