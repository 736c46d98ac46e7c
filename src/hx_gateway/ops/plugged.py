"""Imports the plug-ins that a configuration names, so that a wrong name is found by ``check`` and not at the start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hx_gateway.config.located import Path
from hx_gateway.config.problems import Finding
from hx_gateway.config.schema import ALGORITHMS, GatewayConfig, UpstreamSettings
from hx_gateway.core.plugins import UnknownPlugin, find
from hx_gateway.dataplane.pipeline import STAGES
from hx_gateway.providers import BUILT_IN as PROVIDERS
from hx_gateway.routing.pickers import BUILT_IN as PICKERS
from hx_gateway.routing.terms import BUILT_IN as TERMS

_BUILT_IN: Mapping[str, Mapping[str, str]] = {"stage": STAGES, "term": TERMS, "picker": PICKERS, "provider": PROVIDERS, "observer": {}}
_REMEDY = "; a plug-in is named module:attribute, or by its entry point, and is installed or in a folder on PYTHONPATH"


def _named(config: GatewayConfig) -> Iterator[tuple[str, Path, str | None]]:
    """What kind of plug-in each setting names, its path, and the name."""
    for section, setting, kind in (("pipeline", "stages", "stage"), ("monitoring", "observers", "observer")):
        for position, name in enumerate(getattr(getattr(config, section), setting)):
            yield kind, (section, setting, position), name
    for name, policy in config.policies.items():
        yield from (("term", ("policies", name, "terms", term), term) for term in policy.terms)
        yield "picker", ("policies", name, "picker"), policy.picker
    policies: list[tuple[Path, str | None]] = [(("load_balancer", "algorithm"), config.load_balancer.algorithm)]
    policies += [(("models", name, "policy"), entry.policy) for name, entry in config.models.items()]
    policies += [(("groups", name, "policy"), entry.policy) for name, entry in config.groups.items()]
    yield from (("picker", path, policy) for path, policy in policies if policy not in (*ALGORITHMS, *config.policies))
    for section, entries in (("models", config.models), ("endpoints", config.endpoints)):
        yield from (("provider", (section, name, "provider"), entry.provider) for name, entry in entries.items())
    if isinstance(config.gateway.default_upstream, UpstreamSettings):
        yield "provider", ("gateway", "default_upstream", "provider"), config.gateway.default_upstream.provider


def plugged(config: GatewayConfig) -> Iterator[Finding]:
    """What of the plug-ins named in a configuration cannot be loaded; nothing is built, and no network is asked."""
    for kind, path, name in _named(config):
        if name is not None:
            try:
                if not callable(find(kind, name, _BUILT_IN[kind])):
                    yield Finding(path, f"{name} is neither a function nor a class", on_key=kind == "term")
            except UnknownPlugin as error:
                yield Finding(path, f"{error}{_REMEDY}", on_key=kind == "term")
