"""Puts hits in order: rankings joined by reciprocal rank, and hits that are too much alike set back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import mul


def reciprocal(rankings: Sequence[Sequence[str]], k: float = 60.0) -> dict[str, float]:
    """Reciprocal rank fusion.

    Args:
        rankings: Ids, each ranking from the best on.
        k: The larger, the less the first ranks count more than the next.

    Returns:
        The score of each id, the sum of 1 / (k + rank) over the rankings, best first; of equal ones the first seen comes first.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1.0 / (k + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine similarity of two vectors of length 1."""
    return float(sum(map(mul, one, other)))


def diverse(relevance: Mapping[str, float], vectors: Mapping[str, Sequence[float]], limit: int, diversity: float) -> list[str]:
    """Maximal marginal relevance: one by one the hit that is relevant and unlike those before it.

    Args:
        relevance: Of each hit, higher is better; scaled here to 0 … 1.
        vectors: Of length 1, by id; a hit without one is like no other.
        limit: How many are wanted.
        diversity: Weight of being unlike, 0 … 1.

    Returns:
        Ids in the order chosen.
    """
    if not relevance:
        return []
    low, high = min(relevance.values()), max(relevance.values())
    worth = {id: (score - low) / (high - low) if high > low else 1.0 for id, score in relevance.items()}
    likeness = dict.fromkeys(worth, 0.0)
    chosen: list[str] = []
    while worth and len(chosen) < limit:
        best = max(worth, key=lambda id: (1.0 - diversity) * worth[id] - diversity * likeness[id])
        chosen.append(best)
        del worth[best]
        vector = vectors.get(best)
        if vector is not None:
            for id in worth:
                other = vectors.get(id)
                if other is not None:
                    likeness[id] = max(likeness[id], cosine(vector, other))
    return chosen
