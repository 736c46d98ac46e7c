"""Stage `embed`: has the questions of groups that learn with embeddings embedded, by a model behind the gateway and within a stated time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.core.context import CHAT, COMPLETIONS, EMBEDDINGS, Exchange
from hx_gateway.core.interfaces import Stage
from hx_gateway.dataplane.inside import Collector, embeddings_of, part_of
from hx_gateway.dataplane.learned import question_of
from hx_gateway.routing.learned.meaning import bounded, packed

if TYPE_CHECKING:
    from hx_gateway.routing.learned.choice import Learned

KNOWN, MADE, LATE, FAILED, RESTS = "known", "made", "late", "failed", "rests"
"""What became of the embedding of a question."""
_MOST = 64  # that are made at the same time
_REST_S = 1.0  # without new ones, after one was late or failed: a model that hangs holds up one request in a second, not all
_ANSWER_S = 30.0
_log = logging.getLogger(__name__)


def build(gateway: Any) -> Stage | None:
    """The stage for a gateway; none where no group learns with embeddings."""
    if not any(group.learned is not None and group.learned.embedding for group in gateway.config.groups.values()):
        return None
    return Embedding(gateway)


class Embedding:
    """Has questions embedded; each is made once, however many ask it, and what comes too late is kept for the next.

    They are counted in the ledger for the key that asked. Its limits and the models it may use are no matter here: the group decides to ask.

    Args:
        gateway: The gateway.
    """

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._making: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._rests_until_s = 0.0

    def __call__(self, exchange: Exchange) -> Awaitable[None] | None:
        """Wait for the embedding of a question that is not known."""
        learned: Learned | None = self._gateway.proxy.learned.get(exchange.candidates.group)
        if learned is None or learned.embedding is None or (exchange.route is not CHAT and exchange.route is not COMPLETIONS):
            return None
        question = question_of(exchange)
        if not question:
            return None
        if learned.meaning(question) is not None:
            _count(learned, KNOWN)
            return None
        key = (learned.group, question)
        task = self._making.get(key)
        if task is None:
            if monotonic() < self._rests_until_s or len(self._making) >= _MOST:
                _count(learned, RESTS)
                return None
            task = self._making[key] = asyncio.get_running_loop().create_task(self._make(learned, question, exchange))
            task.add_done_callback(lambda _: self._making.pop(key, None))
        return self._wait(learned, task)

    async def _wait(self, learned: Learned, task: asyncio.Task[str]) -> None:
        done, _ = await asyncio.wait({task}, timeout=learned.settings.embedding_wait_seconds)
        outcome = task.result() if done else LATE
        _count(learned, outcome)
        if outcome is not MADE:
            self._rests_until_s = monotonic() + _REST_S

    async def _make(self, learned: Learned, question: str, whole: Exchange) -> str:
        """Have a question embedded, as part of a request."""
        gateway, client, model = self._gateway, Collector(), learned.embedding or ""
        body = msgspec.json.encode({"model": model, "input": [bounded(question)], "encoding_format": "float"})
        identity = replace(whole.identity, models=None) if whole.identity is not None else None
        exchange = part_of(whole, gateway.ids(), EMBEDDINGS, b"/v1/embeddings", [], body, client, identity)
        exchange.timeout_s = _ANSWER_S
        gateway.inside(exchange)
        status, _, answer = await client.answer
        if status == 200 and exchange.outcome is None:
            try:
                learned.mean(question, packed(model, embeddings_of(answer, 1)[0]))
            except ValueError as error:
                _log.warning("group %s: the embedding of a prompt by %s cannot be used: %s", learned.group, model, error)
                return FAILED
            return MADE
        if status in (400, 413, 422):  # the model will never take it
            learned.mean(question, b"")
            return MADE
        return FAILED


def _count(learned: Learned, outcome: str) -> None:
    learned.embedded[outcome] = learned.embedded.get(outcome, 0) + 1
