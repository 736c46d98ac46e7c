"""Checks what no single setting can tell: that names lead somewhere, once, and that the door is not left open."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path as FilePath

from hx_gateway.config.addresses import header_fault, host_fault, is_loopback, url_fault
from hx_gateway.config.environment import NAMES, endpoint_variable
from hx_gateway.config.located import Path
from hx_gateway.config.problems import Finding
from hx_gateway.config.schema import ALGORITHMS, GatewayConfig, GroupSettings, Secret, Settings, UpstreamSettings, is_url
from hx_gateway.config.shape import dotted, nearest, shown
from hx_gateway.config.storage import state_directory
from hx_gateway.config.weak_keys import NEW_KEY, fault, hash_fault
from hx_gateway.core.plugins import ENTRY_POINT_PREFIX


def discovers(config: GatewayConfig) -> bool:
    """Whether models can turn up that the configuration does not list."""
    return any(endpoint.discover for endpoint in config.endpoints.values()) or not (config.models or config.endpoints)


def public_names(config: GatewayConfig) -> Iterator[tuple[str, Path, str]]:
    """Every name a client may use, where it is given, and ``model``, ``group`` or ``alias``; repeated if given twice."""
    for kind, section, entries in (("model", "models", config.models), ("group", "groups", config.groups)):
        for name, entry in entries.items():
            yield name, (section, name), kind
            for position, alias in enumerate(entry.aliases):
                yield alias, (section, name, "aliases", position), "alias"
    for name in config.aliases:
        yield name, ("aliases", name), "alias"


def _unknown(config: GatewayConfig, path: Path, name: str, known: Collection[str], what: str = "model, alias or group") -> Finding:
    hint = nearest(name, known)
    if discovers(config):
        message = f"no {what} called {shown(name)} is configured; it works only once discovery finds it{hint}"
        return Finding(path, message, level="warning", rests_on="names")
    return Finding(path, f"there is no {what} called {shown(name)}{hint}", rests_on="names")


def _names(config: GatewayConfig) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name, path, kind in public_names(config):
        here = kind if kind != "alias" else f"alias under {dotted(path[:2] if path[0] != 'aliases' else path[:1])}"
        if name in seen:
            message = f"the name {shown(name)} is taken already by the {seen[name]}; each public name stands for one thing"
            yield Finding(path, message, on_key=True)
        else:
            seen[name] = here
        if not name or any(character.isspace() or not character.isprintable() for character in name):
            yield Finding(path, "a name should have no spaces and no control characters, and not be empty")
    for name, target in config.aliases.items():
        path = ("aliases", name)
        if target not in seen:
            yield _unknown(config, path, target, [known for known in seen if known != name])
            continue
        chain = [name]
        while target in config.aliases and target not in chain:
            chain.append(target)
            target = config.aliases[target]
        if target == name:
            yield Finding(path, f"goes in a circle: {' -> '.join([*chain, name])}; point it at a model or group", rests_on="names")
    model_names = {known for known, path, _ in public_names(config) if path[0] == "models"}
    for name, group in config.groups.items():
        for position, member in enumerate(group.models):
            path = ("groups", name, "models", position)
            if member in config.groups and member not in model_names:
                yield Finding(path, f"{member} is a group; a group holds models only")
            elif member not in model_names:
                yield _unknown(config, path, member, model_names, "model")
            if member in group.models[:position]:
                yield Finding(path, f"{member} is listed twice")
        if group.learned is not None:
            yield from _learned(config, name, group)
    if not config.gateway.default_model and not config.gateway.model_routing_enabled:
        yield Finding(("gateway", "default_model"), "is needed when model_routing_enabled is false: every request goes to it")
    for path, wanted in _wanted(config):
        if wanted and wanted not in seen:
            yield _unknown(config, path, wanted, seen)


def _wanted(config: GatewayConfig) -> Iterator[tuple[Path, str | None]]:
    """Where public names are asked for."""
    yield ("gateway", "default_model"), config.gateway.default_model
    yield from ((("gateway", "hidden", position), name) for position, name in enumerate(config.gateway.hidden))
    keys = enumerate(config.keys.api_keys)
    yield from ((("keys", "api_keys", at, "models", place), name) for at, key in keys for place, name in enumerate(key.models or ()))
    for name, learned in ((name, group.learned) for name, group in config.groups.items() if group.learned is not None):
        yield ("groups", name, "learned", "embedding"), learned.embedding
        yield ("groups", name, "learned", "judge", "model"), learned.judge.model if learned.judge else None


def _reference(config: GatewayConfig, path: Path, text: str) -> Iterator[Finding]:
    """Faults of ``text``, which is an address or the name of an endpoint."""
    if text in config.endpoints:
        return
    if is_url(text):
        if message := url_fault(text):
            yield Finding(path, message)
    else:
        hint = nearest(text, config.endpoints) or "; an address starts with http:// or https://"
        yield Finding(path, f"there is no entry of this name in endpoints{hint}", rests_on="endpoints")


def _places(config: GatewayConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    variables: dict[str, str] = {}
    reserved = {variable for variable, _ in NAMES}
    for name, model in config.models.items():
        given = [key for key in ("endpoint", "endpoints", "path") if getattr(model, key)]
        if len(given) > 1:
            yield Finding(("models", name), f"has {' and '.join(given)}; keep one of them", on_key=True)
        if not given and not any(endpoint.discover for endpoint in config.endpoints.values()):
            yield Finding(("models", name), "needs an endpoint, a list of endpoints, or a path to a GGUF file", on_key=True)
        if model.endpoint is not None:
            yield from _reference(config, ("models", name, "endpoint"), model.endpoint)
        for position, text in enumerate(model.endpoints):
            yield from _reference(config, ("models", name, "endpoints", position), text)
            if text in model.endpoints[:position]:
                yield Finding(("models", name, "endpoints", position), "is listed twice")
        if model.path is not None and not FilePath(model.path).is_file():
            yield Finding(("models", name, "path"), "there is no such file on this machine", level="warning")
        variable = endpoint_variable(name)
        if variable in variables:
            level = "error" if environ.get(variable) else "warning"
            message = f"{variable} would override both this model and {variables[variable]}; rename one of them"
            yield Finding(("models", name), message, level=level, on_key=True)
        elif variable not in reserved:
            variables[variable] = name
    for name, endpoint in config.endpoints.items():
        if message := url_fault(endpoint.url):
            yield Finding(("endpoints", name, "url"), message)
        for header in endpoint.headers:
            if message := header_fault(header):
                yield Finding(("endpoints", name, "headers", header), message, on_key=True)
        if endpoint.tls_ca_file is not None and not FilePath(endpoint.tls_ca_file).is_file():
            yield Finding(("endpoints", name, "tls_ca_file"), "there is no such file on this machine", level="warning")
        if not endpoint.tls_verify:
            yield Finding(("endpoints", name, "tls_verify"), "anyone on the way can read and change its traffic", level="warning")
    upstream = config.gateway.default_upstream
    if isinstance(upstream, UpstreamSettings):
        if message := url_fault(upstream.url):
            yield Finding(("gateway", "default_upstream", "url"), message)
    elif upstream is not None:
        yield from _reference(config, ("gateway", "default_upstream"), upstream)


def stored_keys(config: GatewayConfig, environ: Mapping[str, str]) -> int:
    """How many keys the store had when a gateway with this state directory last read it."""
    try:
        # The file that access.snapshot writes; whether it is sound is for those who let in by it.
        found = json.loads((state_directory(config.storage, environ) / "keys.json").read_bytes())
        return len(found["snapshot"]["keys"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _keys(config: GatewayConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    names: dict[str, Path] = {}
    digests: dict[str, str] = {}
    master = config.keys.master_key
    if master is not None:
        digests[hashlib.sha256(master.reveal().encode()).hexdigest()] = "the master key"
        if message := fault(master.reveal()):
            yield Finding(("keys", "master_key"), message)
    for position, key in enumerate(config.keys.api_keys):
        path: Path = ("keys", "api_keys", position)
        if key.name in names or key.name in ("master", "anonymous"):
            yield Finding((*path, "name"), f"the name {shown(key.name)} is taken; each key needs its own")
        names[key.name] = path
        if (key.key is None) == (key.key_hash is None):
            yield Finding(path, "needs either key or key_hash", rests_on="keys")
        if key.key is not None:
            digest = hashlib.sha256(key.key.reveal().encode()).hexdigest()
            message = fault(key.key.reveal())
        elif key.key_hash is not None:
            digest = key.key_hash.removeprefix("sha256:").lower()
            message = hash_fault(key.key_hash)
        else:
            continue
        where: Path = (*path, "key" if key.key is not None else "key_hash")
        if message:
            yield Finding(where, message)
        if digest in digests:
            yield Finding(where, f"is the same key as {digests[digest]}; each entry needs its own")
        digests.setdefault(digest, f"{key.name}'s")
    if not digests and not is_loopback(config.service.host) and not stored_keys(config, environ):
        message = f"{shown(config.service.host)} is reachable from other machines and no key is configured"
        if config.storage.database_url is not None:
            message += ": only keys of the store are let in, and none is known of it yet; hx-gateway keys create makes one"
            yield Finding(("service", "host"), message, level="warning", rests_on="keys")
        else:
            message += f"; set keys.master_key (or MASTER_KEY), or bind to 127.0.0.1. A good key: {NEW_KEY}"
            yield Finding(("service", "host"), message, level="blocker", rests_on="keys")


TERMS = ("wait", "load", "prefill", "decode", "price", "risk", "first_byte", "busy", "tokens", "quality")
"""Terms of the score that are built in; any other is a plug-in's."""


def _own_policies(config: GatewayConfig) -> Iterator[Finding]:
    for name, own in config.policies.items():
        path: Path = ("policies", name)
        if bool(own.terms) == (own.picker is not None):
            yield Finding(path, "needs either terms or a picker", on_key=True)
        for term in own.terms:
            yield from _plugged("term", (*path, "terms", term), term, TERMS)
        if own.picker is not None:
            yield from _plugged("picker", (*path, "picker"), own.picker, ALGORITHMS)


def _fallbacks(config: GatewayConfig) -> Iterator[Finding]:
    known = {name for name, _, _ in public_names(config)}
    for name, given in config.fallbacks.items():
        if name not in known:
            yield _unknown(config, ("fallbacks", name), name, known)
        for cause, chain in (("down", given.down), ("context", given.context)):
            for position, target in enumerate(chain):
                path: Path = ("fallbacks", name, cause, position)
                if target == name:
                    yield Finding(path, "a name cannot stand in for itself")
                elif target not in known:
                    yield _unknown(config, path, target, known)


def _plugged(kind: str, path: Path, name: str, known: Collection[str]) -> Iterator[Finding]:
    """A fault where ``name`` is neither known, nor a dotted path, nor the entry point of an installed package."""
    if name in known or "." in name or ":" in name:
        return
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_PREFIX + kind).names
    if name not in installed:
        hint = nearest(name, [*known, *installed]) or f"; there are {', '.join([*known, *sorted(installed)])}"
        what = "term" if kind == "term" else "balancing policy"
        yield Finding(path, f"there is no {what} called {shown(name)}{hint}", on_key=kind == "term")


def _embedding_fallbacks(config: GatewayConfig) -> Iterator[Finding]:
    for name, fallback in config.fallbacks.items():
        members = (name,) if name in config.models else config.groups[name].models if name in config.groups else ()
        if any(config.models[member].mode == "embedding" for member in members if member in config.models):
            for cause in ("down", "context"):
                if getattr(fallback, cause):
                    message = f"{name} makes embeddings, and another model's cannot stand in for them; give {name} more endpoints instead"
                    yield Finding(("fallbacks", name, cause), message)


def _place(config: GatewayConfig, text: str) -> str:
    """An address or the name of an endpoint as an address, so that two ways to write one place are the same."""
    if text in config.endpoints:
        text = config.endpoints[text].url
    return text.removeprefix("http://").rstrip("/").removesuffix("/v1").removesuffix("/api").rstrip("/").lower()


def _placement(config: GatewayConfig) -> Iterator[Finding]:
    kept: dict[str, list[str]] = {}
    for name, plan in config.placement.items():
        path: Path = ("placement", name)
        model = config.models.get(name)
        if model is None:
            yield _unknown(config, path, name, config.models, "model")
        elif model.path is not None:
            yield Finding(path, "is served by the gateway itself, which keeps it in memory anyway; remove it here", on_key=True)
            continue
        places = ((model.endpoint,) if model.endpoint else model.endpoints) if model is not None else ()
        for position, text in enumerate(plan.keep):
            yield from _reference(config, (*path, "keep", position), text)
            if places and _place(config, text) not in {_place(config, place) for place in places}:
                message = f"{name} is not served there; its places are {', '.join(places)}"
                yield Finding((*path, "keep", position), message, rests_on="endpoints")
        for text in plan.keep or places:
            kept.setdefault(text, []).append(name)
    for name, endpoint in config.endpoints.items():
        wanted = kept.get(name, [])
        if endpoint.max_loaded_models and len(wanted) > endpoint.max_loaded_models:
            message = f"is less than the {len(wanted)} models that placement keeps there: {', '.join(wanted)}"
            yield Finding(("endpoints", name, "max_loaded_models"), message, level="warning")


def _stages(config: GatewayConfig) -> Iterator[Finding]:
    performance, keys = config.performance, config.keys
    limited = performance.rate_limiting_enabled and performance.rate_limit_rps > 0
    for stage, needed, effect in (
        ("authenticate", bool(keys.master_key or keys.api_keys), "every caller is let in without a key"),
        ("inspect", True, "no request is read, so none has a model"),
        ("resolve", True, "no request finds its model"),
        ("limits", limited or any(key.limits is not None for key in keys.api_keys), "limits of keys and rate_limit_rps do nothing"),
        ("cache", config.cache.enabled, "cache.enabled does nothing"),
        (
            "embed",
            any(one.learned is not None and one.learned.embedding for one in config.groups.values()),
            "learned.embedding does nothing",
        ),
        ("admission", performance.max_concurrent_requests > 0, "max_concurrent_requests does nothing"),
    ):
        if needed and stage not in config.pipeline.stages:
            yield Finding(
                ("pipeline", "stages"), f"does not list {stage}: {effect}, unless a stage of your own sees to it", level="warning"
            )


def _rest(config: GatewayConfig) -> Iterator[Finding]:
    if message := host_fault(config.service.host):
        yield Finding(("service", "host"), message)
    yield from _own_policies(config)
    yield from _fallbacks(config)
    yield from _embedding_fallbacks(config)
    yield from _placement(config)
    yield from _stages(config)
    policies = (*ALGORITHMS, *config.policies)
    yield from _plugged("picker", ("load_balancer", "algorithm"), config.load_balancer.algorithm, policies)
    for section, entries in (("models", config.models), ("groups", config.groups)):
        for name, entry in entries.items():
            if entry.policy is not None:
                yield from _plugged("picker", (section, name, "policy"), entry.policy, policies)
    if config.load_balancer.tag_filtering != "off" and not any(model.tags for model in config.models.values()):
        yield Finding(("load_balancer", "tag_filtering"), "does nothing: no entry of models has tags", level="warning")
    monitoring = config.monitoring
    taken = {"/healthz": "the liveness probe", "/readyz": "the readiness probe", "/models/status": "the status page"}
    for setting in ("health_check_endpoint", "metrics_endpoint"):
        path: str = getattr(monitoring, setting)
        if path in taken or path == "/v1" or path.startswith(("/v1/", "/admin")):
            yield Finding(("monitoring", setting), f"is the path of {taken.get(path, 'the API')}; choose another")
        taken[path] = f"monitoring.{setting}"
    if monitoring.prometheus_port is not None and monitoring.prometheus_port == config.service.port:
        yield Finding(("monitoring", "prometheus_port"), "is service.port; the metrics are there already, so leave it out")
    if config.performance.rate_limiting_enabled and not config.performance.rate_limit_rps:
        message = "is 0, so nothing is limited though rate_limiting_enabled is true; set requests per second"
        yield Finding(("performance", "rate_limit_rps"), message, level="warning")
    if config.cors.allow_credentials and "*" in config.cors.allow_origins:
        yield Finding(("cors", "allow_origins"), "should list origins by name when allow_credentials is true; browsers refuse *")
    if config.http.body_timeout_seconds < config.http.head_timeout_seconds:
        yield Finding(("http", "body_timeout_seconds"), "should not be less than head_timeout_seconds", level="warning")
    for setting in ("cert_file", "key_file"):
        if config.service.tls is not None and not FilePath(getattr(config.service.tls, setting)).is_file():
            yield Finding(("service", "tls", setting), "there is no such file on this machine", level="warning")


def _learned(config: GatewayConfig, name: str, group: GroupSettings) -> Iterator[Finding]:
    learned = group.learned
    assert learned is not None
    path, policy = ("groups", name, "learned"), config.policies.get(group.policy or config.load_balancer.algorithm)
    if len(group.models) < 2:
        yield Finding(path, "is for groups of several models; list more in models, from the weakest to the strongest")
    if learned.judge is not None and not config.ledger.bodies.enabled:
        yield Finding((*path, "judge"), "needs the bodies it judges; set ledger.bodies.enabled, or leave it out")
    if learned.strong_share is not None and learned.quality is not None:
        yield Finding((*path, "quality"), "is a target beside strong_share; leave one of them out")
    elif learned.strong_share is None and learned.quality is None and "quality" not in getattr(policy, "terms", ()):
        yield Finding(path, "decides nothing: set strong_share or quality, or give the group a policy of your own with the term quality")


def _secrets(value: object, path: Path) -> Iterator[tuple[Path, Secret]]:
    if isinstance(value, Secret):
        yield path, value
    elif isinstance(value, Settings):
        for name in type(value).model_fields:
            yield from _secrets(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _secrets(entry, (*path, name))
    elif isinstance(value, tuple):
        for position, entry in enumerate(value):
            yield from _secrets(entry, (*path, position))


def _literals(config: GatewayConfig) -> Iterator[Finding]:
    for path, secret in _secrets(config, ()):
        words = str(path[-1]).lower()
        if path[-2:-1] == ("headers",):
            if not secret.reveal().isascii():
                yield Finding(path, "should be ASCII text: it is sent as a header")
            hidden = any(part in words for part in ("auth", "key", "token", "secret", "cookie", "password"))
        elif path[0] == "storage":
            hidden = "@" in secret.reveal() or "password" in secret.reveal()
        else:
            hidden = True
            if path[-1] == "api_key" and not secret.reveal().isascii():
                yield Finding(path, "should be ASCII text: it is sent as a header")
        if hidden and secret.literal:
            yield Finding(path, "is written out in the file; move it to env:NAME or file:PATH", level="warning")


def crosscheck(config: GatewayConfig, environ: Mapping[str, str]) -> list[Finding]:
    """Everything wrong with a configuration whose single settings are all valid.

    Args:
        config: The configuration.
        environ: The environment, to tell whether an ambiguous ``<MODEL>_ENDPOINT`` is in use, and where the state directory is.
    """
    return [
        *_names(config),
        *_places(config, environ),
        *_keys(config, environ),
        *_rest(config),
        *_literals(config),
    ]
