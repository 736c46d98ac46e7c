"""One call on behalf of several identical requests: its answer is recorded, and told to each of them in the form it asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.context import NOBODY, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.dataplane.answer import EVENTS as EVENT_LINES
from hx_gateway.dataplane.answer import JSON, request_id
from hx_gateway.openai.replay import EVENTS, EVENTS_AND_USAGE, WHOLE, Recording, without_usage

if TYPE_CHECKING:
    from hx_gateway.dataplane.proxy import Proxy
    from hx_gateway.openai.requests import Facts

_log = logging.getLogger(__name__)

Key = tuple[bytes, bool]
"""Of a request as others may share it, and whether its client may see endpoints."""


def wanted(exchange: Exchange) -> int:
    """The form in which an exchange's client wants the answer, as `openai.replay` counts them."""
    facts = exchange.facts
    return WHOLE if not facts.stream else EVENTS_AND_USAGE if facts.include_usage else EVENTS


class Flights:
    """What all flights of a gateway share.

    Args:
        proxy: Tells observers of each request's end.
        settle: Gives back what the exchange of a flight holds of the gateway's own limits.
        by_key: Those that further requests may join; outlives a reload.
        max_entry_bytes: Largest answer that is recorded. Of a longer one, only what a slow client has not read yet is held.
        most_bytes: Most that is held for a slow client before the model server, and with it everyone, has to wait for it; largest
            answer that is collected for one who wants it whole.
    """

    def __init__(
        self, proxy: Proxy, settle: Callable[[Exchange], None], by_key: dict[Key, Flight], max_entry_bytes: int, most_bytes: int
    ) -> None:
        self.proxy = proxy
        self.settle = settle
        self.max_entry_bytes = max_entry_bytes
        self.most_bytes = most_bytes
        self.by_key = by_key


class Carried(Exchange):
    """The exchange of a flight: nobody's own, so that observers hear of its followers instead."""

    __slots__ = ("flight",)

    flight: Flight | None


class Follower:
    """One request that waits for a flight; owns its exchange.

    Args:
        flight: What it waits for.
        exchange: Whose client is told.
        first: Whether the flight was begun for it.
    """

    __slots__ = ("at", "exchange", "first", "flight", "opened", "paused", "want")

    def __init__(self, flight: Flight, exchange: Exchange, first: bool) -> None:
        self.flight = flight
        self.exchange = exchange
        self.first = first
        self.want = wanted(exchange)
        self.at = 0  # pieces of the answer it was told
        self.opened = False
        self.paused = False
        exchange.owner = self

    def client_gone(self) -> None:
        self.flight.left(self)

    def pause(self) -> None:
        self.paused = True
        self.flight.balance()

    def resume(self) -> None:
        self.paused = False
        self.flight.advance(self)
        self.flight.balance()


class Flight:
    """A call that goes on while anyone waits for it. It is the client side of its exchange.

    The first of those still waiting at its end is charged with it; the others share it for nothing.

    Args:
        flights: What it shares with others.
        key: What others may join it by; None for a flight of one.
        leader: The request it is begun for.
        body: The request's body, asking for usage where it asks for a stream.
        facts: Read of that body.
        record: Makes the recording of a complete answer, and keeps it where it may; gets the flight and the answer.
    """

    __slots__ = (
        "_base", "_bytes", "_forms", "_head", "_held", "_id_line", "_record", "_stalled", "_target", "exchange", "flights", "followers", "growing",
        "key", "over", "pieces", "streamed",
    )  # fmt: skip

    def __init__(
        self,
        flights: Flights,
        key: Key | None,
        leader: Exchange,
        body: bytes,
        facts: Facts,
        record: Callable[[Flight, bytes], Recording],
    ) -> None:
        self.flights = flights
        self.key = key
        self.streamed = facts.stream is True
        self.followers: list[Follower] = []
        self.pieces: list[bytes] = []  # of a stream; each whole events
        self.growing = True  # all of it is held: it may be recorded, and joined
        self.over = False  # nothing more will come
        self._base = 0  # pieces that are not held any more
        self._bytes = self._held = 0  # of the answer so far; of the pieces
        self._head = b""
        self._stalled = False
        self._forms: dict[int, bytes] = {}  # of the answer, as they were asked for
        self._record = record
        self._target: str = leader.candidates.name
        self._id_line = b"x-request-id: %b\r\n" % request_id(leader)
        self.exchange = carried = Carried(
            leader.id, leader.route, leader.method, leader.target, leader.notes, leader.forward, body, self, leader.received_s
        )
        carried.flight, carried.trace = self, leader.trace
        carried.identity, carried.facts, carried.asked = leader.identity, facts, leader.asked
        carried.candidates, carried.timeout_s = leader.candidates, leader.timeout_s
        self.followers.append(Follower(self, leader, True))
        if key is not None:
            flights.by_key[key] = self

    def __repr__(self) -> str:
        return f"<Flight {self.exchange!r} followers={len(self.followers)}{' over' if self.over else ''}>"

    @property
    def keepable(self) -> bool:
        """Whether its answer is that of the name that was asked for, and not of one that stood in."""
        return bool(self.exchange.candidates.name == self._target)

    # Those who wait

    def join(self, exchange: Exchange) -> None:
        """Another request waits for the same answer; it is told at once what is known of it."""
        follower = Follower(self, exchange, False)
        self.followers.append(follower)
        self.advance(follower)
        self.balance()

    def left(self, follower: Follower) -> None:
        """A client has gone: the flight ends when it was the last."""
        exchange = follower.exchange
        if not self.over and len(self.followers) == 1:
            self._abandon()  # what it came to is charged to this one
        exchange.outcome, exchange.status = errors.CLIENT_CLOSED, errors.CLIENT_CLOSED.status
        self._finish(follower)
        self.balance()

    def balance(self) -> None:
        """Let the model server wait while every client is slower than it, or one of them by more than may be held for it."""
        if self.over:
            return
        if not self.growing:
            self._trim()
        followers = self.followers
        stalled = bool(followers) and all(follower.paused for follower in followers)
        if not stalled and not self.growing and self._held > self.flights.most_bytes:
            stalled = all(follower.want for follower in followers)
        if stalled is not self._stalled:
            self._stalled = stalled
            owner = self.exchange.owner
            if owner is not None:
                owner.pause() if stalled else owner.resume()

    def advance(self, follower: Follower) -> None:
        """Tell a client that reads a stream what it has not been told."""
        if not follower.want or not self._head:
            return
        client = follower.exchange.client
        if not follower.opened:
            follower.opened = True
            client.begin(follower.exchange, 200, self._lines(follower, self._head))
        pieces, base = self.pieces, self._base
        last = base + len(pieces) - self.over
        while follower.at < last and not follower.paused:
            piece = pieces[follower.at - base]
            follower.at += 1
            client.write(piece if follower.want == EVENTS_AND_USAGE else _plain(piece))
        if self.over and follower.at == last and not follower.paused:
            self._finish(follower)
            client.end(pieces[-1] if follower.want == EVENTS_AND_USAGE else _plain(pieces[-1]))

    def _finish(self, follower: Follower) -> None:
        follower.exchange.owner = None
        self.followers.remove(follower)
        self.flights.proxy.finished(follower.exchange)

    def _lines(self, follower: Follower, lines: bytes) -> bytes:
        """Header lines made for the flight as one of its clients gets them."""
        exchange = follower.exchange
        if follower.first:
            return b"%b%bx-hx-cache: miss\r\n" % (lines, exchange.limit_lines)
        lines = lines.replace(self._id_line, b"x-request-id: %b\r\n" % request_id(exchange), 1)
        return b"%b%bx-hx-cache: shared\r\n" % (lines, exchange.limit_lines)

    # The client side

    def begin(self, exchange: Exchange, status: int, headers: bytes) -> None:
        """The head of a stream: of the answer, or because a sign of life is due."""
        self._head = headers
        for follower in tuple(self.followers):
            self.advance(follower)

    def write(self, data: bytes) -> None:
        """Events; or a sign of life, which goes to those who read along and is not kept."""
        if data[:1] == b":" and b"\ndata" not in data:
            for follower in self.followers:
                if follower.opened and not follower.paused:
                    follower.exchange.client.write(data)
            return
        self.pieces.append(data)
        self._held += len(data)
        self._bytes += len(data)
        if self.growing and self._bytes > self.flights.max_entry_bytes:
            self.growing = False
            self._leave_schedule()
        followers = self.followers
        for follower in followers if len(followers) == 1 else tuple(followers):
            self.advance(follower)
        if not self.growing:
            self.balance()

    def _trim(self) -> None:
        """Let go of what everyone was told; who wants it whole must be told all."""
        whole = [follower for follower in self.followers if not follower.want]
        if whole and self._bytes > self.flights.most_bytes:
            self._refuse(whole, Failure(errors.BAD_RESPONSE, "the answer is larger than http.max_response_bytes; ask for it as a stream"))
            if not self.followers:
                asyncio.get_running_loop().call_soon(self._abandon)  # not now: who calls us is in the middle of its answer
        done = min((follower.at for follower in self.followers), default=self._base)
        self._held -= sum(map(len, self.pieces[: done - self._base]))
        del self.pieces[: done - self._base]
        self._base = done

    def end(self, data: bytes = b"") -> None:
        """The last events, or the event that tells of a failure."""
        self.pieces.append(data)
        failed = self.exchange.outcome
        whole = [follower for follower in self.followers if not follower.want]
        recording = None
        if failed is None and (self.growing or whole):
            recording = self._recorded(b"".join(self.pieces), whole)
        for follower in tuple(self.followers):
            if follower.want:
                self.advance(follower)
            elif failed is not None:
                self._respond(follower, failed.status, self._head, JSON, data.removeprefix(b"data: ").strip())
            elif recording is not None:
                self._give(follower, recording)
        self._forget()

    def respond(self, exchange: Exchange, status: int, headers: bytes, body: bytes) -> None:
        """The whole answer, or a failure before anything of it was told."""
        self._head = headers
        followers = tuple(self.followers)
        if exchange.outcome is None:
            recording = self._recorded(body, followers)
            for follower in followers if recording is not None else ():
                assert recording is not None
                self._give(follower, recording)
        else:
            for follower in followers:
                self._respond(follower, status, headers, JSON, body)
        self._forget()

    def abort(self) -> None:
        """The answer is broken off."""
        for follower in tuple(self.followers):
            self._finish(follower)
            follower.exchange.client.abort()
        self._forget()

    def _recorded(self, body: bytes, waiting: tuple[Follower, ...] | list[Follower]) -> Recording | None:
        """The recording of a complete answer; None where there can be none, which those who need it have been told."""
        try:
            return self._record(self, body)
        except Failure as failure:
            self._refuse(waiting, failure)
        except Exception:  # blame: an answer our reading did not foresee is the server's
            _log.exception("the answer to request %s could not be recorded", self.exchange.id)
            self._refuse(waiting, Failure(errors.BAD_RESPONSE, "the model server's answer could not be read"))
        return None

    def _give(self, follower: Follower, recording: Recording) -> None:
        try:
            body = self._forms.get(follower.want)
            if body is None:
                body = self._forms[follower.want] = recording.form(follower.want)
        except Exception:  # blame: an answer our reading did not foresee is the server's
            _log.exception("the answer to request %s could not be given in another form", self.exchange.id)
            self._refuse((follower,), Failure(errors.BAD_RESPONSE, "the model server's answer could not be read"))
            return
        self._respond(follower, 200, self._head, EVENT_LINES if follower.want else JSON, body)

    def _respond(self, follower: Follower, status: int, headers: bytes, kind: bytes, body: bytes) -> None:
        lines = self._lines(follower, headers.replace(EVENT_LINES if kind is JSON else JSON, kind, 1))
        follower.exchange.status = status
        self._finish(follower)
        follower.exchange.client.respond(follower.exchange, status, lines, body)

    def _refuse(self, followers: tuple[Follower, ...] | list[Follower], failure: Failure) -> None:
        for follower in followers:
            self.followers.remove(follower)
            self.flights.proxy.refuse(follower.exchange, failure)

    # Its end

    def landed(self) -> None:
        """Its outcome is known, and not yet told: everyone who waits is told what it came to, and the first is charged with it."""
        self.over = True
        self._leave_schedule()
        carried = self.exchange
        self.flights.settle(carried)
        for number, follower in enumerate(self.followers):
            exchange = follower.exchange
            exchange.status, exchange.outcome = carried.status, carried.outcome
            exchange.deployment, exchange.candidates = carried.deployment, carried.candidates
            exchange.prompt_tokens, exchange.completion_tokens = carried.prompt_tokens, carried.completion_tokens
            exchange.cached_tokens, exchange.estimated = carried.cached_tokens, carried.estimated
            received_s = exchange.received_s
            exchange.call_s = max(carried.call_s, received_s) if carried.call_s else 0.0
            exchange.first_byte_s = max(carried.first_byte_s, received_s) if carried.first_byte_s else 0.0
            if number:
                exchange.cached = "shared"
                continue
            exchange.attempts, exchange.trail, exchange.queued_s = carried.attempts, carried.trail, carried.queued_s
            exchange.load_s = carried.load_s
            exchange.engine_s = carried.engine_s or (monotonic() - carried.call_s if carried.call_s else 0.0)

    def _abandon(self) -> None:
        """Nobody waits any more: stop the call."""
        owner = self.exchange.owner
        if owner is not None:
            owner.client_gone()
        self._forget()

    def _leave_schedule(self) -> None:
        if self.key is not None:
            if self.flights.by_key.get(self.key) is self:
                del self.flights.by_key[self.key]
            self.key = None

    def _forget(self) -> None:
        # They hold each other: without this only the collector frees them.
        self.exchange.client, self.exchange.flight = NOBODY, None


def _plain(piece: bytes) -> bytes:
    try:
        return without_usage(piece)
    except ValueError:  # not ours to judge: the reader of the stream let it pass
        return piece
