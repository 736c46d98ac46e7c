"""The stages `limits` and `admission`: what is estimated, what is settled, and what a client is told."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from hx_gateway.access.account import NANO, Hold, Refusal
from hx_gateway.config.load import load_text
from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS, FORWARD, Exchange, Identity, KeyLimits, Route
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.metering import Metering, estimate, prompt_tokens
from hx_gateway.dataplane.stages import admission, limits
from hx_gateway.fleet.endpoint import Prices
from hx_gateway.openai.requests import look
from hx_gateway.testing.factories import DeafClient

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"one two three four five six"}],"max_tokens":50}'
APP = Identity("app", limits=KeyLimits(requests_per_second=10, burst=2, tokens_per_minute=600, max_concurrent=2, day_cost=3.0))


class Gateway:
    """What the stages are built from."""

    def __init__(self, text: str = "") -> None:
        self.config = load_text(text, "f.yaml", {}).config
        self.metering = Metering()

    def stages(self) -> list[Any]:
        return [stage for stage in (limits.build(self), admission.build(self)) if stage is not None]

    def run(self, exchange: Exchange) -> None:
        for stage in self.stages():
            assert stage(exchange) is None


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway("performance: {max_concurrent_requests: 3}")
    yield made
    made.metering.limiter.close()


def exchange(identity: Identity | None = APP, body: bytes = BODY, route: Route = CHAT) -> Exchange:
    made = Exchange("01", route, b"POST", b"/", {}, [], body, DeafClient(), monotonic())
    made.identity = identity
    if route is not FORWARD:
        made.facts = look(route, body)
    deployment = SimpleNamespace(prices=Prices(per_request=1.0, per_completion_token=0.01), model="tiny")
    made.candidates = SimpleNamespace(deployments=(deployment,), name="tiny")
    return made


def answered(gateway: Gateway, made: Exchange, prompt: int = 7, completion: int = 11) -> None:
    made.deployment = made.candidates.deployments[0]
    made.attempts, made.status, made.call_s = 1, 200, made.received_s
    made.prompt_tokens, made.completion_tokens = prompt, completion
    gateway.metering.finished(made)


def kept(gateway: Gateway) -> tuple[int, int, int, int]:
    """Tokens and money used today, tokens reserved, and requests under way."""
    account = gateway.metering.limiter.accounts["key:app"]
    assert account.table is not None and account.table.read(account.index, account.state)
    state = account.state
    return state.day_tokens, state.day_cost, account.table.reserved(account.index)[0], account.table.requests(account.index)


def test_what_a_request_used_takes_the_place_of_what_was_reserved(gateway: Gateway) -> None:
    made = exchange()
    gateway.run(made)
    assert kept(gateway) == (0, 0, prompt_tokens(BODY) + 50, 1)
    assert made.limit_lines.startswith(b"x-ratelimit-limit-requests: 2\r\n")
    answered(gateway, made)
    assert kept(gateway) == (18, int(1.11 * NANO), 0, 0)
    gateway.metering.finished(made)
    assert kept(gateway) == (18, int(1.11 * NANO), 0, 0), "once"


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"outcome": errors.NO_DEPLOYMENT, "status": 503}, 0),
        ({"outcome": errors.UPSTREAM_ERROR, "status": 502, "call_s": 1.0}, 0),
        ({"outcome": errors.CLIENT_CLOSED, "status": 499, "call_s": 1.0}, prompt_tokens(BODY)),
        ({"outcome": errors.STREAM_BROKEN, "status": 200, "first_byte_s": 1.0, "prompt_tokens": 5, "completion_tokens": 2}, 7),
        ({"status": 200, "cached": "hit"}, 0),
        ({"status": 200}, prompt_tokens(BODY) + 50),  # a server that tells nothing
    ],
)
def test_what_other_ends_cost(gateway: Gateway, changes: dict[str, Any], tokens: int) -> None:
    made = exchange()
    gateway.run(made)
    made.deployment = made.candidates.deployments[0]
    for name, value in changes.items():
        setattr(made, name, value)
    gateway.metering.finished(made)
    assert kept(gateway)[0] == tokens and kept(gateway)[2:] == (0, 0)


def test_what_is_passed_on_unread_counts_as_estimated(gateway: Gateway) -> None:
    made = exchange(route=FORWARD)
    gateway.run(made)
    made.upstream, made.status = "old", 200
    gateway.metering.finished(made)
    assert kept(gateway)[0] == prompt_tokens(BODY)


def test_estimates(gateway: Gateway) -> None:
    account = limits.account_of(gateway.metering, APP)
    assert estimate(exchange(), account)[0] == prompt_tokens(BODY) + 50
    plain = BODY.replace(b',"max_tokens":50', b"")
    assert estimate(exchange(body=plain), account)[0] == prompt_tokens(plain) + 257
    account.learn(100, 1.0)
    assert estimate(exchange(body=plain), account)[0] < prompt_tokens(plain) + 257
    vectors = b'{"model":"tiny","input":"one two three"}'
    assert estimate(exchange(body=vectors, route=EMBEDDINGS), account)[0] == prompt_tokens(vectors)
    picture = json.dumps({"url": "data:image/png;base64," + "A" * 1_000_000}).encode()
    assert prompt_tokens(picture) < 1_100


def test_each_refusal_names_limit_value_key_and_remedy(gateway: Gateway) -> None:
    def refused(**values: Any) -> tuple[str, str, Failure]:
        identity = Identity(f"key {len(gateway.metering.limiter.accounts)}", limits=KeyLimits(**values))
        stage = limits.build(gateway)
        assert stage is not None
        for _ in range(3):
            try:
                stage(exchange(identity))
            except Failure as failure:
                return failure.kind.code, failure.message.replace(identity.name, "K"), failure
        raise AssertionError("nothing was refused")

    code, message, failure = refused(requests_per_second=0.5)
    assert code == "rate_limit_exceeded" and 1 < failure.retry_after_s <= 2
    assert re.match(
        r"the key 'K' has used its 0\.5 requests per second and a burst of 1 \(requests_per_second\); try again in (2\.0|1\.\d) s", message
    )
    code, message, failure = refused(tokens_per_minute=100)
    assert code == "rate_limit_exceeded" and "100 tokens per minute (tokens_per_minute), and this request may need" in message
    code, message, failure = refused(tokens_per_minute=10)
    assert failure.should_retry is False and message.endswith("lower max_tokens or shorten the prompt") and failure.retry_after_s is None
    code, message, failure = refused(max_concurrent=1)
    assert code == "rate_limit_exceeded" and "the key 'K' has as many requests under way as it may (max_concurrent, 1)" in message
    code, message, failure = refused(day_tokens=100)
    assert code == "insufficient_quota" and "its budget of 100 tokens per day (day_tokens)" in message
    assert message.endswith("T00:00:00Z") and failure.should_retry is False and 0 < (failure.retry_after_s or 0) <= 86400
    code, message, failure = refused(month_cost=2.5)
    assert code == "insufficient_quota" and "its budget of 2.5 per month (month_cost)" in message


def test_the_gateways_own_places_are_held_beside_those_of_a_key(gateway: Gateway) -> None:
    made = [exchange(), exchange(None), exchange(None)]
    for each in made:
        gateway.run(each)
    late = exchange()
    with pytest.raises(Failure) as refused:
        gateway.run(late)
    assert refused.value.kind is errors.OVERLOADED and "max_concurrent_requests, 3)" in refused.value.message
    gateway.metering.finished(late)
    assert kept(gateway)[3] == 1
    for each in made:
        gateway.metering.finished(each)
    places = gateway.metering.limiter.accounts["gateway:places"]
    assert kept(gateway)[3] == 0 and places.table is not None and places.table.requests(places.index) == 0


def test_the_order_of_the_stages_does_not_matter(gateway: Gateway) -> None:
    made = exchange()
    for stage in reversed(gateway.stages()):
        assert stage(made) is None
    places = gateway.metering.limiter.accounts["gateway:places"]
    assert places.table is not None and places.table.requests(places.index) == 1
    gateway.metering.finished(made)
    assert kept(gateway)[3] == 0 and places.table.requests(places.index) == 0


def test_a_key_without_limits_touches_nothing() -> None:
    made = Gateway()
    (stage,) = made.stages()
    free = exchange(Identity("free"))
    assert stage(free) is None and stage(exchange(None)) is None
    assert free.hold is None and free.limit_lines == b"" and not made.metering.limiter.accounts


class Slow:
    """A store of limits that answers when told."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Hold | Refusal]] = []
        self.settled: list[tuple[Hold, int, int]] = []

    def take(self, account: Any, now_s: float, tokens: int, cost: int) -> asyncio.Future[Hold | Refusal]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def settle(self, hold: Hold, tokens: int, cost: int) -> None:
        self.settled.append((hold, tokens, cost))


@pytest.mark.parametrize("answered_first", [True, False])
async def test_who_leaves_while_the_store_is_asked_holds_nothing(gateway: Gateway, answered_first: bool) -> None:
    gateway.metering.shared = slow = Slow()  # type: ignore[assignment]
    made = exchange()
    stage = limits.build(gateway)
    assert stage is not None
    task = asyncio.create_task(stage(made))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    hold = Hold(limits.account_of(gateway.metering, APP), 5, 0, 0)
    if answered_first:
        slow.asked[0].set_result(hold)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert made.hold is None and slow.settled == ([(hold, 0, 0)] if answered_first else [])
