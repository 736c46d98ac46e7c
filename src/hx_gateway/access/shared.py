"""Limits that several gateways keep together: one atomic script a decision in a store they share, many asked in one call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from hx_gateway.access.account import MINUTE_S, NANO, Account, Hold, Refusal
from hx_gateway.access.limiter import Limiter
from hx_gateway.access.table import State
from hx_gateway.core.errors import Unavailable

PREFIX = "hx:limits:"
GATEWAYS = "hx:limits:gateways"
_LEASE_S = 10.0  # what a process has under way is forgotten when it was not heard of for this long
_BEAT_S = 1.0
_AWAY_S = 3.0  # who was not heard of for so long goes on alone with its part, which the others leave to it
_FEWER_S = 30.0
_SETTLE_S = 0.05
_KEEP_S = 63 * 86400
_REMEMBER_S = 1.0  # a refusal is not asked about again until it ends, but at least so often where it may end early
_PLACE_S = 0.02  # the same for places, which come free at any moment
_US = 1e6
_LIMITS = ("", "requests_per_second", "tokens_per_minute", "day_tokens", "month_tokens", "day_cost", "month_cost", "max_concurrent")

# Times are microseconds of the store's own clock. What a process has under way is sent as it stands, so that a lost call, a
# lost store and a killed process all mend by themselves; what was used is added.
_DECIDE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local a = {}
for i = 2, #ARGV do a[i] = tonumber(ARGV[i]) end
local me = 'p:' .. ARGV[1]
local f = {}
local raw = redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do f[raw[i]] = raw[i + 1] end
local function get(name) return tonumber(f[name] or '0') end
local day, dt, dc = get('day'), get('dt'), get('dc')
local month, mt, mc = get('month'), get('mt'), get('mc')
if a[10] > day or a[10] < day - 1 then day, dt, dc = a[10], 0, 0 end
if a[11] > month or a[11] < month - 1 then month, mt, mc = a[11], 0, 0 end
dt, mt, dc, mc = dt + a[16], mt + a[16], dc + a[17], mc + a[17]
local r = math.max(get('r'), now + a[18])
local room = a[20]
local k = math.max(get('t'), now + a[19]) + a[16] * a[8] * room
local n, held, cost = a[3], a[4], a[5]
for name, value in pairs(f) do
  if string.sub(name, 1, 2) == 'p:' and name ~= me then
    local vn, vt, vc, ve = string.match(value, '(%d+) (%d+) (%d+) (%d+)')
    if tonumber(ve) < now then
      redis.call('HDEL', KEYS[1], name)
    else
      n, held, cost = n + vn, held + vt, cost + vc
    end
  end
end
local mn, mh, mq = a[3], a[4], a[5]
local out = {}
for i = 21, #ARGV, 2 do
  local tokens, money, code, wait = a[i], a[i + 1], 0, 0
  if a[6] > 0 then
    local over = r - now + a[6] - math.max(a[7], a[6])
    if over > 0.5 then code, wait = 1, over end
  end
  if code == 0 and a[8] > 0 then
    local used = k - now + held * a[8]
    local over = used + tokens * a[8] * room - 60000000
    if over > 0.5 and (used > 0.5 or tokens * a[8] > 60000000.5) then
      code, wait = 2, over
      if tokens * a[8] > 60000000.5 then wait = -1 elseif over > k - now then wait = 0 end
    end
  end
  if code == 0 and a[12] > 0 and dt + held + tokens > a[12] then code = 3 end
  if code == 0 and a[13] > 0 and mt + held + tokens > a[13] then code = 4 end
  if code == 0 and a[14] > 0 and (dc + cost + money > a[14] or dc >= a[14]) then code = 5 end
  if code == 0 and a[15] > 0 and (mc + cost + money > a[15] or mc >= a[15]) then code = 6 end
  if code == 0 and a[9] > 0 and n >= a[9] then code = 7 end
  if code == 0 then
    r, n, held, cost = r + a[6], n + 1, held + tokens, cost + money
    mn, mh, mq = mn + 1, mh + tokens, mq + money
  end
  out[#out + 1] = code
  out[#out + 1] = math.floor(wait)
end
local function whole(x) return string.format('%.0f', x) end
local function fine(x) return string.format('%.3f', x) end
redis.call('HSET', KEYS[1], 'r', fine(r), 't', fine(k), 'day', whole(day), 'dt', whole(dt), 'dc', whole(dc),
  'month', whole(month), 'mt', whole(mt), 'mc', whole(mc))
if mn + mh + mq > 0 then
  redis.call('HSET', KEYS[1], me, whole(mn) .. ' ' .. whole(mh) .. ' ' .. whole(mq) .. ' ' .. whole(now + a[2]))
else
  redis.call('HDEL', KEYS[1], me)
end
redis.call('EXPIRE', KEYS[1], KEEP)
local said = {math.floor(r - now), math.floor(k - now), held, day, dt, dc, month, mt, mc}
for i = 1, #out do said[#said + 1] = out[i] end
return said
""".replace("KEEP", str(_KEEP_S))

_BEAT = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ARGV[2]))
return {redis.call('ZCARD', KEYS[1]), redis.call('ZCOUNT', KEYS[1], now - ARGV[3], '+inf')}
"""
_LEAVE = "return redis.call('ZREM', KEYS[1], ARGV[1])"


class Store(Protocol):
    """Where limits are shared, as `stores.redis.Redis` is."""

    @property
    def available(self) -> bool:
        """Whether it is worth asking."""
        ...

    async def script(self, text: str, key: str, args: Sequence[str | int | float], /) -> Any:
        """Run a Lua script on one key.

        Raises:
            Unavailable: No answer in time, or none that can be used.
        """
        ...


class _Remote:
    """What is under way between one account and the store."""

    __slots__ = ("asked", "asking", "cost", "known", "refusal", "requested", "settling", "tokens", "told_s", "until_s")

    def __init__(self) -> None:
        self.asked: list[tuple[asyncio.Future[Hold | Refusal], int, int]] = []
        self.asking = False  # one call at a time: each tells what is under way here, and must know of the one before
        self.requested = self.settling = False
        self.tokens = self.cost = 0  # used, and not told yet
        self.known = False  # whether the store knows how far the rates are used here
        self.told_s = 0.0
        self.refusal: Refusal | None = None
        self.until_s = 0.0


class Shared:
    """Limits, kept with other gateways; those of the limiter alone while the store is away.

    Args:
        limiter: The local limits, which follow what the store says.
        store: The store.
        gateway: What tells this gateway from others; processes with one table are one gateway.
        process: What tells this process from others.
    """

    def __init__(self, limiter: Limiter, store: Store, gateway: str, process: str) -> None:
        self.limiter = limiter
        self.store = store
        self.gateway = gateway
        self.process = process
        self.gateways = 1  # that share the store, when it was last asked
        self.room = 1.0  # what a request of a rate counts, so that those which are away alone have their part
        self._seen_s = self._wary_s = 0.0
        self.remembered = 0  # refusals that the store was not asked for
        self._used: set[Account] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    def start(self) -> None:
        """Begin to tell the store that this gateway is there."""
        self._beating = asyncio.create_task(self._beat(), name="limits heartbeat")

    async def stop(self) -> None:
        """Tell the store what is still to be told, if it is there."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, *self._tasks, return_exceptions=True)
        for account in self._used:
            await self._tell(account)
        with contextlib.suppress(Unavailable):
            await self.store.script(_LEAVE, GATEWAYS, [self.gateway])

    def take(self, account: Account, now_s: float, tokens: int, cost: int) -> Hold | Refusal | Awaitable[Hold | Refusal]:
        """Take one request out of an account, as `Limiter.take` does; to be awaited where the store is asked."""
        if not self.store.available:
            return self.limiter.take(account, now_s, tokens, cost, self.gateways)
        remote: _Remote = account.remote or self._begin(account)
        refusal = remote.refusal
        if refusal is not None:
            if now_s < remote.until_s and tokens >= refusal.asked * (refusal.limit == "tokens_per_minute"):
                self.remembered += 1
                self.limiter.count(account, refusal)
                return Refusal(refusal.limit, refusal.value, max(remote.until_s - now_s, 0.001), refusal.asked)
            remote.refusal = None
        future: asyncio.Future[Hold | Refusal] = asyncio.get_running_loop().create_future()
        remote.asked.append((future, tokens, cost))
        self._request(account)
        return future

    def settle(self, hold: Hold, tokens: int, cost: int) -> None:
        """Put what a request truly used in place of what it reserved, here and in the store."""
        account = hold.account
        self.limiter.settle(hold, tokens, cost)
        remote: _Remote | None = account.remote
        if remote is None or not account.under_way:
            return
        remote.tokens += tokens
        remote.cost += cost
        if remote.refusal is not None and remote.refusal.limit != "requests_per_second":
            remote.refusal = None  # there may be room now
        if account.max_concurrent:
            self._request(account)
        elif not (remote.requested or remote.settling):
            remote.settling = True  # a request that comes meanwhile does not wait for this
            asyncio.get_running_loop().call_later(_SETTLE_S, self._settled, account)

    def _settled(self, account: Account) -> None:
        account.remote.settling = False
        self._request(account)

    def _begin(self, account: Account) -> _Remote:
        remote = account.remote = _Remote()
        self._used.add(account)
        return remote

    def _request(self, account: Account) -> None:
        """What came in the same turn of the loop is asked in one call."""
        remote: _Remote = account.remote
        if not remote.requested:
            remote.requested = True
            asyncio.get_running_loop().call_soon(self._go, account)

    def _go(self, account: Account) -> None:
        remote: _Remote = account.remote
        remote.requested = False
        if not remote.asking:
            remote.asking = True
            task = asyncio.get_running_loop().create_task(self._tell(account))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self, account: Account) -> None:
        """One call to the store: what was used, what is under way, what is asked; then the answers."""
        remote: _Remote = account.remote
        limiter = self.limiter
        asked, remote.asked = remote.asked, []
        try:
            if not self.store.available:
                raise Unavailable
            limiter.pay(account)  # what is under way here must not contain what is told as used
            tokens, cost = remote.tokens, remote.cost
            said = await self.store.script(_DECIDE, PREFIX + account.id, self._words(account, asked, tokens, cost))
            remote.tokens -= tokens
            remote.cost -= cost
            self._heard(account, asked, [int(word) for word in said])
        except (Unavailable, ValueError, TypeError, IndexError):
            remote.known = False
            self._lost.set()
            now_s = time.monotonic()
            for future, wanted, money in asked:
                if not future.done():
                    future.set_result(limiter.take(account, now_s, wanted, money, self.gateways))
        finally:
            remote.asking = False
            remote.told_s = time.monotonic()
            if remote.asked:
                self._request(account)

    def _words(
        self, account: Account, asked: list[tuple[asyncio.Future[Hold | Refusal], int, int]], tokens: int, cost: int
    ) -> list[str | int | float]:
        limits, remote = account.limits, account.remote
        day, month = self.limiter.today()
        ahead_s = tokens_ahead_s = 0.0
        if not remote.known:
            # The store may have forgotten, or not heard of, what was used while it was away.
            ahead_s, tokens_ahead_s = self.limiter.ahead(account, time.monotonic())
        words: list[str | int | float] = [self.process, int(_LEASE_S * _US), *self.limiter.mine(account)]
        words += [account.interval_s * _US * self.room, account.burst_s * _US, account.token_s * _US, account.max_concurrent, day, month]
        words += [limits.day_tokens, limits.month_tokens, int(limits.day_cost * NANO), int(limits.month_cost * NANO), tokens, cost]
        words += [ahead_s * _US, tokens_ahead_s * _US, self.room]
        for _, wanted, money in asked:
            words += [wanted, money]
        return words

    def _heard(self, account: Account, asked: list[tuple[asyncio.Future[Hold | Refusal], int, int]], said: list[int]) -> None:
        remote: _Remote = account.remote
        now_s = time.monotonic()
        if len(said) != 9 + 2 * len(asked):
            raise ValueError("an answer of another length")
        figures = State(account.key)
        figures.requests, figures.tokens, held = said[0] / _US, said[1] / _US, said[2]
        figures.day, figures.day_tokens, figures.day_cost, figures.month, figures.month_tokens, figures.month_cost = said[3:9]
        self.limiter.raise_to(account, now_s, figures)
        remote.known = True
        account.ahead_s, account.tokens_ahead_s = figures.requests, figures.tokens + held * account.token_s
        for number, (future, tokens, cost) in enumerate(asked):
            code, wait_us = said[9 + 2 * number : 11 + 2 * number]
            result: Hold | Refusal
            if code:
                result = self._refusal(account, code, wait_us / _US, tokens, cost, figures.tokens)
                self.limiter.count(account, result)
                self._remember(remote, result, now_s)
            else:
                result = Hold(account, tokens, cost, account.counted)
                self.limiter.add(result)
            if not future.done():
                future.set_result(result)
            elif isinstance(result, Hold):
                self.settle(result, 0, 0)  # who asked has gone

    def _refusal(self, account: Account, code: int, wait_s: float, tokens: int, cost: int, passing_s: float) -> Refusal:
        name = _LIMITS[code]
        limiter, asked = self.limiter, float(tokens)
        if name == "max_concurrent":
            wait_s = max(0.05, account.answer_s / account.max_concurrent)
        elif name == "tokens_per_minute":
            wait_s = 0.0 if wait_s < 0.0 else wait_s or min(MINUTE_S, max(passing_s, account.answer_s))
        elif name != "requests_per_second":
            wait_s = limiter.until_day() if name.startswith("day") else limiter.until_month()
            asked = cost / NANO if name.endswith("cost") else asked
        return Refusal(name, getattr(account.limits, name), wait_s, asked)

    def _remember(self, remote: _Remote, refusal: Refusal, now_s: float) -> None:
        wait_s = refusal.wait_s
        if refusal.limit == "max_concurrent":
            wait_s = min(wait_s, _PLACE_S)
        elif refusal.limit != "requests_per_second":
            wait_s = min(wait_s, _REMEMBER_S)
        remote.refusal, remote.until_s = refusal, now_s + wait_s

    async def _beat(self) -> None:
        """Tell the store every now and then that this gateway lives, and what long requests it has under way."""
        pause_s = _BEAT_S / 16  # those that start together, or find the store again, see each other soon
        while True:
            if self._lost.is_set() or not self.store.available:
                self._lost.clear()
                self._wary_s = time.monotonic() + _FEWER_S
                self.room = float(self.gateways)  # until it is known who is back, too
                pause_s = _BEAT_S / 16
            if self.store.available:
                with contextlib.suppress(Unavailable, ValueError, TypeError):
                    there, heard = await self.store.script(_BEAT, GATEWAYS, [self.gateway, int(_LEASE_S), _AWAY_S])
                    self._see(int(there), int(heard))
                now_s = time.monotonic()
                for account in self._used:
                    if now_s - account.remote.told_s > 2 * _BEAT_S and (any(self.limiter.mine(account)) or account.remote.tokens):
                        self._request(account)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), pause_s)
            pause_s = min(pause_s * 2, _BEAT_S)

    def _see(self, there: int, heard: int) -> None:
        """Believe at once that there are more gateways, and only after a while that there are fewer: the store may have been emptied."""
        now_s = time.monotonic()
        if there >= self.gateways or now_s > max(self._seen_s + _FEWER_S, self._wary_s):
            self.gateways, self._seen_s = max(1, there), now_s
        self.room = (self.gateways if now_s < self._wary_s else there) / max(1, heard)
