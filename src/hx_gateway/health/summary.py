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
        status: ``healthy`` when every deployment in service can be used, ``degraded`` when some cannot or a name has none,
            ``unhealthy`` when none can. A drained one is out of service by intent.
        models: Every public name, in configuration order.
        unavailable: Those of them without any deployment that can be used.
    """

    status: str
    models: tuple[str, ...]
    unavailable: tuple[str, ...]


def endpoint_usable(endpoint: Endpoint) -> bool:
    """Whether an endpoint is in service and nothing is known against it; one that was never probed counts as usable."""
    return not endpoint.drained and endpoint.facts.healthy is not False and endpoint.breaker.state == "closed"


def deployment_usable(deployment: Deployment) -> bool:
    """Whether nothing is known against a deployment or its endpoint, which is in service."""
    return deployment.breaker.state == "closed" and endpoint_usable(deployment.endpoint)


def why_unusable(deployment: Deployment, in_flight: int) -> str:
    """In a word why a deployment is not used, as `deployment_usable` has it; empty where it is.

    Args:
        deployment: It.
        in_flight: Requests under way there; a drained endpoint finishes them.
    """
    endpoint = deployment.endpoint
    if endpoint.drained:
        return "draining" if in_flight else "drained"
    if endpoint.facts.healthy is False:
        return "down"
    return "" if deployment_usable(deployment) else "resting"


def summarize(registry: Registry) -> Summary:
    """The state of the fleet, from what is known now; asks nobody."""
    verdicts: list[bool] = []
    unavailable = []
    for target in registry.targets.values():
        usable = [deployment_usable(deployment) for deployment in target.deployments if not deployment.endpoint.drained]
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
