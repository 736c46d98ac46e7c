"""From expected quality to a choice: so many strong calls and no more, or the cheapest model that is good enough."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from math import nextafter

from hx_gateway.routing.learned.model import Scorer, probability

_PACE = 0.002  # how far one request moves the limit
_FIRST = 100  # requests whose gains tell where the limit lies, where training does not


class ShareThreshold:
    """Sends a stated share of prompts to the strong model: those where it gains most.

    Every worker keeps its own, and where each keeps its share the whole does.

    Args:
        share: Of requests that may go there, 0 to 1.
        limit: What the strong model must be expected to gain at least; moves with what is asked, so that the share holds for other
            prompts too. None for unknown: the first prompts tell.
    """

    __slots__ = ("_seen", "limit", "share")

    def __init__(self, share: float, limit: float | None = None) -> None:
        self.share = share
        self.limit = limit or 0.0
        self._seen: list[float] | None = [] if limit is None else None  # in rising order

    @classmethod
    def of(cls, scorer: Scorer, weak: str, strong: str, share: float, meant: bool = False) -> ShareThreshold:
        """With the limit that prompts of the training set, judged by a scorer that had not seen them, ask for; ``meant`` with embeddings."""
        reference = scorer.reference(meant)
        if weak not in reference or strong not in reference:
            return cls(share)
        gains = sorted(
            (probability(better) - probability(worse) for worse, better in zip(reference[weak], reference[strong], strict=True)),
            reverse=True,
        )
        place = round(share * len(gains))
        limit = nextafter(gains[-1], -2.0) if place >= len(gains) else gains[place]
        return cls(share, limit)

    def takes(self, gain: float) -> bool:
        """Whether a prompt goes to the strong model; the limit then moves a little towards the share."""
        strong = gain > self.limit
        seen = self._seen
        if seen is None:
            self.limit = min(1.0, max(-1.0, self.limit + _PACE * (strong - self.share)))
        else:
            insort(seen, gain)
            self.limit = seen[min(len(seen) - 1, int((1.0 - self.share) * len(seen)))]
            if len(seen) == _FIRST:
                self._seen = None
        return strong


def cheapest_good(probabilities: Sequence[float], costs: Sequence[float], part: float) -> int:
    """The position of the cheapest model whose probability is at least ``part`` of the best one's; of equal costs the better."""
    enough = part * max(probabilities)
    good = [position for position, value in enumerate(probabilities) if value >= enough]
    return min(good, key=lambda position: (costs[position], -probabilities[position]))
