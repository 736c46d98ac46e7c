"""Asks every endpoint of a configuration what it really has, without a token generated or a model loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from hx_gateway.assembly import Assembly
from hx_gateway.config.problems import Problem
from hx_gateway.config.schema import is_url
from hx_gateway.config.shape import dotted, nearest, shown
from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.fleet.checks import likeness
from hx_gateway.fleet.endpoint import Address
from hx_gateway.health.detect import ask
from hx_gateway.health.discovery import discover
from hx_gateway.health.monitor import Monitor
from hx_gateway.health.probes import CREDENTIALS, Unreachable
from hx_gateway.providers import BUILT_IN as PROVIDERS
from hx_gateway.upstream.fetch import fetch

if TYPE_CHECKING:
    from hx_gateway.config.load import Loaded
    from hx_gateway.fleet.deployment import Deployment
    from hx_gateway.fleet.endpoint import Endpoint
    from hx_gateway.fleet.registry import Registry

LIMIT_S = 15.0
"""Seconds for one endpoint, all questions together; endpoints are asked at the same time."""
_ROUNDS = 16  # of questions about an endpoint's models, each about some of them
_MOST_NAMED = 8
_DIALECTS = ("ollama", "openai")

Path = tuple[str | int, ...]


async def examine(loaded: Loaded) -> tuple[dict[str, Any], list[Problem]]:
    """What each endpoint has, and what of it does not fit the configuration.

    Args:
        loaded: The configuration. Without models and endpoints the usual ports of this machine are asked.

    Returns:
        Plain data: under ``endpoints`` each with ``reachable``, ``error``, ``dialect`` (configured and found), ``engine``,
        ``version``, ``key``, ``slots`` and its ``models``. Then the findings, errors and warnings, each with the setting and the remedy.
    """
    # Without the plan of what is kept in memory: a check loads nothing.
    config = loaded.config.model_copy(update={"placement": {}})
    provider_named = cache(lambda name: find("provider", name, PROVIDERS)())
    try:
        assembly = Assembly(config, provider_named)
        if not config.models and not config.endpoints:
            for found in await discover(fetch, config.service.port):
                assembly.found(found.name, found.address, found.provider)
        registry = assembly.registry()
    except UnknownPlugin as error:
        return {"endpoints": []}, [Problem("", str(error))]
    endpoints = registry.endpoints
    examination = _Examination(loaded)
    monitor = Monitor(lambda: registry, LIMIT_S, fetch=fetch, provider_named=provider_named)
    seen = dict(zip(endpoints.values(), await asyncio.gather(*(examination.ask(monitor, one) for one in endpoints.values())), strict=True))
    registry = assembly.registry()  # now with the models that the endpoints told of
    for endpoint, entry in seen.items():
        examination.judge_endpoint(endpoint, entry)
        deployments = sorted(registry.at(endpoint), key=lambda one: (one.model, one.upstream_model))
        entry["models"] = [examination.judge_model(deployment, entry) for deployment in deployments]
    examination.judge_names(registry)
    order = {"error": 0, "warning": 1}
    return {"endpoints": list(seen.values())}, sorted(examination.findings, key=lambda one: order[one.level])


class _Examination:
    """One look at the fleet: asks, compares, and collects findings."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._config = loaded.config
        self.findings: list[Problem] = []

    async def ask(self, monitor: Monitor, endpoint: Endpoint) -> dict[str, Any]:
        """Everything an endpoint tells, which the monitor writes into its facts; returns what else there is to report."""
        configured = endpoint.provider.name if endpoint.provider is not None else None
        found, key, why = None, None, f"no answer within {LIMIT_S:g} s"
        facts = endpoint.facts
        try:
            async with asyncio.timeout(LIMIT_S):
                (found, _), why = await asyncio.gather(ask(fetch, endpoint), _unreachable(endpoint))
                if found is not None:
                    for _ in range(_ROUNDS):
                        await monitor.check(endpoint)
                        if facts.engine != "ollama" or not facts.healthy or all(model.studied for model in facts.about.values()):
                            break
                    key = await _key(endpoint)
        except TimeoutError:
            pass  # what was told until then is reported
        return {
            "name": endpoint.name,
            "url": str(endpoint.address),
            "reachable": found is not None,
            "error": None if facts.healthy else facts.error or why or None,
            "dialect": {"configured": configured, "found": found if key != "refused" else None},
            "engine": facts.engine or None,
            "version": shown(facts.version) or None,
            "key": key,
            "slots": facts.slots or None,
        }

    def judge_endpoint(self, endpoint: Endpoint, entry: dict[str, Any]) -> None:
        """Compare an endpoint with what is configured of it."""
        path = self._paths(endpoint)
        section = path[:-1] if path and path[-1] == "url" else path[:2] if path and path[0] == "models" else path
        configured, found = entry["dialect"]["configured"], entry["dialect"]["found"]
        if not entry["reachable"]:
            self._find(path, f"{endpoint.name} cannot be reached: {entry['error']}; start the server, or correct the address")
        elif entry["key"] == "refused":
            remedy = "correct the key" if endpoint.api_key else "give the key it wants"
            self._find((*section, "api_key"), f"{endpoint.name} refuses the gateway's credentials; {remedy}")
        elif configured in _DIALECTS and found is not None and configured != found:
            works = "it works, without what Ollama's own dialect adds" if found == "ollama" else "requests would fail"
            level = "warning" if found == "ollama" and not entry["error"] else "error"
            remedy = f"set provider: {found}, or leave it out"
            self._find(
                (*section, "provider"), f"{endpoint.name} is configured as {configured} and speaks {found}: {works}; {remedy}", level
            )
        elif entry["error"]:
            loading = "loading" in entry["error"]
            message = f"{endpoint.name} answers, but not well: {entry['error']}" + ("; wait for it" if loading else "")
            self._find(path, message, "warning" if loading else "error")

    def judge_model(self, deployment: Deployment, entry: dict[str, Any]) -> dict[str, Any]:
        """Compare a model at an endpoint with what is configured of it; returns what is known of it there."""
        endpoint, wanted, name = deployment.endpoint, deployment.upstream_model, deployment.model
        facts, options = endpoint.facts, deployment.options
        about = facts.of(wanted)
        listed = bool(facts.models) or facts.engine == "ollama"
        offered = (about is not None or wanted in facts.models) if facts.healthy and listed else None
        held = facts.in_memory(wanted)
        width = about.embedding_length if about is not None else 0
        path: Path = ("models", name)
        if offered is False:
            has = ", ".join(shown(one) for one in facts.models[:_MOST_NAMED]) + (" …" if len(facts.models) > _MOST_NAMED else "")
            pull = f"; pull it there (ollama pull {wanted})" if facts.engine == "ollama" else ""
            remedy = nearest(wanted, facts.models) or pull or "; name one it offers"
            self._find((*path, "upstream_model"), f"{endpoint.name} does not offer {wanted}; it offers {has or 'no model'}{remedy}")
        elif about is not None:
            if about.name != wanted and about.name.removesuffix(":latest") != wanted.removesuffix(":latest"):
                self._find(
                    (*path, "upstream_model"),
                    f"{endpoint.name} has one model, {shown(about.name)}, and answers with it to any name",
                    "warning",
                )
            if options.dimensions and width and options.dimensions != width and not options.truncate_dimensions:
                message = (
                    f"its embeddings at {endpoint.name} have {width} dimensions, not {options.dimensions}; every answer would be refused"
                )
                self._find((*path, "dimensions"), f"{message}: set {width}, or truncate_dimensions: true where the model allows that")
            able = {"chat": "completion", "embedding": "embedding"}.get(deployment.mode, "")
            if able in about.unable:
                self._find(
                    (*path, "mode"), f"{shown(about.name)} at {endpoint.name} has no capability {able}; correct mode or upstream_model"
                )
            if options.num_ctx and about.trained_context and options.num_ctx > about.trained_context:
                message = f"{options.num_ctx} is more than the {about.trained_context} tokens the model at {endpoint.name} was trained for"
                self._find((*path, "num_ctx"), f"{message}, and which it is loaded with; set at most that", "warning")
        return {
            "model": name,
            "upstream_model": wanted,
            "offered": offered,
            "digest": (about.digest or None) if about is not None else None,
            "context_length": deployment.context_length or None,
            "dimensions": (width or None) if about is not None and "embedding" in about.able or deployment.mode == "embedding" else None,
            "capabilities": sorted(about.able) if about is not None and about.able else None,
            "in_memory": held is not None if facts.loaded is not None else None,
        }

    def judge_names(self, registry: Registry) -> None:
        """Compare the fleet as a whole with the names that clients will use."""
        config = self._config
        said: set[Deployment] = set()  # a model's own reason is not repeated for its groups
        for name, target in registry.targets.items():
            place = "groups" if target.kind == "group" else "models"
            for deployment, why in target.excluded if target.kind != "alias" else ():
                if deployment not in said:
                    said.add(deployment)
                    pin = deployment.options.digest
                    pinned = pin and not likeness(deployment).digest.startswith(pin)
                    path = ("models", deployment.model, "digest") if pinned else (place, name)
                    self._find(path, f"{name} will not be served by {deployment.endpoint.name}: {why}")
        for notice in registry.notices:
            target = registry.targets[notice.name]
            if not target.excluded:
                self._find(("groups" if target.kind == "group" else "models", notice.name), notice.says(), "warning")
        for name, model in config.models.items():
            if not (
                model.endpoint or model.endpoints or model.path or registry.targets[name].deployments or registry.targets[name].excluded
            ):
                self._find(("models", name), "no endpoint offers it; pull it somewhere, set upstream_model, or name its endpoint")
        for group, settings in config.groups.items():
            for position, member in enumerate(settings.models):
                if registry.find(member) is None:
                    hint = nearest(member, registry.targets) or "; pull it somewhere, or leave it out"
                    self._find(("groups", group, "models", position), f"no endpoint offers {member}{hint}")
        default = config.gateway.default_model
        if default and registry.find(default) is None:
            self._find(
                ("gateway", "default_model"), f"no endpoint offers {default}{nearest(default, registry.targets) or '; pull it somewhere'}"
            )

    def _paths(self, endpoint: Endpoint) -> Path:
        """The setting that an endpoint's address comes from; empty for one that was found on this machine."""
        config = self._config
        if endpoint.name in config.endpoints:
            return ("endpoints", endpoint.name, "url")
        for path, place in self._places():
            if is_url(place) and Address.parse(place) == endpoint.address:
                return path
        return ("gateway", "default_upstream") if config.gateway.default_upstream is not None else ()

    def _places(self) -> Iterator[tuple[Path, str]]:
        for name, model in self._config.models.items():
            if model.endpoint:
                yield ("models", name, "endpoint"), model.endpoint
            for position, place in enumerate(model.endpoints):
                yield ("models", name, "endpoints", position), place

    def _find(self, path: Path, message: str, level: str = "error") -> None:
        source, line = self._source(path)
        self.findings.append(Problem(dotted(path), message, source, line, 0, level))

    def _source(self, path: Path) -> tuple[str, int]:
        """The file and line, or the variable, that a setting comes from; of one that is not set, the nearest that is."""
        known = {name: source for name, source in self._loaded.sources.items() if source != "default"}
        for length in range(len(path), 0, -1):
            here = dotted(path[:length])
            source = next((source for name, source in known.items() if name == here or name.startswith((f"{here}.", f"{here}["))), "")
            if source:
                name, _, line = source.rpartition(":")
                return (name, int(line)) if name and line.isdigit() else (source, 0)
        return "", 0


async def _unreachable(endpoint: Endpoint) -> str:
    """Why no HTTP answer comes from an endpoint; empty when one does."""
    try:
        await fetch(endpoint, "/v1/models")
    except Unreachable as error:
        return str(error)
    return ""


async def _key(endpoint: Endpoint) -> str | None:
    """Whether the endpoint takes the gateway's credentials: ``accepted``, ``refused``, ``none``; None when that cannot be told."""
    facts = endpoint.facts
    refused = facts.error == CREDENTIALS
    if facts.engine == "llamacpp" and not refused:  # it lists its model to anybody, and answers only with the key
        try:
            refused = (await fetch(endpoint, "/props")).status in (401, 403)
        except Unreachable:
            return None
    if refused:
        return "refused"
    if not facts.healthy:
        return None
    return "accepted" if endpoint.api_key or b"authorization:" in endpoint.head else "none"
