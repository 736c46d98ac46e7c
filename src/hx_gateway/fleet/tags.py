"""Which deployments of a name a request may go to by its tags: a label of a deployment that the request asks for, requires or rules out."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hx_gateway.fleet.deployment import Deployment

DEFAULT = "default"
"""Tag of the deployments that take what asks for no tag, or for one that none of them has."""


def tagged(deployments: tuple[Deployment, ...], asked: Set[str], match_any: bool) -> tuple[Deployment, ...]:
    """Those that take a request.

    Args:
        deployments: All of a name.
        asked: The request's tags: ``tag`` asks for it, ``&tag`` requires it whatever else is asked for, ``!tag`` rules it out.
        match_any: Whether one of the tags asked for is enough; else a deployment must have all.

    Returns:
        Empty where none has what is asked for, though others have, and where none is tagged `DEFAULT`.
    """
    required = {tag[1:] for tag in asked if tag[0] == "&"}
    excluded = {tag[1:] for tag in asked if tag[0] == "!"}
    wanted = {tag for tag in asked if tag[0] not in "&!"}
    allowed = tuple(one for one in deployments if required <= one.tags and not excluded & one.tags)
    if wanted:
        found = tuple(one for one in allowed if (wanted & one.tags if match_any else wanted <= one.tags))
        if found or any(wanted & one.tags for one in deployments):
            return found
        return tuple(one for one in allowed if DEFAULT in one.tags)
    if required:
        return allowed
    pool = tuple(one for one in deployments if DEFAULT in one.tags) or deployments
    return tuple(one for one in pool if one in allowed)
