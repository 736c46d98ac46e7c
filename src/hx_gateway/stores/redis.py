"""Redis under a hard budget: a call is answered in time or not at all, and while it is away nobody waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections import deque
from collections.abc import Sequence
from hashlib import sha1
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hx_gateway.core.errors import Unavailable

try:
    import hiredis
except ModuleNotFoundError:  # the extra is not installed; said where a URL is configured
    hiredis = None  # type: ignore[assignment]

MISSING = "storage.redis_url is set, but what speaks to Redis is not installed: pip install 'hx-gateway[redis]'"
_PATIENCE_S = 0.5  # to connect and log in, in the background
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.25  # gateways come back together, or for a while some share and some do not
_STEADY_S = 5.0  # a connection that lasted this long was a good one
_GRACE = 0.1  # share of the budget in which an answer that has come, but was not read yet, still counts
_log = logging.getLogger(__name__)

Word = str | bytes | int | float


class RedisAddress:
    """Where a Redis is: ``redis://`` or ``rediss://[user:password@]host[:port][/db]``, or ``unix://[user:password@]path[?db=n]``.

    ``rediss`` takes ``ssl_ca_certs=FILE`` and ``ssl_cert_reqs=none`` in its query.

    Raises:
        ValueError: It is none of these; the message shows nothing of it.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ValueError("should start with redis://, rediss:// or unix://")
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        self.path = unquote(parts.path) if parts.scheme == "unix" else ""
        try:
            self.host, self.port = parts.hostname or "localhost", parts.port or 6379
        except ValueError:  # whose own text may have a part of the password in it
            raise ValueError("is no address: its host or port is malformed; in a password write / as %2F, @ as %40, : as %3A") from None
        database = query.get("db") or (parts.path.strip("/") if parts.scheme != "unix" else "") or "0"
        if not database.isdigit():
            raise ValueError("should end with the number of a database, or with nothing")
        self.database = int(database)
        self.tls: ssl.SSLContext | None = None
        if parts.scheme == "rediss":
            try:
                self.tls = ssl.create_default_context(cafile=query.get("ssl_ca_certs"))
            except OSError as error:
                raise ValueError(f"its ssl_ca_certs cannot be read: {error.strerror or error}") from None
            if query.get("ssl_cert_reqs") == "none":
                self.tls.check_hostname = False
                self.tls.verify_mode = ssl.CERT_NONE

    def __str__(self) -> str:
        """For people: without user and password."""
        return self.path or f"{self.host}:{self.port}"


class _Link(asyncio.Protocol):
    """One connection; calls are answered in their order."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self.loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = self.loop.create_future()
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def send(self, words: Sequence[Word]) -> asyncio.Future[Any]:
        """Send a command; its answer comes within the budget, or the connection is given up."""
        future: asyncio.Future[Any] = self.loop.create_future()
        transport = self._transport
        if transport is None or self.lost.done():
            future.set_exception(Unavailable("the connection is gone"))
            return future
        self._waiting.append((time.monotonic() + self.budget_s, future))
        transport.write(hiredis.pack_command(tuple(words)))  # type: ignore[arg-type]
        if self._timer is None:
            self._timer = self.loop.call_later(self.budget_s * (1.0 - _GRACE), self._look)
        return future

    def _look(self) -> None:
        # Not at once: this loop may be the slow one, with the answer waiting to be read.
        self._timer = self.loop.call_later(self.budget_s * _GRACE, self._judge)

    def _judge(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        late_s = time.monotonic() - self._waiting[0][0]
        if late_s >= -0.0005:
            self.give_up(f"no answer within {self.budget_s * 1000:g} ms")
        else:
            self._timer = self.loop.call_later(max(0.0, -late_s - self.budget_s * _GRACE), self._look)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                if not self._waiting:
                    raise hiredis.ProtocolError("an answer to nothing")
                _, future = self._waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except hiredis.HiredisError:
            self.give_up("what it answers is not Redis' protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self.give_up("it closed the connection")

    def give_up(self, reason: str) -> None:
        """Break the connection off; every call under way fails."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(Unavailable(reason))


class Redis:
    """A Redis that may go away at any time.

    The first call that fails or is late breaks the connection off, and every call after it fails at once, until one made in
    the background is answered in good time.

    Args:
        url: Its address, see `RedisAddress`.
        budget_s: Seconds that a call may take.

    Raises:
        ValueError: The URL is not one of Redis.
        Unavailable: The package that speaks to Redis is not installed.
    """

    def __init__(self, url: str, budget_s: float = 0.02) -> None:
        if hiredis is None:
            raise Unavailable(MISSING)
        self.address = RedisAddress(url)
        self.budget_s = budget_s
        self.reason = "not connected yet"
        self.losses = 0
        self._link: _Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._digests: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Redis {self.address} {self.reason or 'available'}>"

    @property
    def available(self) -> bool:
        """Whether it answered in time the last time it was asked."""
        return self._link is not None

    async def start(self) -> None:
        """Connect, and keep connected; goes on in the background where that takes longer than half a second."""
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(first), name="redis")
        await asyncio.wait({first}, timeout=_PATIENCE_S)

    async def stop(self) -> None:
        """Close the connection."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            link.give_up("the gateway stops")

    async def call(self, *words: Word) -> Any:
        """The answer to a command: bytes, int, None or a list of these.

        Raises:
            Unavailable: No answer in time, an error, or no Redis at all.
        """
        return self._checked(await self._linked().send(words))

    async def script(self, text: str, key: str, args: Sequence[Word]) -> Any:
        """The answer of a Lua script run on one key.

        Raises:
            Unavailable: As `call`.
        """
        digest = self._digests.get(text)
        if digest is None:
            digest = self._digests[text] = sha1(text.encode(), usedforsecurity=False).hexdigest()
        reply = await self._linked().send(("EVALSHA", digest, 1, key, *args))
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            reply = await self._linked().send(("EVAL", text, 1, key, *args))
        return self._checked(reply)

    def _linked(self) -> _Link:
        if self._link is None:
            raise Unavailable(self.reason)
        return self._link

    def _checked(self, reply: Any) -> Any:
        if isinstance(reply, hiredis.ReplyError):
            reason = f"it answered: {str(reply)[:200]}"
            if self._link is not None:
                self._link.give_up(reason)
                self._link = None
                self.reason = reason
            raise Unavailable(reason)
        return reply

    async def _keep(self, first: asyncio.Future[None]) -> None:
        pause_s, told = _FIRST_PAUSE_S, ""
        while True:
            since_s = time.monotonic()
            try:
                self._link = link = await self._connect()
            except TimeoutError:
                reason = "no connection within half a second"
            except Unavailable as error:
                reason = str(error)
            except ssl.SSLCertVerificationError as error:
                reason = f"its certificate is not good: {error.verify_message}"
            except ssl.SSLError as error:
                reason = f"TLS with it failed: {error.reason}"
            except OSError as error:  # whose own text has the address in it
                reason = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else "its name cannot be resolved"
            else:
                self.reason = ""
                _log.info("Redis at %s is there", self.address)
                if not first.done():
                    first.set_result(None)
                link.lost.add_done_callback(self._gone)
                reason = await asyncio.shield(link.lost)
                self.losses += 1
                told = ""
                if time.monotonic() - since_s > _STEADY_S:
                    pause_s = _FIRST_PAUSE_S
            self.reason = reason
            if reason != told:
                told = reason
                _log.warning("Redis at %s is away: %s; the gateway goes on without it and tries again", self.address, reason)
            if not first.done():
                first.set_result(None)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _gone(self, lost: asyncio.Future[str]) -> None:
        if self._link is not None and self._link.lost is lost:
            self._link = None
            self.reason = lost.result()

    async def _connect(self) -> _Link:
        loop, address = asyncio.get_running_loop(), self.address
        link = _Link(self.budget_s)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if address.path:
                    await loop.create_unix_connection(lambda: link, address.path)
                else:
                    await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)
                link.budget_s = _PATIENCE_S
                if address.password:
                    self._good(await link.send(("AUTH", *filter(None, (address.user, address.password)))))
                if address.database:
                    self._good(await link.send(("SELECT", address.database)))
                self._good(await link.send(("PING",)))
                asked_s = time.monotonic()
                self._good(await link.send(("PING",)))
                if time.monotonic() - asked_s > self.budget_s:
                    raise Unavailable(f"it is slow: an answer took more than {self.budget_s * 1000:g} ms")
                link.budget_s = self.budget_s
        except BaseException:
            link.give_up("it could not be used")
            raise
        return link

    def _good(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise Unavailable(f"it answered: {str(reply)[:200]}")
