"""Healthy, degraded or unhealthy: what probes and breakers together say about the fleet."""

from __future__ import annotations

from dataclasses import dataclass

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.registry import Registry


@dataclass(frozen=True, slots=True)
class Summary:
    """The state of the whole fleet.

    Args:
        status: ``healthy`` when every deployment can be used, ``degraded`` when some cannot, ``unhealthy`` when none can.
        models: Every public name, in configuration order.
        unavailable: Those of them without any deployment that can be used.
    """

    status: str
    models: tuple[str, ...]
    unavailable: tuple[str, ...]


def endpoint_usable(endpoint: Endpoint) -> bool:
    """Whether nothing is known against an endpoint; one that was never probed counts as usable."""
    return endpoint.facts.healthy is not False and endpoint.breaker.state == "closed"


def deployment_usable(deployment: Deployment) -> bool:
    """Whether nothing is known against a deployment or its endpoint."""
    return deployment.breaker.state == "closed" and endpoint_usable(deployment.endpoint)


def summarize(registry: Registry) -> Summary:
    """The state of the fleet, from what is known now; asks nobody."""
    verdicts: list[bool] = []
    unavailable = []
    for target in registry.targets.values():
        usable = [deployment_usable(deployment) for deployment in target.deployments]
        verdicts += usable
        if not any(usable):
            unavailable.append(target.name)
    if registry.forward_to is not None:
        verdicts.append(endpoint_usable(registry.forward_to))
    if not any(verdicts):
        status = "unhealthy"
    else:
        status = "healthy" if all(verdicts) and not unavailable else "degraded"
    return Summary(status, tuple(registry.targets), tuple(unavailable))
