"""Search over documents as the control plane offers it: the store, and what is done in the caller's name through the gateway's own pipeline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hx_gateway.config.schema import GatewayConfig
from hx_gateway.core import errors
from hx_gateway.core.context import EMBEDDINGS, FORWARD, Exchange, Route
from hx_gateway.core.errors import Failure, Unavailable
from hx_gateway.dataplane.inside import Collector, embeddings_of, part_of
from hx_gateway.dataplane.metering import Spent, prompt_tokens, used
from hx_gateway.health.summary import deployment_usable
from hx_gateway.rag.points import packed
from hx_gateway.rag.service import Embedded
from hx_gateway.rag.upsert import Limits
from hx_gateway.stores.vectors.opening import chosen

if TYPE_CHECKING:
    from hx_gateway.control.dependencies import Gateway
    from hx_gateway.fleet.endpoint import Endpoint
    from hx_gateway.fleet.registry import Registry

COLLECTION = "documents"
"""The collection of requests that name none, where the configuration names none either."""

_PING_S = 2.5


class _Ranked(msgspec.Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Ranking(msgspec.Struct):
    results: list[_Ranked] | None = None
    data: list[_Ranked] | None = None


_ranking = msgspec.json.Decoder(_Ranking).decode


def limits_of(config: GatewayConfig) -> Limits:
    """How much one call may bring."""
    rag = config.rag
    return Limits(rag.max_documents, rag.max_document_bytes, rag.batch, rag.concurrency)


def embedding_model(config: GatewayConfig, registry: Registry) -> str | None:
    """The model that makes the gateway's own embeddings; None where there is none."""
    if config.embeddings.model:
        return config.embeddings.model
    return next(
        (target.name for target in registry.targets.values() if target.deployments and target.deployments[0].mode == "embedding"), None
    )


async def vector_state(gateway: Gateway, admin: bool) -> tuple[bool | None, str, str]:
    """The vector store, asked now.

    Args:
        gateway: The gateway.
        admin: Whether who asks may see what is wrong.

    Returns:
        Whether Qdrant answers, None where it is not used; a sentence on Qdrant, and one on the store that is used.
    """
    name = chosen(gateway.config)
    if name == "embedded" and not gateway.backing.vectors_open:
        said, works = f"{name}, not needed so far", True
    else:
        try:
            async with asyncio.timeout(_PING_S):
                await (await gateway.backing.vectors()).ping()
            said, works = f"{name}, ok", True
        except (TimeoutError, Unavailable) as error:
            said, works = f"{name}, not available{f': {error}' if admin and str(error) else ''}", False
    if name == "qdrant":
        return works, said, said
    return None, "not configured" if gateway.config.storage.qdrant_url is None else f"configured, but rag.store is {name}", said


class Caller:
    """Who asks, as `rag.service.Asker`: what is done in their name counts for their key, as part of the call that was let in.

    Args:
        gateway: The gateway.
        whole: That call.
    """

    def __init__(self, gateway: Gateway, whole: Exchange) -> None:
        self._gateway = gateway
        self._whole = whole
        self.identity = whole.identity
        self.model = embedding_model(gateway.config, gateway.registry) or ""
        self.tokens: dict[str, int] = {}
        # Charged at its end, however that comes. The record of the whole has no tokens, since each part has a record of its own.
        whole.facts = self._spent = Spent()

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        """Embed texts.

        Raises:
            Failure: They cannot be.
        """
        body = msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})
        exchange, answer = await self._ask(EMBEDDINGS, b"/v1/embeddings", body)
        self.tokens[model] = self.tokens.get(model, 0) + max(0, exchange.prompt_tokens)
        try:
            found = [packed(vector) for vector in embeddings_of(answer, len(texts))]
        except ValueError as error:
            raise Failure(errors.BAD_RESPONSE, f"the embeddings of the model {model!r} cannot be used: {error}") from None
        target = exchange.candidates
        # What a server tells of itself little by little is no digest until it has told all.
        identities = {deployment.identity for deployment in target.deployments} if target is not None else set()
        digests = {identity for identity in identities if identity and "0" not in identity.split("/")}
        return Embedded(found, digests.pop() if len(digests) == 1 else "")

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        """Numbers of the texts with their scores, best first.

        Raises:
            Failure: There is no such model, or its server cannot.
        """
        target = self._gateway.registry.find(model)
        if target is None or (self.identity is not None and not self.identity.may_use(target.name)):
            kind = errors.MODEL_NOT_FOUND if target is None else errors.MODEL_NOT_ALLOWED
            raise Failure(
                kind,
                f"rerank.model: {'there is no' if target is None else 'the API key may not use the'} model {model!r}",
                param="rerank.model",
            )
        able = [deployment for deployment in target.deployments if deployment_usable(deployment)]
        if not able:
            raise Failure(
                errors.NO_DEPLOYMENT, f"rerank.model: no server can rerank with {model!r} now", param="rerank.model", retry_after_s=1.0
            )
        chosen = min(able, key=lambda deployment: deployment.endpoint.in_flight)
        body = msgspec.json.encode({"model": chosen.upstream_model, "query": query, "documents": texts, "top_n": len(texts)})
        _, answer = await self._ask(FORWARD, b"/v1/rerank", body, chosen.endpoint)
        try:
            told = _ranking(answer)
        except msgspec.DecodeError as error:
            raise Failure(errors.BAD_RESPONSE, f"the ranking by {model!r} cannot be read: {error}") from None
        ranked = [
            (one.index, next((score for score in (one.relevance_score, one.score) if score is not None), 0.0))
            for one in told.results or told.data or ()
        ]
        if sorted(number for number, _ in ranked) != list(range(len(texts))):
            raise Failure(errors.BAD_RESPONSE, f"the ranking by {model!r} does not have each text once")
        return sorted(ranked, key=lambda one: -one[1])

    async def _ask(self, route: Route, path: bytes, body: bytes, endpoint: Endpoint | None = None) -> tuple[Exchange, bytes]:
        """The body of a successful answer, and the exchange that brought it."""
        gateway, client, whole = self._gateway, Collector(), self._whole
        lines = [b"content-type: application/json\r\n"] if route is FORWARD else []
        exchange = part_of(whole, gateway.ids(), route, path, lines, body, client, self.identity)
        gateway.inside(exchange, endpoint)
        try:
            status, headers, answer = await client.answer
        except asyncio.CancelledError:
            if exchange.owner is not None:
                exchange.owner.client_gone()
            raise
        hold = whole.hold
        if hold is not None and hold.account.settles:
            tokens, cost = (prompt_tokens(body), 0) if exchange.upstream else used(exchange, hold, gateway.clock.monotonic())
            self._spent.tokens += tokens
            self._spent.cost += cost
        if status != 200 or exchange.outcome is not None:
            raise _failure(exchange, status, headers, answer)
        return exchange, answer


def _failure(exchange: Exchange, status: int, headers: bytes, answer: bytes) -> Failure:
    """What the answer to a part says of the whole."""
    kind = exchange.outcome or (errors.UPSTREAM_ERROR if status >= 500 or status < 400 else errors.UPSTREAM_REFUSED)
    said: Any = None
    with contextlib.suppress(msgspec.DecodeError):
        said = msgspec.json.decode(answer)
    error = said.get("error") if isinstance(said, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    wait = headers.partition(b"retry-after-ms: ")[2].partition(b"\r")[0]
    model = exchange.asked or exchange.upstream
    text = (
        f"{'embedding' if exchange.route is EMBEDDINGS else 'reranking'} with {model!r}: {message or f'the model server answered {status}'}"
    )
    return Failure(kind, text, retry_after_s=int(wait) / 1000 if wait.isdigit() else None)
