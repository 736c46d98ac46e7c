"""Decides whether a key may have another request now, and keeps what it takes until the true figures are known."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf
from pathlib import Path

from hx_gateway.access.account import MINUTE_S, NANO, Account, Debts, Hold, Refusal
from hx_gateway.access.table import State, Table, TableError
from hx_gateway.core.context import KeyLimits

_DAY_S = 86400
_STUCK_S = 0.05  # a slot whose lock was not to be had is not waited for again so soon
_SETTLE_S = 0.05  # true figures are written with the next decision, and at the latest after this
_CLOSING_S = 0.5  # for the locks of what is due at the end
_SLACK_S = 1e-9  # rounding must not refuse what is just allowed
_SOONEST_S = 0.05  # nobody is asked to come back sooner where the moment is a guess
_log = logging.getLogger(__name__)


class Limiter:
    """The limits of one process, exact over all that share its table.

    Rates are GCRA: what was used counts as time ahead of now, which passes by itself. Reservations do not pass: they stay
    until they are settled, and what was truly used then counts as used at that moment.

    Args:
        later: Calls a function after so many seconds; None writes true figures at once.
        clock: Monotonic seconds of a simulation; none means the real ones.
    """

    def __init__(
        self, later: Callable[[float, Callable[[], None]], object] | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self.accounts: dict[str, Account] = {}
        self.refused: dict[tuple[str, str], int] = {}  # refusals by scope and name of limit
        self._table: Table | None = None
        self._later = later
        self._due: set[Account] = set()
        self._armed = False
        self._day = self._month = 0
        self._look_s = 0.0

    def open(self, folder: Path | None, inherited: int = -1) -> None:
        """Use ``limits.map`` in a folder, or else memory shared with the processes of this gateway.

        Args:
            folder: The state directory; None where there is none.
            inherited: File descriptor of `access.sharing.shared_memory`; -1 for none.
        """
        places: list[tuple[Path | None, int]] = [(None, inherited), (None, -1)] if inherited >= 0 else [(None, -1)]
        if folder is not None:
            places.insert(0, (folder / "limits.map", -1))
        for path, descriptor in places:
            try:
                table = Table(path, descriptor)
            except TableError as error:
                _log.warning("limits cannot be shared through %s", error)
                continue
            self.close()
            self._table = table
            return

    def close(self) -> None:
        """Write what is due and give the table back; waits for locks, but not for ever."""
        give_up_s = time.monotonic() + _CLOSING_S
        self.settle_due()
        while self._due and time.monotonic() < give_up_s:
            self.settle_due()
        for account in self.accounts.values():
            if account.table is not None and account.table is not self._table:
                account.table.close()
            account.table = None
        if self._table is not None:
            self._table.close()
        self._table = None

    @property
    def table(self) -> Table:
        """The table; memory of this process alone until one was opened."""
        if self._table is None:
            self._table = Table()
        return self._table

    def account(self, id: str, name: str, limits: KeyLimits, fixed: int = -1) -> Account:
        """The account of a key, with these limits."""
        account = self.accounts.get(id)
        if account is None:
            account = self.accounts[id] = Account(id, name, limits, fixed)
        elif account.limits is not limits:
            account.adopt(limits)
        return account

    def today(self, now_s: float = inf) -> tuple[int, int]:
        """Days since the epoch, and months since the year 0, in UTC; as known at most a second ago."""
        if now_s < self._look_s:
            return self._day, self._month
        self._look_s = time.monotonic() + 1.0
        day = int(time.time()) // _DAY_S
        if day != self._day:
            date = datetime.fromtimestamp(day * _DAY_S, UTC)
            self._day, self._month = day, date.year * 12 + date.month - 1
        return self._day, self._month

    # Deciding

    def take(self, account: Account, now_s: float, tokens: int = 0, cost: int = 0, share: int = 1) -> Hold | Refusal:
        """Take one request, with so many tokens and so much money, out of an account.

        Args:
            account: Whose.
            now_s: Monotonic time.
            tokens: Tokens it may need.
            cost: Money it may need, in `NANO`.
            share: How many gateways divide the limits; what is taken counts so many times.
        """
        lease = account.lease
        if now_s < lease.until_s and share == 1:
            end_s = (lease.next_s if lease.next_s > now_s else now_s) + account.interval_s
            if end_s <= lease.end_s + _SLACK_S and tokens <= lease.tokens and cost <= lease.cost and account.counted <= lease.places:
                lease.next_s = end_s
                lease.tokens -= tokens
                lease.cost -= cost
                lease.places -= account.counted
                account.ahead_s = end_s + lease.gap_s - now_s
                account.tokens_ahead_s += tokens * account.token_s
                return account.free or Hold(account, tokens, cost, account.counted)
        return self._decide(account, now_s, tokens, cost, share)

    def _decide(self, account: Account, now_s: float, tokens: int, cost: int, share: int) -> Hold | Refusal:
        table = account.table or self._place(account)
        index, gateways, lease = account.index, share, account.lease
        locked = now_s >= account.stuck_s and table.acquire(index)
        if not locked:
            # Its holder was stopped or is slow: go on with what is known, as if every process did the same.
            if now_s >= account.stuck_s:
                account.stuck_s = now_s + _STUCK_S
            share *= table.processes()  # for the decision only: what is reserved and used is written down in the end, and once
        try:
            state = self._current(account, table, now_s, locked)
            if state is None:
                return self._decide(account, now_s, tokens, cost, gateways)
            refusal = self._refusal(account, table, state, now_s, tokens, cost, share)
            if refusal is not None and account.under_way and table.take_back(now_s):  # perhaps from the dead
                refusal = self._refusal(account, table, state, now_s, tokens, cost, share)
            if refusal is None and account.interval_s:
                interval_s = account.interval_s * share
                if lease.left(now_s) >= interval_s:
                    lease.use(now_s, interval_s)
                elif locked:
                    state.requests = max(state.requests, now_s) + interval_s
                    account.dirty = True
                else:
                    account.debts.requests_s += interval_s
                    self._soon(account)
            if locked and refusal is None and gateways == 1 and self._later is not None:
                lease.grant(account, table, state, now_s, tokens, cost)
                if lease:
                    self._soon(account)
            if account.dirty:
                account.dirty = False
                table.write(index, state)
            if refusal is None and account.under_way:
                if locked:
                    table.add(index, account.counted + lease.places, tokens * gateways + lease.tokens, cost * gateways + lease.cost)
                else:
                    table.add(index, account.counted, tokens * gateways, cost * gateways)
        finally:
            if locked:
                table.release(index)
        if refusal is not None:
            self.count(account, refusal)
            return refusal
        return Hold(account, tokens, cost, account.counted, gateways)

    def _refusal(self, account: Account, table: Table, state: State, now_s: float, tokens: int, cost: int, share: int) -> Refusal | None:
        limits = account.limits
        refusal = None
        interval_s, left_s = account.interval_s * share, account.lease.left(now_s)
        leased = left_s >= interval_s
        ahead_s = max(0.0, state.requests - now_s - left_s * leased)
        if not leased:
            over_s = ahead_s + interval_s - max(account.burst_s, interval_s)
            if over_s > _SLACK_S:
                refusal = Refusal("requests_per_second", limits.requests_per_second, over_s)
        if account.settles:
            held, held_cost = table.reserved(account.index)
            if account.token_s:
                passing_s = max(0.0, state.tokens - now_s)
                used_s = passing_s + held * account.token_s
                need_s = tokens * account.token_s * share
                over_s = used_s + need_s - MINUTE_S
                account.tokens_ahead_s = used_s
                if refusal is None and over_s > _SLACK_S and (used_s > 0.0 or need_s > MINUTE_S * share):
                    wait_s = 0.0 if need_s > MINUTE_S * share else over_s if over_s <= passing_s else max(passing_s, account.answer_s)
                    refusal = Refusal("tokens_per_minute", limits.tokens_per_minute, wait_s, tokens)
                elif refusal is None:
                    account.tokens_ahead_s += need_s
            if account.rolls and refusal is None:
                refusal = self._over_budget(account, state, held + tokens * share, held_cost + cost * share)
        if account.max_concurrent and refusal is None:
            refusal = self._no_place(account, table, share)
        account.ahead_s = ahead_s + interval_s if refusal is None else ahead_s
        return refusal

    def _over_budget(self, account: Account, state: State, tokens: int, cost: int) -> Refusal | None:
        limits = account.limits
        for name, most, used in (
            ("day_tokens", limits.day_tokens, state.day_tokens + tokens),
            ("month_tokens", limits.month_tokens, state.month_tokens + tokens),
            ("day_cost", limits.day_cost, (state.day_cost + cost) / NANO),
            ("month_cost", limits.month_cost, (state.month_cost + cost) / NANO),
        ):
            # Where money is counted and nothing was reserved, what has no price is free until all is used.
            if most and (used > most or (not cost and used >= most and name.endswith("cost"))):
                return Refusal(name, most, self.until_day() if name.startswith("day") else self.until_month(), used - most)
        return None

    def _no_place(self, account: Account, table: Table, share: int) -> Refusal | None:
        most, index = account.max_concurrent, account.index
        if table.requests(index) < most and (share == 1 or table.mine(index)[0] < max(1, most // share)):
            return None
        return Refusal("max_concurrent", most, max(_SOONEST_S, account.answer_s / most))

    def until_day(self) -> float:
        """Seconds until the next day, UTC."""
        return (self.today()[0] + 1) * _DAY_S - time.time()

    def until_month(self) -> float:
        """Seconds until the next month, UTC."""
        year, month = divmod(self.today()[1] + 1, 12)
        return datetime(year, month + 1, 1, tzinfo=UTC).timestamp() - time.time()

    def _place(self, account: Account) -> Table:
        """The table that the account's figures are kept in; sets its slot."""
        day, table = self.today()[0], self.table
        index = table.find(account.key, day, account.fixed)
        if index < 0:
            _log.warning("no room for the key %r in %r: each process keeps its limits for itself", account.name, table)
            table = Table()
            index = table.find(account.key, day, account.fixed)
        account.table, account.index = table, index
        return table

    # What is written

    def _current(self, account: Account, table: Table, now_s: float, locked: bool) -> State | None:
        """The account's state, of this day and month, with all debts of this process; where it is locked they are paid, and its lease ends.

        Sets ``account.dirty`` where it is to be written. None where its slot has become another's: it will be looked for again.
        """
        if locked:
            account.lease.surrender(account, table)
        state = account.state if locked else State()  # what is not written must not be taken for what is there
        if not table.read(account.index, state):
            state.__init__(account.key)  # type: ignore[misc]
            if locked:
                table.reset(account.index, state)
        elif state.key != account.key:
            account.table = None
            return None
        day, month = self.today(now_s)
        if day != state.day and day + 1 != state.day:  # a clock that is a little behind does not open yesterday again
            state.day, state.day_tokens, state.day_cost = day, 0, 0
            account.dirty = locked
        if month != state.month and month + 1 != state.month:
            state.month, state.month_tokens, state.month_cost = month, 0, 0
        debts = account.debts
        if debts:
            if debts.requests_s:
                state.requests = max(state.requests, now_s) + debts.requests_s
            if debts.tokens:
                state.tokens = max(state.tokens, now_s) + debts.tokens * account.token_s
                state.day_tokens += debts.tokens
                state.month_tokens += debts.tokens
            state.day_cost += debts.cost
            state.month_cost += debts.cost
            if locked:
                account.debts = Debts()
                account.dirty = True
                table.add(account.index, 0, -debts.held_tokens, -debts.held_cost)
        if locked and account.lease.fold(state, now_s):
            account.dirty = True
        return state

    def raise_to(self, account: Account, now_s: float, figures: State) -> None:
        """Take over what a shared store knows: its sums, and its rates as seconds ahead."""
        table = account.table or self._place(account)
        if not table.acquire(account.index):
            return
        try:
            state = self._current(account, table, now_s, True)
            if state is None:
                return
            account.lease.end_s = 0.0
            state.requests, state.tokens = now_s + figures.requests, now_s + figures.tokens
            if figures.day == state.day:
                state.day_tokens, state.day_cost = figures.day_tokens, figures.day_cost
            if figures.month == state.month:
                state.month_tokens, state.month_cost = figures.month_tokens, figures.month_cost
            account.dirty = False
            table.write(account.index, state)
        finally:
            table.release(account.index)

    def count(self, account: Account, refusal: Refusal) -> None:
        """Count a refusal; that of a deployment refuses nobody yet."""
        if account.scope == "deployment":
            return
        key = (account.scope, refusal.limit)
        self.refused[key] = self.refused.get(key, 0) + 1

    def add(self, hold: Hold) -> None:
        """Count a request that a shared store let pass."""
        account = hold.account
        if account.under_way:
            table = account.table or self._place(account)
            table.add(account.index, hold.counted, hold.tokens, hold.cost)

    def mine(self, account: Account) -> tuple[int, int, int]:
        """Requests, tokens and money that this process has under way for an account."""
        table, lease = account.table or self._place(account), account.lease
        requests, tokens, cost = table.mine(account.index)
        return requests - lease.places, tokens - lease.tokens, cost - lease.cost

    def ahead(self, account: Account, now_s: float) -> tuple[float, float]:
        """Seconds that the two rates are ahead of now."""
        table = account.table or self._place(account)
        state = State()
        if not table.read(account.index, state):
            return 0.0, 0.0
        return max(0.0, state.requests - now_s), max(0.0, state.tokens - now_s)

    def settle(self, hold: Hold, tokens: int, cost: int) -> None:
        """Put what a request truly used in place of what was reserved for it, and give its place back.

        Args:
            hold: What it holds; used once.
            tokens: Tokens it used.
            cost: Money it cost, in `NANO`.
        """
        account = hold.account
        table = account.table
        if table is None:
            return
        if hold.counted:
            lease = account.lease
            if lease.places < lease.most:
                lease.places += 1
            else:
                table.add(account.index, -1)
        if not (hold.tokens or hold.cost or tokens or cost):
            return
        share, debts = hold.share, account.debts
        debts.held_tokens += hold.tokens * share
        debts.held_cost += hold.cost * share
        debts.tokens += tokens * share
        debts.cost += cost * share
        if account not in self._due or not self._armed:
            self._soon(account)

    def _soon(self, account: Account) -> None:
        if self._later is not None and not self._armed:
            self._armed = True
            self._later(_SETTLE_S, self.settle_due)
        self._due.add(account)
        if self._later is None:
            self.settle_due()

    def settle_due(self) -> None:
        """Write what is due into the table."""
        due, self._due, self._armed = self._due, set(), False
        for account in due:
            if self.pay(account):
                continue
            if self._later is not None:
                self._soon(account)
            else:
                self._due.add(account)

    def pay(self, account: Account) -> bool:
        """Write what is due of one account; False where it must be tried again."""
        if not (account.debts or account.lease):
            return True
        table, index = account.table or self._place(account), account.index
        if not table.acquire(index):
            return False
        try:
            state = self._current(account, table, self._clock() if self._clock is not None else time.monotonic(), True)
            if state is not None:
                account.dirty = False
                table.write(index, state)
            return state is not None
        finally:
            table.release(index)
