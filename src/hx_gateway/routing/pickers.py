"""Picking one deployment out of those that can take a request; each picker is one rule, found by name."""

from __future__ import annotations

from collections.abc import Sequence
from random import random
from typing import Protocol

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target

BUILT_IN = {
    "round_robin": "hx_gateway.routing.pickers:RoundRobin",
    "weighted": "hx_gateway.routing.pickers:Weighted",
    "least_busy": "hx_gateway.routing.pickers:LeastBusy",
    "power_of_two": "hx_gateway.routing.pickers:PowerOfTwo",
}


class Picker(Protocol):
    """Chooses among usable deployments; ``usable`` is never empty."""

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        """One of ``usable``."""
        ...


class RoundRobin:
    """Each in turn, over all deployments of the name, so that one that is skipped does not shift the others."""

    def __init__(self) -> None:
        self._turns: dict[str, int] = {}

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        everyone = target.deployments
        turn = self._turns.get(target.name, 0)
        for offset in range(len(everyone)):
            deployment = everyone[(turn + offset) % len(everyone)]
            if deployment in usable:
                self._turns[target.name] = (turn + offset + 1) % len(everyone)
                return deployment
        return usable[0]


class Weighted:
    """At random, in proportion to the weights."""

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        total = sum(deployment.weight for deployment in usable)
        point = random() * total
        for deployment in usable:
            point -= deployment.weight
            if point < 0:
                return deployment
        return usable[-1]


def busyness(deployment: Deployment) -> float:
    """Requests under way on the endpoint per unit of weight."""
    return deployment.endpoint.in_flight / deployment.weight


class LeastBusy:
    """The one with the fewest requests under way for its weight; ties at random."""

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        best = usable[0]
        least = best.endpoint.in_flight / best.weight
        ties = 1
        for deployment in usable[1:]:
            load = deployment.endpoint.in_flight / deployment.weight
            if load < least:
                best, least, ties = deployment, load, 1
            elif load == least:
                ties += 1
                if random() * ties < 1:
                    best = deployment
        return best


class PowerOfTwo:
    """The less busy of two drawn at random: nearly as even as looking at all, and herds do not form."""

    def pick(self, target: Target, usable: Sequence[Deployment]) -> Deployment:
        count = len(usable)
        first = int(random() * count)
        if count == 1:
            return usable[0]
        second = int(random() * (count - 1))
        if second >= first:
            second += 1
        one, two = usable[first], usable[second]
        return one if busyness(one) <= busyness(two) else two
