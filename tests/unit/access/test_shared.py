"""Limits that gateways share: who asks waits for the store's answer, and for nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

from hx_gateway.access.account import Hold
from hx_gateway.access.limiter import Limiter
from hx_gateway.access.shared import Shared
from hx_gateway.core.context import KeyLimits
from hx_gateway.core.errors import Unavailable

_TURNS = 5  # of the event loop, in which no time passes


class Broken:
    """A store that is worth asking, and gives no answer that can be used."""

    available = True

    def __init__(self) -> None:
        self.asked = 0

    async def script(self, text: str, key: str, args: Sequence[str | int | float], /) -> Any:
        """Count, and fail."""
        self.asked += 1
        raise Unavailable


async def test_a_request_does_not_wait_until_the_one_before_is_settled() -> None:
    limiter, store = Limiter(), Broken()
    shared = Shared(limiter, store, "gateway", "process")
    account = limiter.account("key:one", "one", KeyLimits(tokens_per_minute=1_000_000))
    for number in range(1, 4):
        answer = shared.take(account, monotonic(), 10, 0)
        assert isinstance(answer, asyncio.Future)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        assert answer.done() and store.asked == number
        hold = answer.result()
        assert isinstance(hold, Hold)
        shared.settle(hold, 7, 0)
    limiter.close()
