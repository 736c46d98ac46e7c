"""The names clients use, and the deployments behind each: one immutable snapshot, swapped whole on reload."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from hx_gateway.fleet.checks import Notice
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Endpoint
from hx_gateway.fleet.facts import CANNOT


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What a public name stands for.

    Args:
        name: The public name.
        kind: ``model``, ``alias`` or ``group``.
        deployments: Where it can be served, in configuration order.
        tier: Quality tier of a group (``fast``, ``balanced``, ``premium`` …), else empty.
        policy: Name of the balancing policy.
        mode: ``chat`` or ``embedding`` where every deployment is of that mode, else empty.
        head: Response header lines about the name, made once.
        down: Names that stand in when every deployment is down, failing or full.
        context: Names that stand in when the prompt is too long.
        excluded: Deployments that may not serve it, each with the reason in words (`fleet.checks`).
        whole: The target that this is a view of, for requests that not all of its deployments can take; else None.
        needs: What those requests need of a model, of `fleet.facts.CANNOT`.
        overrun: Whether their prompts are too long for every deployment of the whole.
        instead_of: The name it stands in for from the start; else empty.
        group: The group that it is, or is an alias of; else empty.
        tagging: How its deployments are chosen by the tags of requests: ``any`` or ``all`` of them; empty for not at all.
        hidden: Whether it is left out of lists of names.
        among: Of a view: those of the whole that the tags of its requests leave; None for all.
        lacking: What some of its deployments are known to be unable to do, of `fleet.facts.CANNOT`.
    """

    name: str
    kind: str
    deployments: tuple[Deployment, ...]
    tier: str = ""
    policy: str = ""
    mode: str = ""
    head: bytes = b""
    down: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    excluded: tuple[tuple[Deployment, str], ...] = ()
    whole: Target | None = None
    needs: frozenset[str] = frozenset()
    overrun: bool = False
    instead_of: str = ""
    group: str = ""
    tagging: str = ""
    hidden: bool = False
    among: tuple[Deployment, ...] | None = None
    lacking: frozenset[str] = field(init=False)
    _views: dict[object, Target] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        lacking = frozenset(ability for deployment in self.deployments for ability in deployment.unable if ability in CANNOT)
        object.__setattr__(self, "lacking", lacking)

    def view(
        self,
        kept: tuple[Deployment, ...],
        needs: Iterable[str] = (),
        overrun: bool = False,
        instead_of: str = "",
        among: tuple[Deployment, ...] | None = None,
    ) -> Target:
        """The same name with only those deployments; one object for all requests of a kind, made when first needed.

        Args:
            kept: Those of the deployments that can take the requests.
            needs: What these need of a model.
            overrun: Whether their prompts are too long for every deployment.
            instead_of: The name that was asked for, where this one stands in for it.
            among: Those that the requests' tags leave; None for all.
        """
        key = (kept, frozenset(needs), overrun, instead_of, among)
        found = self._views.get(key)
        if found is None:
            head = b"x-hx-fallback-from: %b\r\n" % instead_of.encode("ascii", "replace") if instead_of else b""
            found = self._views[key] = replace(
                self, deployments=kept, head=self.head + head, whole=self, needs=key[1], overrun=overrun, instead_of=instead_of, among=among
            )
        return found

    @property
    def unfit(self) -> list[tuple[Deployment, str]]:
        """Of a view: the deployments of the whole that cannot take its requests as well, each with the reason in words."""
        if self.whole is None:
            return []
        return [(one, self._why_not(one)) for one in self.whole.deployments if one not in self.deployments]

    def _why_not(self, deployment: Deployment) -> str:
        if self.among is not None and deployment not in self.among:
            return "its tags are not those that the request asks for"
        lacks = [words for ability, words in CANNOT.items() if ability in self.needs and ability in deployment.unable]
        if lacks:
            return f"its model is known not to {' or '.join(lacks)}"
        return f"the prompt is too long for its context of {deployment.context_length} tokens"


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A model that shall stay in a server's memory.

    Args:
        deployment: The model and the server.
        keep_alive: How long it stays there unused, as Ollama takes it: seconds, or text such as ``30m``; negative for ever.
    """

    deployment: Deployment
    keep_alive: str | int | float


class Registry:
    """An immutable view of the fleet.

    Args:
        targets: Every public name.
        endpoints: Every server, by its name.
        default: Name used when a request names no model; empty for none.
        forward_to: Where unknown ``/v1`` paths go; None to refuse them.
        placement: Models that shall stay in memory, by the operator's plan.
        notices: What the operator should know of the fleet (`fleet.checks`).
    """

    __slots__ = ("default", "endpoints", "forward_to", "notices", "placement", "targets")

    def __init__(
        self,
        targets: Mapping[str, Target],
        endpoints: Mapping[str, Endpoint],
        default: str = "",
        forward_to: Endpoint | None = None,
        placement: Iterable[Kept] = (),
        notices: Iterable[Notice] = (),
    ) -> None:
        self.targets = dict(targets)
        self.endpoints = dict(endpoints)
        self.default = default
        self.forward_to = forward_to
        self.placement = tuple(placement)
        self.notices = tuple(notices)

    def at(self, endpoint: Endpoint) -> set[Deployment]:
        """Every deployment at an endpoint, those excluded from serving a name included."""
        found: set[Deployment] = set()
        for target in self.targets.values():
            found.update(deployment for deployment in target.deployments if deployment.endpoint is endpoint)
            found.update(deployment for deployment, _ in target.excluded if deployment.endpoint is endpoint)
        return found

    def find(self, name: str) -> Target | None:
        """The target called ``name``, with Ollama's implied ``:latest`` understood both ways."""
        found = self.targets.get(name)
        if found is None:
            found = self.targets.get(name[:-7]) if name.endswith(":latest") else self.targets.get(name + ":latest")
        return found

    def nearest(self, name: str, allowed: Iterable[str] | None = None) -> list[str]:
        """Up to three names that look like ``name``."""
        return difflib.get_close_matches(name, list(self.targets) if allowed is None else list(allowed), n=3, cutoff=0.5)
