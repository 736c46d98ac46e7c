"""What an answer teaches of the deployment that gave it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hx_gateway.dataplane import verdict
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.ask import Ask


def _answer(deployment: Deployment, ask: Ask | None, now_s: float, cached: int = -1, engine_s: float = 0.0) -> None:
    """4,000 tokens of prompt read within 0.1 s, 100 tokens written in a second, sent at ``now_s - 1.1``."""
    exchange: Any = SimpleNamespace(
        call_s=now_s - 1.1,
        prompt_tokens=4000,
        completion_tokens=100,
        cached_tokens=cached,
        load_s=0.0,
        engine_s=engine_s,
        candidates=Target("chat", "model", (deployment,)),
    )
    verdict.answered(deployment, exchange, now_s - 1.0, True, ask, now_s)


def _asked(among: int = 1, believed: float = 0.0) -> tuple[Deployment, Ask]:
    deployment = Deployment("chat", "chat", Endpoint("one", Address("http", "one", 1)))
    ask = Ask(Target("chat", "model", (deployment,)), 4000.0)
    ask.among, ask.believed_tokens = among, believed
    return deployment, ask


@pytest.mark.parametrize(("cached", "read"), [(-1, 1000), (0, 4000), (2000, 2000)])
def test_what_was_cached_was_not_read(cached: int, read: int) -> None:
    """Where the answer does not tell, what the router believed counts: else the server would seem to read faster than it can."""
    deployment, ask = _asked(believed=3000.0)
    _answer(deployment, ask, 10.0, cached)
    assert deployment.pace.prefill_rate == pytest.approx(read / 0.1)


def test_a_request_that_no_router_asked_for_teaches_too() -> None:
    deployment, _ = _asked()
    _answer(deployment, None, 10.0)
    assert deployment.pace.prefill_rate == pytest.approx(40_000)


def test_what_the_engine_did_not_work_was_waiting() -> None:
    deployment, ask = _asked(among=5)
    _answer(deployment, ask, 10.0)
    assert deployment.pace.slots == 0.0, "the engine does not tell"
    _answer(deployment, ask, 20.0, engine_s=1.09)
    assert deployment.pace.slots == 0.0, "it did not wait"
    _answer(deployment, ask, 30.0, engine_s=0.5)
    assert deployment.pace.slots == 4.0
