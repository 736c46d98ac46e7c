"""One limited key as a process knows it: its limits ready for use, and what a request takes of them."""

from __future__ import annotations

from hashlib import blake2b
from math import ceil, floor
from typing import Any

import msgspec

from hx_gateway.access.lease import Lease
from hx_gateway.access.table import State, Table
from hx_gateway.core.context import KeyLimits

NANO = 1_000_000_000
"""Money is counted in whole billionths of the operator's currency, so that sums are exact."""
MINUTE_S = 60.0
_LINES = b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
_LEARN = 0.1  # weight of the latest answer


class Refusal:
    """Why a request may not pass now.

    Args:
        limit: Name of the limit, as in the settings of a key.
        value: Its value.
        wait_s: Seconds until it may pass; 0.0 where waiting does not help.
        asked: What the request would have taken of it.
    """

    __slots__ = ("asked", "limit", "value", "wait_s")

    def __init__(self, limit: str, value: float, wait_s: float, asked: float = 1.0) -> None:
        self.limit = limit
        self.value = value
        self.wait_s = wait_s
        self.asked = asked

    def __repr__(self) -> str:
        return f"<Refusal {self.limit}={self.value:g} for {self.wait_s:.3f} s>"


class Debts:
    """What is still to be written into a slot: the request rate used without its lock, and true figures.

    Attributes:
        requests_s: Seconds of the request rate.
        tokens, cost: Truly used.
        held_tokens, held_cost: Reserved for them until now.
    """

    __slots__ = ("cost", "held_cost", "held_tokens", "requests_s", "tokens")

    def __init__(self) -> None:
        self.requests_s = 0.0
        self.tokens = self.cost = self.held_tokens = self.held_cost = 0

    def __bool__(self) -> bool:
        return bool(self.requests_s or self.held_tokens or self.tokens or self.held_cost or self.cost)


def key_of(id: str) -> bytes:
    """The key of the table's slot for a key's id, or for the name of one of the configuration."""
    return blake2b(f"key:{id}".encode(), digest_size=16).digest()


class Account:
    """One limited key, or the gateway itself.

    Args:
        id: What tells it from others, for ever.
        name: Its name for people.
        limits: Its limits.
        fixed: The slot of the table it has; -1 for any.

    Attributes:
        scope: ``key`` or ``gateway``.
        ahead_s, tokens_ahead_s: How far the two rates were used, in seconds, at the last decision.
        completion, answer_s: Mean length of its answers, in tokens and seconds.
        decided_s: When the shared slot was last asked.
        counted: 1 where its requests at once are limited.
        free: What every request holds, where nothing is to be given back.
        remote: What `access.shared` knows of it.
    """

    __slots__ = (
        "ahead_s", "answer_s", "burst_s", "completion", "counted", "debts", "decided_s", "dirty", "fixed", "free", "id", "index", "interval_s", "key", "lease",
        "limits", "lines", "max_concurrent", "money", "name", "remote", "rolls", "scope", "settles", "soon", "state", "stuck_s", "table", "token_s", "tokens_ahead_s",
        "under_way",
    )  # fmt: skip

    def __init__(self, id: str, name: str, limits: KeyLimits, fixed: int = -1) -> None:
        self.id = id
        self.name = name
        self.key = blake2b(id.encode(), digest_size=16).digest()
        self.state = State(self.key)
        self.table: Table | None = None
        self.fixed = fixed
        self.scope = "key" if fixed < 0 else "gateway"
        self.index = -1
        self.stuck_s = self.decided_s = 0.0
        self.debts = Debts()
        self.lease = Lease()
        self.dirty = False
        self.remote: Any = None
        self.ahead_s = self.tokens_ahead_s = 0.0
        self.completion, self.answer_s = 256.0, 1.0
        self.adopt(limits)

    def __repr__(self) -> str:
        return f"<Account {self.name or 'of the gateway'} {self.limits}>"

    def adopt(self, limits: KeyLimits) -> None:
        """Take other limits into use; what was used stays."""
        self.limits = limits
        rate = limits.requests_per_second
        burst = limits.burst or max(1, ceil(rate))
        self.interval_s = 1.0 / rate if rate else 0.0
        self.burst_s = burst * self.interval_s
        self.token_s = MINUTE_S / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self.max_concurrent = limits.max_concurrent
        self.counted = int(self.max_concurrent > 0)
        self.lease.until_s = 0.0
        self.rolls = bool(limits.day_tokens or limits.month_tokens or limits.day_cost or limits.month_cost)
        self.settles = bool(self.token_s or self.rolls)
        self.under_way = self.settles or self.max_concurrent > 0
        self.free = None if self.under_way else Hold(self, 0, 0, 0)
        self.money = bool(limits.day_cost or limits.month_cost)
        self.lines = b""
        if rate:
            self.lines += _LINES % (b"requests", burst, b"requests", b"requests")
        if self.token_s:
            self.lines += _LINES % (b"tokens", limits.tokens_per_minute, b"tokens", b"tokens")
        self.soon = self.lines.replace(b"%b", b"%dms")  # where all is renewed within a second

    def header_lines(self) -> bytes:
        """Header lines with the limits, and what was left of them at the last decision."""
        interval_s, token_s = self.interval_s, self.token_s
        if interval_s:
            ahead_s = self.ahead_s
            left = floor((self.burst_s - ahead_s) / interval_s + 1e-6)
            if not token_s:
                return self.lines % (left if left > 0 else 0, span(ahead_s))
            tokens_ahead_s = self.tokens_ahead_s
            left_tokens = floor((MINUTE_S - tokens_ahead_s) / token_s + 1e-6)
            if left < 0 or left_tokens < 0:
                left, left_tokens = max(0, left), max(0, left_tokens)
            if ahead_s < 1.0 and tokens_ahead_s < 1.0:
                return self.soon % (left, ceil(ahead_s * 1000), left_tokens, ceil(tokens_ahead_s * 1000))
            return self.lines % (left, span(ahead_s), left_tokens, span(tokens_ahead_s))
        if token_s:
            return self.lines % (max(0, int((MINUTE_S - self.tokens_ahead_s) / token_s + 1e-6)), span(self.tokens_ahead_s))
        return b""

    def affordable(self, table: Table, state: State, wanted: tuple[int, int], taken: tuple[int, int], part: int) -> tuple[int, int]:
        """Tokens and money that may be reserved ahead, of what is wanted.

        Args:
            table: Where the account's slot is.
            state: The slot's state.
            wanted: Tokens and money.
            taken: The same of the request that was let pass last and does not stand in the slot yet.
            part: What part of a limit may be reserved ahead; of what is left, half of each process's share.
        """
        limits, halves = self.limits, 2 * table.processes()
        tokens, cost = wanted
        if self.token_s:
            tokens = min(tokens, limits.tokens_per_minute // part, int((MINUTE_S - self.tokens_ahead_s) / self.token_s) // halves)
        if self.rolls:
            held, held_cost = table.reserved(self.index)
            for most, used in ((limits.day_tokens, state.day_tokens), (limits.month_tokens, state.month_tokens)):
                if most:
                    tokens = min(tokens, most // part, (most - used - held - taken[0]) // halves)
            for price, spent in ((limits.day_cost, state.day_cost), (limits.month_cost, state.month_cost)):
                if price:
                    cost = min(cost, int(price * NANO) // part, (int(price * NANO) - spent - held_cost - taken[1]) // halves)
        return tokens, cost

    def learn(self, completion: int, took_s: float) -> None:
        """Remember how long an answer was.

        Args:
            completion: Its tokens; -1 for unknown.
            took_s: Seconds from the request to its end.
        """
        if completion >= 0:
            self.completion += (completion - self.completion) * _LEARN
        self.answer_s += (took_s - self.answer_s) * _LEARN


class Hold(msgspec.Struct, eq=False, gc=False):
    """What one request holds of an account until its end.

    Args:
        account: Whose.
        tokens: Tokens reserved.
        cost: Money reserved, in `NANO`.
        counted: 1 where it takes one of the account's requests at once.
        share: By how many gateways the limits were divided when it was decided.
        place: What it holds of the gateway's own account, beside that of a key.
    """

    account: Account
    tokens: int
    cost: int
    counted: int
    share: int = 1
    place: Hold | None = None


def span(seconds: float) -> bytes:
    """A time as OpenAI's headers write it: ``120ms``, ``7.66s``, ``6m0s``."""
    if seconds < 1.0:
        return b"%dms" % ceil(seconds * 1000)
    if seconds < MINUTE_S:
        return b"%.2fs" % seconds
    whole = ceil(seconds)
    return b"%dm%ds" % (whole // 60, whole % 60)
