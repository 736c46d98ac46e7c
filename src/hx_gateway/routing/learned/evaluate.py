"""How good a router is: quality gained over the weak model, for every share of prompts sent to the strong one."""

from __future__ import annotations

import random
from collections.abc import Sequence


def gains(preference: Sequence[float], weak: Sequence[float], strong: Sequence[float], seed: int = 0) -> list[float]:
    """The performance gap recovered (PGR) after 0, 1, 2 ... prompts were sent to the strong model, most preferred first.

    Args:
        preference: For each prompt how much the router would have the strong model answer it; ties are broken at random.
        weak: How good the weak model's answer was, 0 to 1.
        strong: How good the strong model's was.
        seed: Of the order of ties.

    Returns:
        One more value than prompts, from 0 to 1 with the best routers above it on the way.

    Raises:
        ValueError: There are no prompts, or the two models are equally good: there is no gap to recover.
    """
    gap = sum(strong) - sum(weak)
    if not gap:
        raise ValueError("the two models are equally good on these prompts: there is no gap to recover")
    chance = random.Random(seed)
    order = sorted(range(len(preference)), key=lambda position: (-preference[position], chance.random()))
    curve = [0.0]
    for position in order:
        curve.append(curve[-1] + (strong[position] - weak[position]) / gap)
    return curve


def apgr(preference: Sequence[float], weak: Sequence[float], strong: Sequence[float], seed: int = 0) -> float:
    """The mean PGR over all shares (APGR): 0.5 for a router that knows nothing, more for a better one; arguments as of `gains`."""
    curve = gains(preference, weak, strong, seed)
    return (sum(curve) - (curve[0] + curve[-1]) / 2.0) / (len(curve) - 1)


def calls_for(preference: Sequence[float], weak: Sequence[float], strong: Sequence[float], recovered: float, seed: int = 0) -> float:
    """The least share of strong calls, 0 to 1, that recovers so much of the gap (CPT); other arguments as of `gains`."""
    curve = gains(preference, weak, strong, seed)
    enough = (position for position, gain in enumerate(curve) if gain >= recovered - 1e-12)
    return next(enough, len(curve) - 1) / (len(curve) - 1)
