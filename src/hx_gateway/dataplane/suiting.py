"""Which deployments of a name can take a request at all, by what is known of their models: abilities and context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.facts import CANNOT
from hx_gateway.fleet.registry import Registry, Target
from hx_gateway.fleet.tags import tagged
from hx_gateway.openai.tags import tags_of
from hx_gateway.openai.wants import LEAST_BYTES_PER_TOKEN, least_tokens, wants

if TYPE_CHECKING:
    from hx_gateway.dataplane.proxy import Proxy

SHORT = 2048
"""Bytes of a body below which its prompt is taken to fit every context."""
_SOFT = "thinking"  # a model without it answers all the same: preferred, not required
_NAMED = 5  # models that a refusal names
_log = logging.getLogger(__name__)


def suited(exchange: Exchange, target: Target, measured: bool = False) -> Target:
    """The target, or a view of it with those deployments that can take the request.

    ``measured`` has the prompt measured even where that would not change who is left.

    A deployment of which nothing is known can. What a request only profits from (thinking) and what is too long for
    every one (the view's ``overrun``) removes nobody without whom none would be left: of contexts that are all too
    short the largest stay, since only the server can tell for certain.
    """
    needs = wants(exchange.route, exchange.facts, exchange.body, target.lacking) if target.lacking else {}
    kept, among, overrun = target.deployments, None, False
    if target.tagging and len(left := tagged(kept, tags_of(exchange), target.tagging == "any")) < len(kept):
        kept = among = left
    if needs:
        kept = tuple(one for one in kept if not any(ability in one.unable for ability in needs if ability != _SOFT))
    if len(exchange.body) > SHORT and kept:
        kept, overrun = _roomy(exchange, kept, measured or bool(target.context))
    if _SOFT in needs:
        kept = tuple(one for one in kept if _SOFT not in one.unable) or kept
    if len(kept) == len(target.deployments) and not overrun:
        return target
    return target.view(kept, needs, overrun, among=among)


def _roomy(exchange: Exchange, kept: tuple[Deployment, ...], measured: bool) -> tuple[tuple[Deployment, ...], bool]:
    """Those whose context the prompt may fit into, and whether there are none, so that it is those with the largest."""
    contexts = {one.context_length for one in kept}
    most = len(exchange.body) / LEAST_BYTES_PER_TOKEN
    if not any(0 < context < most for context in contexts) or (len(contexts) == 1 and not measured):
        return kept, False
    tokens = least_tokens(exchange.route, exchange.facts, exchange.body)
    roomy = tuple(one for one in kept if not 0 < one.context_length < tokens)
    if roomy:
        return roomy, False
    largest = max(contexts)
    return tuple(one for one in kept if one.context_length == largest), True


def settle(exchange: Exchange, target: Target, registry: Registry, proxy: Proxy) -> Target:
    """The deployments that a request goes to: of the name it asks for or, if it is too long for all, of one that stands in.

    Raises:
        Failure: No deployment can do what it asks for (400).
    """
    found = suited(exchange, target)
    if not found.deployments and target.deployments:
        raise _untagged(exchange, target) if found.among == () else _beyond(exchange, found, registry)
    if not found.overrun:
        return found
    identity = exchange.identity
    for name in target.context:
        other = registry.find(name)
        if other is None or other is target or (identity is not None and not identity.may_use(other.name)):
            continue
        room = suited(exchange, other, measured=True)
        if not room.overrun and served(exchange, room, proxy, monotonic()):
            return other.view(room.deployments, room.needs, False, target.name, room.among)
    return found


def roomier(exchange: Exchange, deployment: Deployment, tried: Sequence[Deployment]) -> Target | None:
    """Of the name a request goes to, those not tried that have more context than one which found the prompt too long; None for none."""
    target: Target = exchange.candidates
    kept = tuple(one for one in target.deployments if one.context_length > deployment.context_length and one not in tried)
    return (target.whole or target).view(kept, target.needs, False, target.instead_of, target.among) if kept else None


def served(exchange: Exchange, target: Target, proxy: Proxy, now_s: float) -> bool:
    """Whether some deployment would take the request now, found out without leaving a trace: the choice itself is made later."""
    try:
        return proxy.router.explain(proxy.ask_of(exchange, target), now_s).chosen is not None
    except Exception:  # blame: a plug-in's; the name it chooses for cannot stand in
        _log.exception("no choice could be made for %r, which might stand in for request %s", target.name, exchange.id)
        return False


def _untagged(exchange: Exchange, target: Target) -> Failure:
    """What to say when nothing of a name may take a request with its tags."""
    asked = sorted(tags_of(exchange))
    wanted = f"has {'any' if target.tagging == 'any' else 'all'} of the tags {', '.join(map(repr, asked))}" if asked else "has these tags"
    message = f"metadata.tags: no deployment of the model {exchange.asked!r} {wanted}; ask for others here or in the header X-HX-Tags, or for none"
    return Failure(errors.INVALID_VALUE, message, param="metadata.tags")


def _beyond(exchange: Exchange, found: Target, registry: Registry) -> Failure:
    """What to say when nothing of a name can do what is asked: the field, and who could."""
    assert found.whole is not None
    everyone = found.whole.deployments
    needs = wants(exchange.route, exchange.facts, exchange.body, found.whole.lacking)
    needs.pop(_SOFT, None)
    # What nobody there can do; where each can do a part, all of it.
    missing = {ability for ability in needs if all(ability in one.unable for one in everyone)} or set(needs)
    ability = next(name for name in CANNOT if name in missing)
    field = needs[ability]
    identity = exchange.identity
    able = [
        repr(name)
        for name, target in registry.targets.items()
        if target.kind != "alias"
        and not target.hidden
        and (identity is None or identity.may_use(name))
        and any(_can(one, needs) for one in target.deployments)
    ]
    lacks = " and ".join(f"does not {words}" for name, words in CANNOT.items() if name in missing)
    remedies = [] if field == "model" else ["send text only" if ability == "vision" else f"leave {field} out"]
    remedies.append(f"use {' or '.join(able[:_NAMED])}" if able else "add a model that can: of those here none is known to")
    return Failure(errors.UNSUPPORTED_PARAMETER, f"{field}: the model {exchange.asked!r} {lacks}; {', or '.join(remedies)}", param=field)


def _can(deployment: Deployment, needs: Mapping[str, str]) -> bool:
    """Whether a model is known to have all that is needed; that it writes text is not told apart by every server."""
    about = deployment.endpoint.facts.of(deployment.upstream_model)
    return about is not None and about.able >= needs.keys() - {"completion"} and needs.keys().isdisjoint(about.unable)
