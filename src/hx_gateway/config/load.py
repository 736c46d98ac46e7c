"""Loads a configuration from file and environment, and reports everything wrong with it at once, with line and column."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from hx_gateway.config import environment
from hx_gateway.config.crosscheck import crosscheck
from hx_gateway.config.explain import findings
from hx_gateway.config.located import MAX_CHARACTERS, Document, Path, Place, parse
from hx_gateway.config.problems import ConfigError, Finding, Problem
from hx_gateway.config.schema import LATER, GatewayConfig
from hx_gateway.config.secrets import SecretSources
from hx_gateway.config.shape import ROOT, Shape, at, below, dotted, nearest, settings

__all__ = ["ConfigError", "Loaded", "Problem", "find", "load", "load_text"]

PATH_VARIABLE = "HX_CONFIG"
LITELLM_VARIABLE = "LITELLM_CONFIG"
DEFAULT_PATHS = ("hx-gateway.yaml", "/etc/hx-gateway/config.yaml")
_ONE_OF = ("endpoint", "endpoints", "path", "key", "key_hash")  # settings whose absence is a finding about their parent
_ROUNDS = 4  # of validating what is left once what is wrong is taken out


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that can be used.

    Args:
        config: The configuration.
        path: The file; None when there is none.
        sources: For each setting, dotted: ``file:line``, the environment variable, or ``default``.
        warnings: What works, but is probably not meant so.
        blockers: Why it must not be served as it is (an open door); empty when it may. The key ring of such a
            configuration lets nobody in.
        unused: Settings that are read and checked, but not used by this release, dotted.
        stamp: What `stamp_of` said of the file just before it was read.
    """

    config: GatewayConfig
    path: FilePath | None
    sources: dict[str, str]
    warnings: tuple[Problem, ...]
    blockers: tuple[Problem, ...]
    unused: tuple[str, ...]
    stamp: Stamp = None


Stamp = tuple[int, int, int] | None
Further = Callable[[GatewayConfig], Iterable[Finding]] | None


def stamp_of(path: FilePath | None) -> Stamp:
    """What changes when a file is written or replaced; None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _Locator:
    """Knows which file line or environment variable a path of the merged data comes from."""

    def __init__(self, name: str, document: Document, origins: Mapping[Path, str]) -> None:
        self._name = name
        self._document = document
        self._origins = origins

    def source(self, path: Path, on_key: bool = False) -> tuple[str, Place]:
        """The file or variable, and the place in the file, nearest to ``path``."""
        document = self._document
        tables = (document.keys, document.values) if on_key else (document.values, document.keys)
        for length in range(len(path), 0, -1):
            here = path[:length]
            if here in self._origins:
                return self._origins[here], Place()
            if length < len(path):  # a parent stands for it by its name
                tables = (document.keys, document.values)
            for table in tables:
                if here in table:
                    return self._name, table[here]
            below_it = [variable for there, variable in self._origins.items() if there[:length] == here]
            if length > 1 and below_it:
                return below_it[0], Place()
        return self._name, Place()

    def problem(self, finding: Finding) -> Problem:
        """The finding with its source."""
        if finding.variable:
            name, place = finding.variable, Place()
        elif finding.place is not None:
            name, place = self._name, finding.place
        else:
            name, place = self.source(finding.path, finding.on_key)
        return Problem(dotted(finding.path), finding.message, name, place.line, place.column, finding.level)


def _without_nulls(data: Any, shape: Shape | None) -> Any:
    """``data`` with sections and lists that were left empty (``models:`` and nothing after it) taken as absent."""
    if isinstance(data, list) and shape is not None:
        return [_without_nulls(item, below(shape, position)) for position, item in enumerate(data)]
    if not isinstance(data, dict) or shape is None:
        return data
    kept: dict[str, Any] = {}
    for name, value in data.items():
        inside = below(shape, name)
        if value is None and inside is not None and not inside.nullable and (inside.nested or inside.items is not None):
            if shape.mapping is not None:
                kept[name] = {}
            continue
        kept[name] = _without_nulls(value, inside)
    return kept


def _inside(data: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        if isinstance(data, dict):
            data = data.get(str(part))
        else:
            data = data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None
    return data


def _remove(data: Any, path: Path) -> None:
    """Take what is wrong out of ``data``, so that the rest can be checked; something needed gets a stand-in."""
    for depth in range(len(path), 0, -1):
        *parents, last = path[:depth]
        holder = _inside(data, parents)
        if not isinstance(holder, dict):
            continue  # taking out one item of a list would move the others: the whole list goes
        shape = at(path[:depth])
        parent = at(tuple(parents))
        declared = parent.section.model_fields.get(str(last)) if parent is not None and parent.section is not None else None
        if declared is not None and declared.is_required() and shape is not None:
            holder[last] = "http://unknown:1" if shape.items is None else ["unknown"]
        else:
            holder.pop(last, None)
        return


def _validate(data: dict[str, Any], sources: SecretSources) -> tuple[GatewayConfig | None, list[Finding]]:
    """The configuration as far as it is valid, and everything that is not."""
    found: dict[Path, Finding] = {}
    for _ in range(_ROUNDS):
        try:
            return GatewayConfig.model_validate(data, context=sources), list(found.values())
        except ValidationError as error:
            fresh = findings(error, data)
        # A stand-in that does not fit is our fault, not the file's.
        found.update({finding.path: finding for finding in fresh if finding.path not in found})
        for finding in sorted(fresh, key=lambda one: len(one.path), reverse=True):
            _remove(data, finding.path)
    return None, list(found.values())


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _copy(value) for name, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data


def _follows(finding: Finding, broken: list[Path]) -> bool:
    """Whether a finding only says that something else is broken."""
    path = finding.path
    for wrong in broken:
        if path[: len(wrong)] == wrong:
            return True
        if wrong[: len(path)] == path and (wrong[-1] in _ONE_OF or at(wrong) is None):
            return True
        likely = (
            nearest(str(wrong[0]), ("models", "groups", "aliases", "endpoints", "keys")) if len(wrong) == 1 and at(wrong) is None else ""
        )
        if finding.rests_on == "names" and wrong[0] in ("models", "groups", "aliases") and (len(wrong) < 3 or "aliases" in wrong):
            return True
        if finding.rests_on == "endpoints" and wrong[0] == "endpoints" and len(wrong) < 3:
            return True
        if finding.rests_on == "keys" and wrong[0] == "keys":
            return True
        if likely and finding.rests_on:  # a section under a wrong name
            return True
    return False


def _leaves(data: Any, path: Path = ()) -> Iterator[Path]:
    if isinstance(data, dict) and data:
        for name, value in data.items():
            yield from _leaves(value, (*path, name))
    elif isinstance(data, list) and any(isinstance(item, dict) for item in data):
        for position, value in enumerate(data):
            yield from _leaves(value, (*path, position))
    elif path:
        yield path


def _sources(data: Any, locator: _Locator) -> dict[str, str]:
    known = {dotted(path): "default" for path, _, shape in settings() if not shape.nested and "<name>" not in path and "<n>" not in path}
    for path in _leaves(data):
        name, place = locator.source(path)
        known[dotted(path)] = f"{name}:{place.line}" if place.line else name
    return known


def _unused(data: Mapping[str, Any]) -> tuple[str, ...]:
    later = {path for path, declared, _ in settings() if LATER in declared.metadata}
    return tuple(dotted(path) for path in _leaves(data) if path in later)


def _loaded(
    name: str, document: Document, path: FilePath | None, directory: FilePath, environ: Mapping[str, str], further: Further = None
) -> Loaded:
    faults = [Finding(fault.path, fault.message, place=fault.place) for fault in document.faults]
    if document.data is not None and not isinstance(document.data, dict):
        faults.append(Finding((), "the file should hold a mapping of sections, e.g. models:", place=Place(1, 1)))
        document.data = None
    if faults and document.data is None:
        raise ConfigError([_Locator(name, document, {}).problem(fault) for fault in faults])
    data: dict[str, Any] = document.data or {}
    overlay = environment.apply(data, environ)
    data = _without_nulls(data, ROOT)
    locator = _Locator(name, document, overlay.origins)
    # What validation takes out must stay in ``data``, which tells where each setting comes from.
    config, invalid = _validate(_copy(data), SecretSources(environ, directory))
    found = faults + overlay.findings + invalid
    if config is not None:
        broken = [finding.path for finding in faults + invalid if finding.path]
        found += [finding for finding in crosscheck(config, environ) if not _follows(finding, broken)]
        said = {finding.path for finding in found}
        found += [finding for finding in (further(config) if further else ()) if finding.path not in said]
    problems = [locator.problem(finding) for finding in found]
    problems = sorted(dict.fromkeys(problems), key=lambda problem: (problem.source != name, problem.line, problem.column))
    errors = [problem for problem in problems if problem.level == "error"]
    if errors or config is None:
        raise ConfigError(errors + [problem for problem in problems if problem.level == "blocker"])
    return Loaded(
        config,
        path,
        _sources(data, locator),
        tuple(problem for problem in problems if problem.level == "warning"),
        tuple(problem for problem in problems if problem.level == "blocker"),
        _unused(data),
    )


def find(path: FilePath | None, environ: Mapping[str, str]) -> FilePath | None:
    """The configuration file to use: ``path``, ``HX_CONFIG``, ``./hx-gateway.yaml``, ``/etc/hx-gateway/config.yaml``, or none."""
    if path is not None:
        return path
    if named := environ.get(PATH_VARIABLE):
        return FilePath(named)
    return next((candidate for candidate in map(FilePath, DEFAULT_PATHS) if candidate.is_file()), None)


def load_text(text: str, name: str, environ: Mapping[str, str], directory: FilePath | None = None) -> Loaded:
    """Load a configuration from YAML text.

    Args:
        text: The YAML; empty means all defaults.
        name: What to call it in messages.
        environ: The environment: overrides, and what ``env:`` refers to.
        directory: What a relative ``file:`` reference is relative to; none means the working directory.

    Raises:
        ConfigError: It cannot be used; lists every reason.
    """
    return _loaded(name, parse(text), None, directory or FilePath(), environ)


def load(path: FilePath | None, environ: Mapping[str, str], further: Further = None) -> Loaded:
    """Load a configuration from a file; without one, from defaults and environment.

    Args:
        path: The file; None looks in the usual places (see `find`), and then for LiteLLM's (``LITELLM_CONFIG``).
        environ: The environment: overrides, what ``env:`` refers to, and ``HX_CONFIG``.
        further: Finds more that is wrong with a configuration, where there is more than the configuration to look at.

    Raises:
        ConfigError: It cannot be read or used; lists every reason.
    """
    file = find(path, environ)
    given = environ.get(LITELLM_VARIABLE, "")
    if file is None:
        return _from_litellm(FilePath(given), environ) if given else _loaded("", Document(), None, FilePath(), environ, further)
    stamp = stamp_of(file)
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_CHARACTERS + 1)
        if len(content) > MAX_CHARACTERS:
            raise ConfigError([Problem("", f"is larger than {MAX_CHARACTERS >> 20} MiB", str(file))])
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror or 'not a usable path'}", str(file))]) from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("", "is not UTF-8 text; save it as UTF-8", str(file), line, 1)]) from None
    loaded = _loaded(str(file), parse(text), file, file.parent, environ, further)
    if given:
        said = Problem(
            "litellm.config",
            f"is not served: {file} is; start without that file, or import it: hx-gateway import-litellm",
            LITELLM_VARIABLE,
        )
        loaded = dataclasses.replace(loaded, warnings=(*loaded.warnings, dataclasses.replace(said, level="warning")))
    return dataclasses.replace(loaded, stamp=stamp)


def _from_litellm(file: FilePath, environ: Mapping[str, str]) -> Loaded:
    """What a LiteLLM configuration becomes, served as it is; what is not carried over is a warning."""
    from hx_gateway.config import litellm

    stamp = stamp_of(file)
    imported = litellm.load(file, environ)
    environ = imported.environ(environ)
    data, missing = imported.served(environ)
    values = {path: place for path, (name, place) in imported.places.items() if name == str(file)}
    loaded = _loaded(str(file), Document(data, dict(values), values), file, file.parent, environ)
    said = [
        Problem(dotted(path), f"is left out, because the environment variable {name} is not set; set it, and start again", str(file))
        for path, name in missing
    ]
    said += [Problem(one.key, one.message, one.file, one.line, one.column) for one in imported.remarks if one.level in litellm.OPEN]
    warnings = (dataclasses.replace(one, level="warning") for one in said)
    return dataclasses.replace(loaded, warnings=(*warnings, *loaded.warnings), stamp=stamp)
