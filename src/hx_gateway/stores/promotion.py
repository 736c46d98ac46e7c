"""How the scorers of a group that learns stand, and changing that by hand: for the command line, the API and the dashboard."""

from __future__ import annotations

from math import sqrt
from statistics import fmean, pvariance
from typing import TYPE_CHECKING, Any

from hx_gateway.access.moments import written
from hx_gateway.stores.learning import changed
from hx_gateway.stores.sql import learning

if TYPE_CHECKING:
    from hx_gateway.stores.learned_files import Standing
    from hx_gateway.stores.sql.engine import Store

_SHORTEST = 6  # beginning of a version that names it


class NotPossible(ValueError):
    """What is asked for does not go with how the group stands; the message says why."""


async def told(store: Store, group: str) -> dict[str, Any]:
    """How a group stands.

    Returns:
        ``group``, ``revision`` (0 before it has begun), ``judged`` (answers it learned from), ``trial`` (``answers`` in which both were
        compared, ``lead``: by how much the challenger's mean squared error is smaller, and its standard ``error``; both None before any),
        ``artifacts`` (``version``, ``role``, ``added_at``; an empty version was not trained) and ``events``, oldest first.

    Raises:
        StoreError: The database cannot be used.
    """
    revision, standing = await learning.standing(store, group)
    found = await learning.artifacts(store, group)
    trial = standing.trial
    return {
        "group": group,
        "revision": revision,
        "judged": standing.judged,
        "trial": {
            "answers": len(trial),
            "lead": round(-fmean(trial), 6) if trial else None,
            "error": round(sqrt(pvariance(trial) / len(trial)), 6) if trial else None,
        },
        "artifacts": [
            {"version": version, "role": role_of(standing, version), "added_at": written(created) if created else None}
            for version, created in {"": 0, **{version: created for version, (created, _) in found.items()}}.items()
            if version or role_of(standing, version)
        ],
        "events": [
            {"at": written(event.at_ms), "action": event.action, "version": event.version, "why": event.why} for event in standing.events
        ],
    }


def role_of(standing: Standing, version: str) -> str:
    """``champion``, ``challenger`` or nothing."""
    return "champion" if version == standing.champion else "challenger" if version == standing.challenger else ""


async def version_of(store: Store, group: str, start: str) -> str:
    """The version of a group's artifact that begins so.

    Raises:
        NotPossible: None does, or several do.
        StoreError: The database cannot be used.
    """
    found = [version for version in await learning.artifacts(store, group) if version.startswith(start.lower())]
    if len(found) != 1 or len(start) < _SHORTEST:
        raise NotPossible(f"{start!r} is not the version of one artifact of {group}, or less than its first {_SHORTEST} digits")
    return found[0]


async def promote(store: Store, group: str, version: str, now: bool, why: str) -> str:
    """Have an artifact run in shadow, or decide at once; the former champion is in shadow then.

    Returns its new role; nothing where it decides already.

    Args:
        store: The store.
        group: A group that learns.
        version: Of an artifact that the store has.
        now: Whether it decides at once.
        why: For the group's events.

    Raises:
        StoreError: The database cannot be used, or another gateway was faster.
    """
    revision, standing = await learning.standing(store, group)
    if version == standing.champion and (now or not standing.challenger):
        return ""
    if now or not revision:
        after = changed(standing, version, standing.champion if revision else None, ("promoted", version, why))
    else:
        after = changed(standing, standing.champion, version, ("shadow", version, why))
    await learning.write(store, group, revision, after)
    return role_of(after, version)


async def demote(store: Store, group: str, why: str) -> tuple[str, str]:
    """Take the champion out: the challenger decides, or without one the stated order until answers were judged.

    Returns:
        The versions that decided and that decides.

    Raises:
        NotPossible: There is no champion that could be taken out.
        StoreError: The database cannot be used, or another gateway was faster.
    """
    revision, standing = await learning.standing(store, group)
    champion, follower = standing.champion, standing.challenger or ""
    if not revision or champion == follower:
        raise NotPossible(f"{group} has no champion that could be taken out")
    await learning.write(store, group, revision, changed(standing, follower, None, ("demoted", champion, why)))
    return champion, follower
