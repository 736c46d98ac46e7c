"""What a process takes of a key's limits ahead of need, so that most decisions touch nothing that is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hx_gateway.access.account import Account
    from hx_gateway.access.table import State, Table

LEASE_S = 0.02
"""A lease is good for so long; a key that is asked for less often than this gets none."""
_MOST = 31  # requests that a lease is good for, at most
_TOKENS = 8 * _MOST  # the same for its tokens and money, as far as the limit allows: the locks of many decisions saved
_PART = 50  # all leases together are at most this part of a limit


class Lease:
    """Of the rate of requests it is a stretch of the slot's time, from the end of what was used: a request may use a piece of it
    up to the moment that piece begins. What was used and what is left of all stretches then never is more than the burst,
    and a piece that nobody used has passed as time does. Tokens, money and places stand in the column of the process as if they were under way.

    Attributes:
        until_s: Monotonic time until which it is good; 0.0 for none.
        next_s, end_s: What is left of the stretch.
        gap_s: How far others had used the rate behind its end.
        tokens, cost: Reserved for requests to come.
        places: The same of requests at once.
        most: How many places are kept when they come back.
    """

    __slots__ = ("cost", "end_s", "gap_s", "most", "next_s", "places", "tokens", "until_s")

    def __init__(self) -> None:
        self.until_s = self.next_s = self.end_s = self.gap_s = 0.0
        self.tokens = self.cost = self.places = self.most = 0

    def __bool__(self) -> bool:
        return bool(self.tokens or self.cost or self.places)

    def left(self, now_s: float) -> float:
        """Seconds of the stretch that can still be used."""
        return max(0.0, self.end_s - (self.next_s if self.next_s > now_s else now_s))

    def use(self, now_s: float, interval_s: float) -> None:
        """Use a piece of the stretch that is known to be there."""
        self.next_s = (self.next_s if self.next_s > now_s else now_s) + interval_s

    def surrender(self, account: Account, table: Table) -> None:
        """Give back what was reserved; tokens and money with the account's debts, which are to be paid at once."""
        self.until_s = 0.0
        account.debts.held_tokens += self.tokens
        account.debts.held_cost += self.cost
        if self.places:
            table.add(account.index, -self.places)
        self.tokens = self.cost = self.places = self.most = 0

    def fold(self, state: State, now_s: float) -> bool:
        """Give the stretch back where nothing was used behind it; whether the state was changed. The slot is locked."""
        given = self.end_s > 0.0 and self.end_s == state.requests and self.next_s < self.end_s
        if given:
            state.requests = max(self.next_s, min(now_s, self.end_s))
            self.next_s = self.end_s = 0.0
        return given

    def grant(self, account: Account, table: Table, state: State, now_s: float, tokens: int, cost: int) -> None:
        """Take a lease, or none where the limits are too small or too nearly used for one.

        The slot is locked; what was reserved was given back, and the request decided on is in the state but not in the column.

        Args:
            account: Whose.
            table: Its table.
            state: Its state.
            now_s: Monotonic time.
            tokens: What that request took.
            cost: The same of money.
        """
        busy = now_s < account.decided_s + LEASE_S
        account.decided_s = now_s
        if not busy or table.column < 0:
            return
        interval_s, part = account.interval_s, _PART * table.processes()
        stretch_s, places, spare, money = 0.0, 0, 0, 0
        if interval_s and self.left(now_s) < interval_s:
            burst_s = account.burst_s
            stretch_s = min(max(_MOST * interval_s, LEASE_S), burst_s / part, (burst_s - account.ahead_s) / 2 / table.processes())
            stretch_s = stretch_s // interval_s * interval_s
            if stretch_s < interval_s:
                return
        if account.max_concurrent:
            most = account.max_concurrent
            places = min(_MOST, most // part, (most - table.requests(account.index) - 1) // 2 // table.processes())
            if places < 1:
                return
        if account.settles:
            spare, money = account.affordable(table, state, (_TOKENS * tokens, _TOKENS * cost), (tokens, cost), part)
            if spare < tokens or money < cost:
                return
        if stretch_s:
            self.next_s = state.requests
            state.requests += stretch_s
            self.end_s = state.requests
            account.dirty = True
        self.until_s, self.gap_s = now_s + LEASE_S, state.requests - self.end_s
        self.places = self.most = places
        self.tokens, self.cost = spare, money
