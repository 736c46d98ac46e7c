"""Search over documents in the words of OpenAI's vector stores."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from hx_gateway.rag.bodies import Search
from hx_gateway.rag.points import Unfit

_RANGES = ("gt", "gte", "lt", "lte")
_DEPTH = 4


class Ranking(msgspec.Struct):
    """How hits are put in order."""

    ranker: Annotated[str, Meta(description="Any: the gateway's own is used.")] = "auto"
    score_threshold: Annotated[float, Meta(ge=0, le=1, description="Least cosine similarity of a hit.")] = 0.0


class VectorStoreSearch(msgspec.Struct, kw_only=True):
    """A search as OpenAI's clients send it."""

    query: Annotated[str | list[str], Meta(description="What is looked for; several texts are read as one.")]
    max_num_results: Annotated[int, Meta(ge=1, le=50, description="Most hits.")] = 10
    filters: Annotated[dict[str, Any] | None, Meta(description="Comparisons (eq, ne, gt, gte, lt, lte, in, nin), and and/or of them.")] = (
        None
    )
    ranking_options: Ranking | None = None
    rewrite_query: Annotated[Literal[False] | bool, Meta(description="Not done.")] = False

    @property
    def text(self) -> str:
        """The query as one text."""
        return self.query if isinstance(self.query, str) else "\n".join(self.query)


def translated(id: str, ask: VectorStoreSearch) -> Search:
    """The same search in the gateway's own words.

    Args:
        id: ``COLLECTION`` or ``COLLECTION:NAMESPACE``.
        ask: The search.

    Raises:
        Unfit: Its filters are malformed.
    """
    collection, _, namespace = id.partition(":")
    threshold = ask.ranking_options.score_threshold if ask.ranking_options is not None else 0.0
    return Search(
        collection=collection,
        namespace=namespace or None,
        query=ask.text,
        limit=ask.max_num_results,
        score_threshold=threshold or None,
        filter={"must": [_condition(ask.filters, "filters", 1)]} if ask.filters is not None else None,
    )


def _condition(given: Any, at: str, depth: int) -> dict[str, Any]:
    kind = given.get("type") if isinstance(given, dict) else None
    if kind in ("and", "or"):
        parts = given.get("filters")
        if not isinstance(parts, list) or not parts or depth >= _DEPTH:
            raise Unfit(f"{at}.filters should be a list of filters, not nested deeper than {_DEPTH}", f"{at}.filters")
        return {"must" if kind == "and" else "should": [_condition(part, f"{at}.filters[{n}]", depth + 1) for n, part in enumerate(parts)]}
    if kind not in ("eq", "ne", "in", "nin", *_RANGES) or "key" not in given or "value" not in given:
        raise Unfit(f"{at} should have type (eq, ne, gt, gte, lt, lte, in, nin), key and value, or type and, or with filters", at)
    key, value = given["key"], given["value"]
    if kind in _RANGES:
        return {"key": key, "range": {kind: value}}
    if kind in ("in", "nin"):
        match = {"key": key, "match": {"any": value}}
    else:
        # A number with a point is compared as a range: no store looks such values up.
        match = {"key": key, "range": {"gte": value, "lte": value}} if isinstance(value, float) else {"key": key, "match": {"value": value}}
    return {"must_not": [match]} if kind in ("ne", "nin") else match


def page(ask: VectorStoreSearch, result: dict[str, Any]) -> dict[str, Any]:
    """What was found, as OpenAI's clients read it."""
    return {
        "object": "vector_store.search_results.page",
        "search_query": [ask.query] if isinstance(ask.query, str) else ask.query,
        "data": [_shown(point) for point in result["points"]],
        "has_more": False,
        "next_page": None,
    }


def _shown(point: dict[str, Any]) -> dict[str, Any]:
    payload = point["payload"]
    plain = {name: value for name, value in payload["metadata"].items() if isinstance(value, str | int | float | bool)}
    return {
        "file_id": payload["document"],
        "filename": str(payload["metadata"].get("filename") or payload["document"]),
        "score": point["scores"].get("dense", point["score"]),
        "attributes": plain,
        "content": [{"type": "text", "text": payload["text"]}],
    }
