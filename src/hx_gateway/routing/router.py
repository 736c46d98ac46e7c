"""Where a request goes: those that can take it are filtered out of a name's deployments, and a picker takes one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target
from hx_gateway.routing.pickers import Picker


class Router:
    """Chooses deployments.

    Args:
        picker: Returns the picker of a policy name; asked once a name.
    """

    __slots__ = ("_find", "_pickers")

    def __init__(self, picker: Callable[[str], Picker]) -> None:
        self._find = picker
        self._pickers: dict[str, Picker] = {}

    def choose(self, target: Target, tried: Sequence[Deployment], now_s: float) -> Deployment | None:
        """The deployment for the next attempt, or None when none can take it now.

        A deployment whose breaker is open is passed over, unless every one that is left is: the last member of a
        model is never shut out, it gets one trial at a time.

        Args:
            target: What the request asked for.
            tried: Deployments that already failed it.
            now_s: Monotonic time.
        """
        usable: list[Deployment] = []
        resting = False
        for deployment in target.deployments:
            endpoint = deployment.endpoint
            if (
                (deployment.max_concurrent and deployment.in_flight >= deployment.max_concurrent)
                or (endpoint.max_concurrent and endpoint.in_flight >= endpoint.max_concurrent)
                or not deployment.weight
                or (tried and deployment in tried)
            ):
                continue
            if deployment.breaker.state == "closed" and endpoint.breaker.state == "closed":
                usable.append(deployment)
            elif deployment.breaker.allows(now_s) and endpoint.breaker.allows(now_s):
                return deployment  # its time is up: this request is the one trial
            else:
                resting = True
        if usable:
            if len(usable) == 1:
                return usable[0]
            policy = target.policy
            picker = self._pickers.get(policy)
            if picker is None:
                picker = self._pickers[policy] = self._find(policy)
            return picker.pick(target, usable)
        if resting and not tried:
            for deployment in target.deployments:
                endpoint = deployment.endpoint
                if deployment.weight and not deployment.full and not (deployment.breaker.trial or endpoint.breaker.trial):
                    return deployment
        return None

    def retry_after_s(self, target: Target, now_s: float) -> float:
        """Seconds after which some deployment of the name may take a request; at least one second."""
        waits = [
            max(deployment.breaker.retry_after_s(now_s), deployment.endpoint.breaker.retry_after_s(now_s))
            for deployment in target.deployments
            if deployment.weight
        ]
        return max(1.0, min(waits, default=1.0))
