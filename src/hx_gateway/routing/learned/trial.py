"""Champion and challenger: by which rule one takes the other's place, from judged answers that both had foretold."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, pvariance

from hx_gateway.routing.learned.features import Features
from hx_gateway.routing.learned.model import Scorer


def verdict(worse: Sequence[float], answers: int, errors: float) -> int:
    """Whether the challenger is measured better (1), worse (-1), or not told apart yet (0).

    Args:
        worse: For each judged answer by how much the challenger's squared error was larger than the champion's.
        answers: How many are needed.
        errors: Standard errors by which the mean must differ from 0.
    """
    if len(worse) < answers:
        return 0
    mean, margin = fmean(worse), errors * sqrt(pvariance(worse) / len(worse))
    return 0 if abs(mean) <= margin else -1 if mean > 0.0 else 1


def learn(champion: Scorer, challenger: Scorer | None, features: Features, model: str, score: float) -> float | None:
    """Have both learn from a judged answer; what each had expected is compared before.

    Returns:
        By how much the challenger's squared error was larger; None without a challenger, or for a model that is not in the group any more.
    """
    if model not in champion.models or (challenger is not None and model not in challenger.models):
        return None
    errors = []
    for scorer in (champion, challenger):
        if scorer is not None:
            errors.append((scorer.predict(features, (model,)).probabilities[0] - score) ** 2)
            scorer.update(features, model, score)
    return errors[1] - errors[0] if challenger is not None else None
