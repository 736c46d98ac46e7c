"""What an exchange costs, and who pays for what did not come to its end."""

from __future__ import annotations

from typing import Any

import pytest

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS, Exchange, Identity
from hx_gateway.fleet.endpoint import Prices
from hx_gateway.ledger.observer import Ledger
from hx_gateway.ledger.pricing import cost_of, engine_s, worked
from hx_gateway.ledger.record import UsageRecord, values_of
from hx_gateway.openai.usage import estimate
from hx_gateway.testing.factories import make_deployment, make_exchange


def exchange(**fields: Any) -> Exchange:
    """An exchange that was answered by a deployment with prices, ten seconds after it came."""
    made = make_exchange({"model": "chat", "messages": [{"role": "user", "content": "x" * 400}]}, CHAT)
    made.deployment = make_deployment()
    made.deployment.prices = Prices(per_request=1000.0, per_prompt_token=1.0, per_completion_token=10.0, per_engine_second=0.5)
    made.received_s, made.call_s, made.first_byte_s, made.status, made.attempts = 100.0, 104.0, 105.0, 200, 1
    made.prompt_tokens, made.completion_tokens = 5, 7
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("prices", "counts", "seconds", "cost"),
    [
        (Prices(), (10, 10, 10), 9.0, 0.0),
        (Prices(per_request=2.0), (-1, -1, -1), 0.0, 2.0),
        (Prices(0.0, 2.0, 3.0), (10, 100, -1), 0.0, 320.0),
        (Prices(0.0, 2.0, 3.0), (10, 100, 4), 0.0, 320.0),
        (Prices(0.0, 2.0, 3.0, per_cached_token=0.5), (10, 100, 4), 0.0, 314.0),
        (Prices(0.0, 2.0, 3.0, per_cached_token=0.0), (10, 0, 99), 0.0, 0.0),
        (Prices(per_engine_second=0.25), (1, 1, 1), 8.0, 2.0),
    ],
)
def test_prices(prices: Prices, counts: tuple[int, int, int], seconds: float, cost: float) -> None:
    assert cost_of(prices, *counts, seconds) == pytest.approx(cost)


@pytest.mark.parametrize(
    ("fields", "pays"),
    [
        ({}, True),
        ({"outcome": errors.UPSTREAM_ERROR, "status": 502}, False),
        ({"outcome": errors.UPSTREAM_REFUSED, "status": 400}, False),
        ({"outcome": errors.CLIENT_CLOSED, "status": 499}, True),
        ({"outcome": errors.CLIENT_CLOSED, "status": 499, "first_byte_s": 0.0}, True),
        ({"outcome": errors.CLIENT_CLOSED, "status": 499, "call_s": 0.0, "first_byte_s": 0.0}, False),  # it waited for a place
        ({"outcome": errors.STREAM_BROKEN}, True),
        ({"outcome": errors.QUEUE_TIMEOUT, "first_byte_s": 0.0}, False),  # after a sign of life the status is 200
        ({"cached": "hit"}, False),
        ({"deployment": None}, False),
    ],
)
def test_work_that_was_done_is_paid_for(fields: dict[str, Any], pays: bool) -> None:
    made = exchange(**fields)
    record = UsageRecord(*values_of(made, 110.0, 1000.0))
    assert worked(made) is pays
    assert record.cost == (pytest.approx(1000 + 5 + 70 + 3.0) if pays else 0.0)
    assert record.engine_ms == (6000.0 if pays else 0.0)


def test_an_engine_that_tells_its_time_is_believed() -> None:
    assert engine_s(exchange(engine_s=2.5), 110.0) == 2.5
    assert engine_s(exchange(), 110.0) == 6.0


def test_times_are_those_of_the_request() -> None:
    record = UsageRecord(*values_of(exchange(queued_s=1.5, load_s=0.25), 110.0, 1000.0))
    assert (record.at_ms, record.duration_ms, record.ttft_ms, record.queued_ms, record.load_ms) == (
        990_000,
        10_000.0,
        5000.0,
        1500.0,
        250.0,
    )


def test_a_key_is_named_never_shown() -> None:
    identity = Identity("shop", id="01K", team="web", tags=("a", "b"))
    record = UsageRecord(*values_of(exchange(identity=identity), 110.0, 1000.0))
    assert (record.key_id, record.key_name, record.team, record.tags) == ("01K", "shop", "web", ("a", "b"))


def test_estimates_fill_gaps_and_nothing_else() -> None:
    told = exchange()
    estimate(told, 99)
    assert (told.prompt_tokens, told.completion_tokens, told.estimated) == (5, 7, False)
    gap = exchange(prompt_tokens=-1, completion_tokens=-1)
    estimate(gap, 9)
    assert 100 <= gap.prompt_tokens <= 120 and gap.completion_tokens == 9 and gap.estimated
    vectors = make_exchange({"model": "e", "input": "y" * 400}, EMBEDDINGS)
    estimate(vectors, 0)
    assert 100 <= vectors.prompt_tokens <= 120 and vectors.estimated


def test_without_a_journal_exchanges_are_counted() -> None:
    ledger = Ledger()
    ledger.finished(exchange())
    assert ledger.unrecorded == 1
    ledger.wanted = False
    ledger.finished(exchange())
    assert ledger.unrecorded == 1
