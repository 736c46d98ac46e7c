"""Prompts that a server still reads for clients that have left: each keeps its place until it is likely done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hx_gateway.fleet.deployment import Deployment
    from hx_gateway.fleet.endpoint import Endpoint

MOST_S = 30.0
"""Seconds after which a place is free again, whatever was expected."""


@dataclass(frozen=True, slots=True)
class Ghost:
    """A place that is taken though nobody waits for the answer.

    Args:
        deployment: Where.
        since_s: Monotonic time at which the client left.
        until_s: When the prompt is expected to be read.
    """

    deployment: Deployment
    since_s: float
    until_s: float


def haunt(deployment: Deployment, sent_s: float, expected_s: float, now_s: float) -> None:
    """A client left before the first byte of its answer; to be called once its own lease is back.

    Ollama reads a prompt to its end, whoever still waits for it, in as many slots as it has; others stop at once.

    Args:
        deployment: Where it was asked.
        sent_s: When, in monotonic time.
        expected_s: Seconds from then to the first byte, as expected.
        now_s: Monotonic time.
    """
    endpoint = deployment.endpoint
    left_s = min(sent_s + expected_s - now_s, MOST_S)
    if left_s <= 0.0 or endpoint.facts.engine != "ollama" or len(endpoint.ghosts) >= (endpoint.slots or 1):
        return
    deployment.in_flight += 1
    endpoint.in_flight += 1
    endpoint.pending_s += left_s
    endpoint.ghosts.append(Ghost(deployment, now_s, now_s + left_s))


def lay(endpoint: Endpoint, now_s: float) -> None:
    """Free the places of those whose time has passed, or whose model was found gone from memory since."""
    facts = endpoint.facts
    for ghost in endpoint.ghosts[:]:
        gone = facts.checked_s > ghost.since_s and facts.in_memory(ghost.deployment.upstream_model) is None
        if gone or ghost.until_s <= now_s:
            endpoint.ghosts.remove(ghost)
            ghost.deployment.in_flight -= 1
            endpoint.in_flight -= 1
            endpoint.pending_s = max(0.0, endpoint.pending_s - (ghost.until_s - ghost.since_s))
