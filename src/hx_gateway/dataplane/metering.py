"""What a request takes of the limits: estimated before it is sent, and put right when its true figures are known."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from math import floor
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.access.account import NANO, Account, Hold, Refusal
from hx_gateway.access.limiter import Limiter
from hx_gateway.core.context import EMBEDDINGS, Exchange, Identity
from hx_gateway.core.interfaces import unheard
from hx_gateway.dataplane.features import BYTES_PER_TOKEN
from hx_gateway.ledger.pricing import cost_of, engine_s, worked
from hx_gateway.openai.requests import Facts
from hx_gateway.routing.ceilings import Ceilings

if TYPE_CHECKING:
    from hx_gateway.access.shared import Shared

_BIG = 16_384  # bytes of a body that may hold pictures
_PICTURE_BYTES = 1000 * BYTES_PER_TOKEN  # a picture counts as a thousand tokens, whatever its file's size
_base64 = re.compile(rb";base64,[A-Za-z0-9+/=_-]*")


def prompt_tokens(body: bytes) -> int:
    """Tokens of the prompt in a body, roughly."""
    size: float = len(body)
    if b";base64," in body:
        for found in _base64.finditer(body):
            size += _PICTURE_BYTES - (found.end() - found.start())
    return int(size / BYTES_PER_TOKEN) + 1


def estimate(exchange: Exchange, account: Account) -> tuple[int, int]:
    """Tokens and money (in `NANO`) that an exchange may need, from its body, its ``max_tokens`` and earlier answers."""
    completion, facts, size = 0, exchange.facts, len(exchange.body)
    prompt = prompt_tokens(exchange.body) if size > _BIG else floor(size / BYTES_PER_TOKEN) + 1
    if facts is not None and exchange.route is not EMBEDDINGS:
        asked = facts.max_completion_tokens or facts.max_tokens or 0
        completion = asked if asked > 0 else int(account.completion) + 1
    if not account.money:
        return prompt + completion, 0
    cost, target = 0.0, exchange.candidates
    if target is not None:
        members = target.deployments
        cost = max((cost_of(member.prices, prompt, completion, -1, account.answer_s) for member in members), default=0.0)
    return prompt + completion, int(cost * NANO)


class Spent(Facts):
    """Facts of an exchange that is answered by others made in its name: what those used."""

    tokens: int = 0
    cost: int = 0


def used(exchange: Exchange, hold: Hold, now_s: float) -> tuple[int, int]:
    """Tokens and money (in `NANO`) that an exchange truly used."""
    deployment, facts = exchange.deployment, exchange.facts
    if type(facts) is Spent:
        return facts.tokens, facts.cost
    if exchange.upstream:  # passed on unread
        return (hold.tokens if exchange.outcome is None and exchange.status < 400 else 0), 0
    if deployment is None or not worked(exchange):
        return 0, 0
    prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
    if prompt >= 0:
        tokens = prompt + max(0, completion)
    else:
        tokens = hold.tokens if exchange.outcome is None else min(hold.tokens, prompt_tokens(exchange.body))
    if not hold.account.money:
        return tokens, 0
    cost = cost_of(deployment.prices, prompt, completion, exchange.cached_tokens, engine_s(exchange, now_s))
    return tokens, round(cost * NANO)


class Metering:
    """The limits as the data plane uses them: asks for each request, and as an `Observer` settles it at its end.

    Args:
        later: Calls a function after so many seconds; None writes true figures at once.
    """

    __slots__ = ("ceilings", "known", "limiter", "shared")

    def __init__(self, later: Callable[[float, Callable[[], None]], object] | None = None) -> None:
        self.limiter = Limiter(later)
        self.known: dict[str, tuple[Identity, Account]] = {}  # by name, the accounts found last
        self.shared: Shared | None = None  # where limits are kept with other gateways
        self.ceilings = Ceilings(self.limiter, lambda: 1 if self.shared is None else self.shared.gateways)

    def take(self, account: Account, exchange: Exchange) -> Hold | Refusal | Awaitable[Hold | Refusal]:
        """Ask an account for one request; to be awaited where other gateways share the limits."""
        tokens, cost = estimate(exchange, account) if account.settles else (0, 0)
        if self.shared is not None:
            return self.shared.take(account, exchange.received_s, tokens, cost)
        return self.limiter.take(account, exchange.received_s, tokens, cost)

    def settle(self, hold: Hold, tokens: int, cost: int) -> None:
        """Give back what a request holds, and charge what it used."""
        if self.shared is not None:
            self.shared.settle(hold, tokens, cost)
        else:
            self.limiter.settle(hold, tokens, cost)

    attempted = unheard

    def finished(self, exchange: Exchange, /) -> None:
        """Settle what the exchange holds."""
        hold: Hold | None = exchange.hold
        if hold is None:
            return
        exchange.hold = None
        now_s, account = exchange.ended_s or monotonic(), hold.account
        prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
        whole = exchange.outcome is None and not exchange.cached
        if whole:
            account.learn(completion, now_s - exchange.received_s)
        if hold.place is not None:
            self.settle(hold.place, 0, 0)
        tokens = cost = 0
        if account.settles:
            if whole and prompt >= 0 and exchange.deployment is not None and not account.money:
                tokens = prompt + completion if completion > 0 else prompt  # as `used` finds for most
            else:
                tokens, cost = used(exchange, hold, now_s)
        if self.shared is None:
            self.limiter.settle(hold, tokens, cost)
        else:
            self.settle(hold, tokens, cost)
