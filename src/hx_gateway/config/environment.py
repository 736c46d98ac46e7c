"""What the environment overrides: the fixed names, ``<MODEL>_ENDPOINT``, and ``HX__SECTION__KEY`` for every setting."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hx_gateway.config.located import Path, parse, scalar
from hx_gateway.config.problems import Finding
from hx_gateway.config.secrets import Secret
from hx_gateway.config.shape import ROOT, Shape, at, below, nearest, shape_of

PREFIX = "HX__"
ENDPOINT_SUFFIX = "_ENDPOINT"

# Later rows win where two names set the same.
NAMES: tuple[tuple[str, Path], ...] = (
    ("API_GATEWAY_PORT", ("service", "port")),
    ("API_GATEWAY_HOST", ("service", "host")),
    ("API_GATEWAY_WORKERS", ("service", "workers")),
    ("API_GATEWAY_MEMORY_GB", ("performance", "memory_limit_gb")),
    ("API_GATEWAY_CPU_CORES", ("performance", "cpu_cores")),
    ("LOAD_BALANCER_ALGORITHM", ("load_balancer", "algorithm")),
    ("HEALTH_CHECK_INTERVAL", ("load_balancer", "health_check_interval")),
    ("CIRCUIT_BREAKER_THRESHOLD", ("load_balancer", "circuit_breaker_threshold")),
    ("CIRCUIT_BREAKER_TIMEOUT", ("load_balancer", "circuit_breaker_timeout")),
    ("DEFAULT_MODEL", ("gateway", "default_model")),
    ("MODEL_ROUTING_ENABLED", ("gateway", "model_routing_enabled")),
    ("INTELLIGENT_ROUTING", ("gateway", "intelligent_routing")),
    ("COST_OPTIMIZATION_ENABLED", ("gateway", "cost_optimization_enabled")),
    ("DISABLE_ADMIN_UI", ("gateway", "disable_admin_ui")),
    ("REQUEST_TIMEOUT_SECONDS", ("performance", "request_timeout_seconds")),
    ("MAX_CONCURRENT_REQUESTS", ("performance", "max_concurrent_requests")),
    ("RATE_LIMITING_ENABLED", ("performance", "rate_limiting_enabled")),
    ("RATE_LIMIT_RPS", ("performance", "rate_limit_rps")),
    ("PROMETHEUS_PORT", ("monitoring", "prometheus_port")),
    ("HEALTH_CHECK_ENDPOINT", ("monitoring", "health_check_endpoint")),
    ("METRICS_ENDPOINT", ("monitoring", "metrics_endpoint")),
    ("LITELLM_CONFIG", ("litellm", "config")),
    ("LITELLM_MASTER_KEY", ("litellm", "master_key")),
    ("LITELLM_MASTER_KEY", ("keys", "master_key")),
    ("MASTER_KEY", ("keys", "master_key")),
    ("EMBEDDING_MODEL", ("embeddings", "model")),
    ("EMBEDDING_AUTH_HEADER", ("embeddings", "auth_header")),
    ("GATEWAY_BASE", ("embeddings", "gateway_base")),
    ("DATABASE_URL", ("storage", "database_url")),
    ("REDIS_URL", ("storage", "redis_url")),
    ("QDRANT_URL", ("storage", "qdrant_url")),
    ("QDRANT_API_KEY", ("storage", "qdrant_api_key")),
    ("QDRANT_COLLECTION", ("storage", "qdrant_collection")),
)

_DEFINING = {"models": ("endpoint", "endpoints", "path"), "endpoints": ("url",), "groups": ("models",)}
_NOT_A_NAME = re.compile(r"[^A-Z0-9]")


def variable_part(name: str) -> str:
    """``name`` in upper case with everything but letters and digits as an underscore."""
    return _NOT_A_NAME.sub("_", name.upper())


def endpoint_variable(model: str) -> str:
    """The variable that overrides where ``model`` is served."""
    return variable_part(model) + ENDPOINT_SUFFIX


def general_variable(path: Path) -> str:
    """The ``HX__`` variable for the setting at ``path``."""
    return PREFIX + "__".join(variable_part(part) if isinstance(part, str) else str(part) for part in path)


class _Unusable(Exception):
    """A variable cannot be understood; the message says why."""


def _text(raw: str) -> str:
    if raw[0] in "'\"":
        inside = parse(raw).data
        if isinstance(inside, str):
            return inside
    return raw


def _value(variable: str, raw: str, shape: Shape) -> Any:
    if shape.nested or shape.items is not None:
        document = parse(raw)
        if document.faults:
            raise _Unusable(document.faults[0].message)
        if shape.items is not None and isinstance(document.data, str):
            return [item.strip() for item in document.data.split(",")]
        return document.data
    if shape.scalars == (Secret,):
        # Referred to, not copied: the configuration then says where it came from.
        return raw if raw.startswith(("env:", "file:")) else f"env:{variable}"
    return _text(raw) if shape.scalars == (str,) else scalar(raw.strip())


@dataclass(slots=True)
class Overlay:
    """What the environment did to the data of a file.

    Args:
        origins: Which variable set the value at a path.
        findings: What is wrong with variables.
    """

    origins: dict[Path, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def _match(parts: list[str], existing: Mapping[str, Any]) -> tuple[str, int] | None:
    """The existing name that the first of ``parts`` spell, and how many of them; the longest match wins."""
    for count in range(len(parts), 0, -1):
        spelled = "__".join(parts[:count])
        if spelled in existing:
            return spelled, count
        for folded in (str.lower, variable_part):
            found = [name for name in existing if folded(name) == folded(spelled)]
            if len(found) > 1:
                raise _Unusable(f"could mean {' or '.join(sorted(found))}; set it in the file")
            if found:
                return found[0], count
    return None


def _resolve(parts: list[str], data: Any) -> Path:
    """The path a general variable means, matched against the schema and the names in ``data``.

    Raises:
        _Unusable: There is no such setting.
    """
    shape, path, rest = ROOT, list[str | int](), list(parts)
    while rest:
        part: str | int
        if shape.section is not None:
            part, used = rest[0].lower(), 1
            if part not in shape.section.model_fields:
                raise _Unusable(f"there is no setting {rest[0]}{nearest(rest[0], shape.section.model_fields)}")
        elif shape.mapping is not None:
            matched = _match(rest, data) if isinstance(data, dict) else None
            whole = not shape_of(shape.mapping).nested
            part, used = matched or ("__".join(rest) if whole else rest[0], len(rest) if whole else 1)
        elif shape.items is not None:
            length = len(data) if isinstance(data, list) else 0
            if not (rest[0].isascii() and rest[0].isdigit() and len(rest[0]) < 6 and int(rest[0]) <= length):
                raise _Unusable(f"{rest[0]} is no position in the list; the next free one is {length}")
            part, used = int(rest[0]), 1
        else:
            raise _Unusable(f"{'.'.join(map(str, path))} is a single value; nothing is below it")
        if part == "":
            raise _Unusable("has an empty part; write HX__SECTION__KEY")
        path.append(part)
        rest = rest[used:]
        following = below(shape, part)
        if following is None:
            raise _Unusable(f"there is no setting {part}")
        shape = following
        if isinstance(data, dict):
            data = data.get(part)
        else:
            data = data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None
    return tuple(path)


def _put(data: dict[str, Any], path: Path, value: Any) -> None:
    """Set ``value`` at ``path``; a wrong type on the way is left for the schema to report."""
    target: Any = data
    for position, part in enumerate(path[:-1]):
        following = target[part] if isinstance(target, dict) and part in target else None
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            following = target[part]
        if following is None:
            following = [] if isinstance(path[position + 1], int) else {}
            _assign(target, part, following)
        elif isinstance(following, str) and (shape := at(path[: position + 1])) is not None and shape.section is not None:
            following = {"url": following}  # the short form of an upstream
            _assign(target, part, following)
        target = following
    _assign(target, path[-1], value)


def _assign(target: Any, part: str | int, value: Any) -> None:
    if isinstance(target, dict) and isinstance(part, str):
        target[part] = value
    elif isinstance(target, list) and isinstance(part, int):
        target[part : part + 1] = [value]


def _order(variable: str) -> tuple[list[tuple[int, str]], str]:
    """Sorts what is around something before it, and list positions by number."""
    parts = variable.split("__")
    return [(int(part) if part.isascii() and part.isdigit() and len(part) < 6 else 0, variable_part(part)) for part in parts], variable


def _fixed(data: dict[str, Any], environ: Mapping[str, str], overlay: Overlay) -> None:
    for variable, path in NAMES:
        raw = environ.get(variable, "")
        shape = at(path)
        if raw and shape is not None:
            _put(data, path, _value(variable, raw, shape))
            overlay.origins[path] = variable


def _general(data: dict[str, Any], environ: Mapping[str, str], overlay: Overlay) -> None:
    set_by: dict[Path, str] = {}
    created: dict[Path, str] = {}
    for variable in sorted((name for name in environ if name.startswith(PREFIX)), key=_order):
        raw = environ[variable]
        try:
            path = _resolve(variable[len(PREFIX) :].split("__"), data)
            shape = at(path)
            if not raw or shape is None:
                continue
            if path in set_by:
                raise _Unusable(f"sets the same as {set_by[path]}; keep one of them")
            value = _value(variable, raw, shape)
        except _Unusable as error:
            overlay.findings.append(Finding((), str(error), variable=variable))
            continue
        section = data.get(str(path[0]))
        if len(path) > 2 and path[0] in _DEFINING and (section is None or (isinstance(section, dict) and path[1] not in section)):
            created[path[:2]] = variable
        _put(data, path, value)
        set_by[path] = variable
        for other in [other for other in overlay.origins if other[: len(path)] == path]:
            del overlay.origins[other]
        overlay.origins[path] = variable
    for entry, variable in created.items():
        section = data[str(entry[0])]
        if isinstance(section, dict) and not any(key in section[entry[1]] for key in _DEFINING[str(entry[0])]):
            del section[entry[1]]
            hint = nearest(str(entry[1]), section) or f"; to add it, set {general_variable((*entry, _DEFINING[str(entry[0])][0]))}"
            overlay.findings.append(Finding((), f"there is no {str(entry[0])[:-1]} called {entry[1]}{hint}", variable=variable))


def _models(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    models = data.get("models")
    for name in models if isinstance(models, dict) else ():
        yield name, endpoint_variable(name)


def _endpoints(data: dict[str, Any], environ: Mapping[str, str], overlay: Overlay) -> None:
    reserved = {variable for variable, _ in NAMES}
    mine = [(name, variable) for name, variable in _models(data) if variable not in reserved]
    for name, variable in mine:
        raw = environ.get(variable, "").strip()
        path: Path = ("models", name, "endpoint")
        settings = data["models"][name]
        if not raw or path in overlay.origins or not isinstance(settings, dict | None):
            continue
        # It says where the model is, instead of whatever the file says about that.
        data["models"][name] = {key: value for key, value in (settings or {}).items() if key not in ("endpoint", "endpoints", "path")}
        data["models"][name]["endpoint"] = raw
        overlay.origins[path] = variable
    known = {variable for _, variable in mine}
    for variable in environ:
        if variable.endswith(ENDPOINT_SUFFIX) and variable not in known | reserved and not variable.startswith(PREFIX):
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if near:
                message = f"matches no model and is ignored; did you mean {near[0]}?"
                overlay.findings.append(Finding((), message, level="warning", variable=variable))


def apply(data: dict[str, Any], environ: Mapping[str, str]) -> Overlay:
    """Put what the environment says into ``data``, in place.

    An empty variable counts as not set. ``HX__`` names win over the fixed names, those over the file.

    Args:
        data: The data of the file.
        environ: The environment.
    """
    overlay = Overlay()
    _fixed(data, environ, overlay)
    _general(data, environ, overlay)
    _endpoints(data, environ, overlay)
    return overlay
