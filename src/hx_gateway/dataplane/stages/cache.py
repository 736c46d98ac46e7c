"""Stage `cache`: gives the same answer again to the same request, and has identical requests at one time share one call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from time import time
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS, Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import TAKEN, Response, Stage
from hx_gateway.dataplane.answer import EVENTS, JSON
from hx_gateway.dataplane.batch import Batch
from hx_gateway.dataplane.flight import Flight, Flights, wanted
from hx_gateway.dataplane.shelf import Shelf
from hx_gateway.fleet.registry import Target
from hx_gateway.openai.canon import deterministic, fields_of, key_of, perhaps_deterministic
from hx_gateway.openai.replay import Recording, sound, without_comments
from hx_gateway.openai.requests import Facts, StreamOptions, asking_usage

ON, OFF, REFRESH = b"on", b"off", b"refresh"
_MOST_MARKS = 1024

Answer = Response | Exchange | None
"""What a stage may come to."""


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where the cache is off."""
    settings = gateway.config.cache
    if not settings.enabled:
        return None
    shelf, most = gateway.shelf, gateway.config.http.max_response_bytes
    flights = Flights(gateway.proxy, gateway.metering.finished, shelf.under_way, settings.max_entry_bytes, most)
    return Caching(shelf, flights, settings)


class Caching:
    """The stage.

    Args:
        shelf: Where answers are kept.
        flights: Calls under way.
        settings: The section ``cache`` of the configuration.
    """

    __slots__ = ("_flights", "_marks", "_settings", "_shared", "_shelf")

    def __init__(self, shelf: Shelf, flights: Flights, settings: Any) -> None:
        self._shelf = shelf
        self._flights = flights
        self._settings = settings
        self._shared = settings.scope == "shared"
        self._marks: dict[Target, bytes] = {}

    def __call__(self, exchange: Exchange) -> Answer | Awaitable[Answer]:
        wish, settings = exchange.notes.get(b"x-hx-cache"), self._settings
        if wish is not None:
            wish = wish.strip().lower()
            if wish not in (ON, OFF, REFRESH):
                raise Failure(errors.INVALID_VALUE, "X-HX-Cache: must be on, off or refresh", param="X-HX-Cache")
        fields = None
        if exchange.route is EMBEDDINGS:
            if wish != OFF and settings.embeddings:
                fields = fields_of(exchange.body)
                batch = Batch.read(exchange, fields, self._prefix(exchange)) if fields is not None else None
                if batch is not None:
                    return self._batch(exchange, batch, wish == REFRESH)
        elif wish != OFF and (wish is not None or settings.sampled or perhaps_deterministic(exchange.body)):
            fields = fields_of(exchange.body)
            if fields is not None and (wish is not None or settings.sampled or deterministic(fields)):
                return self._completion(exchange, key_of(self._prefix(exchange), fields, exchange.body), wish == REFRESH)
        exchange.limit_lines += b"x-hx-cache: off\r\n"
        return None

    def _prefix(self, exchange: Exchange) -> bytes:
        """What else must be the same: the route, the model as it is served now, and who asks."""
        target: Target = exchange.candidates
        mark = self._marks.get(target)
        if mark is None:
            if len(self._marks) >= _MOST_MARKS:  # of registries that are gone
                self._marks.clear()
            mark = self._marks[target] = mark_of(target)
        identity = exchange.identity
        who = "" if identity is None or self._shared else identity.id or f":{identity.name}"
        return mark + f"{exchange.route.name}\0{exchange.asked}\0{who}".encode("utf-8", "replace")

    # Completions

    def _completion(self, exchange: Exchange, key: bytes, fresh: bool) -> Answer | Awaitable[Answer]:
        if fresh:
            return self._start(exchange, key)
        answer = self._known(exchange, key)
        if answer is None and self._shelf.asks:
            return self._ask(exchange, key)
        return answer or self._start(exchange, key)

    def _known(self, exchange: Exchange, key: bytes) -> Response | None:
        """The answer that is there, or on its way."""
        now_ms = int(time() * 1000)
        recording = self._shelf.get(key, now_ms)
        if recording is not None:
            return self._hit(exchange, key, recording, now_ms, "hit")
        return TAKEN if self._joined(exchange, key) else None

    async def _ask(self, exchange: Exchange, key: bytes) -> Answer:
        (recording,) = await self._shelf.fetch((key,))
        if recording is not None:
            return self._hit(exchange, key, recording, int(time() * 1000), "hit_redis")
        return self._known(exchange, key) or self._start(exchange, key)  # it may have come meanwhile

    def _hit(self, exchange: Exchange, key: bytes, recording: Recording, now_ms: int, result: str) -> Response:
        form = wanted(exchange)
        made = recording.forms[form]
        if made is None:
            made = recording.forms[form] = recording.form(form)
            self._shelf.hold(key, recording)  # it takes more room now
        exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens = recording.tokens
        exchange.estimated = recording.estimated
        return self._again(exchange, made, EVENTS if form else JSON, recording.head, max(0, now_ms - recording.made_ms) // 1000, result)

    def _again(self, exchange: Exchange, body: bytes, kind: bytes, head: bytes, age_s: int, result: str) -> Response:
        exchange.cached = "hit"
        self._shelf.count(exchange.route.name, result)
        return Response(200, body, b"%b%b%bx-hx-cache: hit\r\nage: %d\r\n" % (kind, exchange.candidates.head, head, age_s))

    def _joined(self, exchange: Exchange, key: bytes) -> bool:
        flight = self._flights.by_key.get((key, shown(exchange))) if self._settings.collapse and not exchange.timeout_s else None
        if flight is None:
            return False
        self._shelf.count(exchange.route.name, "shared")
        flight.join(exchange)
        return True

    def _start(self, exchange: Exchange, key: bytes) -> Exchange:
        facts, body = exchange.facts, exchange.body
        if facts.stream and not facts.include_usage:  # others may want it, and it costs nothing
            body = asking_usage(body, facts)
            facts = msgspec.structs.replace(facts, stream_options=StreamOptions(True))
        return self._fly(exchange, key, body, facts, lambda flight, answer: self._record(flight, answer, key))

    def _fly(self, exchange: Exchange, key: bytes, body: bytes, facts: Facts, record: Callable[[Flight, bytes], Recording]) -> Exchange:
        self._shelf.count(exchange.route.name, "miss")
        # Who has a deadline of its own would impose it on others.
        shared = (key, shown(exchange)) if self._settings.collapse and not exchange.timeout_s else None
        return Flight(self._flights, shared, exchange, body, facts, record).exchange

    def _record(self, flight: Flight, answer: bytes, key: bytes) -> Recording:
        exchange = flight.exchange
        if flight.streamed:
            answer = without_comments(answer)
        tokens = (exchange.prompt_tokens, exchange.completion_tokens, exchange.cached_tokens)
        head = exchange.deployment.response_head
        recording = Recording(flight.streamed, answer, int(time() * 1000), head, tokens, exchange.estimated)
        if flight.keepable and len(answer) <= self._settings.max_entry_bytes and (not flight.streamed or sound(answer)):
            self._shelf.put(key, recording)
        return recording

    # Embeddings

    def _batch(self, exchange: Exchange, batch: Batch, fresh: bool) -> Answer | Awaitable[Answer]:
        if not fresh:
            batch.find(self._shelf, int(time() * 1000))
            if batch.missing and self._shelf.asks:
                return self._ask_batch(exchange, batch)
        return self._rest(exchange, batch, fresh)

    async def _ask_batch(self, exchange: Exchange, batch: Batch) -> Answer:
        missing = batch.missing
        for key, recording in zip(missing, await self._shelf.fetch(missing), strict=True):
            if recording is not None:
                batch.found[key] = recording
        return self._rest(exchange, batch, False, "hit_redis")

    def _rest(self, exchange: Exchange, batch: Batch, fresh: bool, result: str = "hit") -> Answer:
        """Answer a batch, or have what is missing of it made."""
        missing = batch.missing
        exchange.limit_lines += b"x-hx-cache-items: %d/%d\r\n" % (sum(key in batch.found for key in batch.keys), len(batch.keys))
        if not missing:
            exchange.prompt_tokens = exchange.completion_tokens = 0
            oldest_ms = min(recording.made_ms for recording in batch.found.values())
            age_s = max(0, int(time() * 1000) - oldest_ms) // 1000
            return self._again(exchange, batch.answer(exchange.asked, 0), JSON, batch.head, age_s, result)
        key = sha256(b"".join(batch.keys)).digest()
        if not fresh and self._joined(exchange, key):
            return TAKEN
        body, facts = batch.request(exchange, missing)
        return self._fly(exchange, key, body, facts, lambda flight, answer: batch.record(flight, answer, missing, self._shelf))


def shown(exchange: Exchange) -> bool:
    """Whether a client may see endpoints: only those of one mind may share an answer's head."""
    return exchange.identity is None or exchange.identity.show_endpoints


def mark_of(target: Target) -> bytes:
    """A digest of what serves a name: its models as their digests tell them, else by where they are, and what shapes answers."""
    kinds = set()
    for deployment in target.deployments:
        options = deployment.options
        kinds.add(
            repr((
                deployment.upstream_model, deployment.identity or str(deployment.endpoint.address), options.num_ctx, options.dimensions,
                options.truncate_dimensions, sorted(options.extra.items()),
            ))
        )  # fmt: skip
    return sha256("\0".join((target.name, *sorted(kinds))).encode("utf-8", "replace")).digest()
