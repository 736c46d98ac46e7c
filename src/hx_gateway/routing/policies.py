"""Balancing policies by name: which terms count, how much, and how one candidate is picked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from random import random as chance
from typing import Any

from hx_gateway.core.plugins import find
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.pickers import BUILT_IN as PICKERS
from hx_gateway.routing.pickers import Picker
from hx_gateway.routing.terms import BUILT_IN as TERMS
from hx_gateway.routing.terms import EXCHANGED, PACED, Term

BAND_S = 0.005  # candidates this close to the best are as good: the least busy is taken, of equals any, so that no herd forms
BAND_SHARE = 0.02
_TO_BE_LOADED = 1e6  # as many requests as nobody has: of near ties a server that has the model, or loads it already, comes first


@dataclass(frozen=True, slots=True)
class Policy:
    """How a deployment is chosen.

    Args:
        name: Its name.
        terms: Name, function and weight of each term; the weight of ``price`` is seconds per unit of money. Without
            terms the picker alone decides.
        picker: Picks by its own rule; None takes the least total.
        affine: Whether what is cached where matters, so that prompts must be looked into.
        weights: How often the seconds of a term count, where that is not once.
        paced: Whether learned speeds matter.
    """

    name: str
    terms: tuple[tuple[str, Term, float], ...] = ()
    picker: Picker | None = None
    affine: bool = False
    weights: Mapping[str, float] = field(init=False)
    paced: bool = field(init=False)

    def __post_init__(self) -> None:
        weights = {name: weight for name, _, weight in self.terms if weight != 1.0 and name not in EXCHANGED}
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "paced", any(name in PACED for name, _, _ in self.terms))

    def seconds(self, ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> dict[str, float]:
        """The seconds of each term; times the `weights` they add up to the total that is compared."""
        return {
            name: term(ask, deployment, cached_tokens, now_s) * (weight if name in EXCHANGED else 1.0) for name, term, weight in self.terms
        }

    def best(self, totals: Sequence[float], usable: Sequence[Deployment], random: Callable[[], float] = chance) -> int:
        """The position of the least total; of near ties one that need not load the model, then the least busy, then at random.

        A second server that loads what another began to load a moment ago pushes out what somebody else will ask for. And as
        long as nobody knows how many requests a server takes at once, its total does not grow with them.
        """
        least = min(totals)
        limit = least + BAND_S if least < BAND_S / BAND_SHARE else least * (1.0 + BAND_SHARE)
        found, fewest, ties = 0, inf, 0
        for position, total in enumerate(totals):
            if total <= limit:
                endpoint = usable[position].endpoint
                load: float = endpoint.in_flight
                if endpoint.residency.managed and usable[position].upstream_model not in endpoint.residency.resident:
                    load += _TO_BE_LOADED
                if load < fewest:
                    found, fewest, ties = position, load, 1
                elif load == fewest:
                    ties += 1
                    if random() * ties < 1.0:
                        found = position
        return found


# Reading counts twice: the request waits for it, and so does whoever comes after it.
_INTELLIGENT = {"wait": 1.0, "load": 1.0, "prefill": 2.0, "decode": 1.0, "price": 0.0, "risk": 1.0}
_BY_TERMS: Mapping[str, Mapping[str, float]] = {
    "latency": {"first_byte": 1.0, "risk": 1.0},
    "cost": {"price": 1e6, "busy": 1e-3},
    "least_tokens": {"tokens": 1e-3},
    "intelligent": _INTELLIGENT,
}


def policy(name: str, own: Mapping[str, Any] | None = None, seconds_per_unit: float = 0.0) -> Policy:
    """The policy of that name.

    Args:
        name: Built in, an operator's own, or a plug-in picker's.
        own: Policies from the configuration: names to ``terms`` (name to weight) or ``picker``.
        seconds_per_unit: What one unit of money is worth in seconds, for `intelligent`.

    Raises:
        UnknownPlugin: There is none.
    """
    settings = (own or {}).get(name)
    if settings is not None and settings.terms:
        return _by_terms(name, settings.terms)
    if settings is not None:
        return Policy(name, picker=find("picker", settings.picker, PICKERS)())
    weights = _BY_TERMS.get(name)
    if weights is None:
        return Policy(name, picker=find("picker", name, PICKERS)())
    if name == "intelligent":
        weights = {**weights, "price": seconds_per_unit}
    return _by_terms(name, weights)


def _by_terms(name: str, weights: Mapping[str, float]) -> Policy:
    terms = tuple((term, find("term", term, TERMS), weight) for term, weight in weights.items() if weight)
    return Policy(name, terms, affine=any(term == "prefill" for term, _, _ in terms))
