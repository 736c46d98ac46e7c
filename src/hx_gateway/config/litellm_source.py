"""Reads a LiteLLM config.yaml with what it includes into one tree that knows the file, line and column of every part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from hx_gateway.config.located import MAX_CHARACTERS, Path, Place, parse
from hx_gateway.config.problems import ConfigError, Problem

REFERENCE = "os.environ/"
_MOST_FILES = 64


@dataclass(slots=True)
class Source:
    """A file and what it includes.

    Args:
        data: Everything, merged as LiteLLM does: lists one after the other, anything else of the included file wins.
        places: File, line and column of each part.
        included: ``include`` entries that could not be read, each with the reason.
        replaced: What an included file's section of the same name takes the place of: path, place, and that file.
    """

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, tuple[str, Place]] = field(default_factory=dict)
    included: list[tuple[Path, str]] = field(default_factory=list)
    replaced: list[tuple[Path, tuple[str, Place], str]] = field(default_factory=list)

    def place(self, path: Path) -> tuple[str, Place]:
        """Where ``path``, or what is nearest around it, stands."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return "", Place()


def read(file: FilePath) -> Source:
    """The file and everything it includes.

    Raises:
        ConfigError: It, or a file it includes, is no YAML mapping.
    """
    source = Source()
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError([Problem("", f"cannot be read: {error.strerror or 'not a usable path'}", str(file))]) from error
    _add(source, file, content, (file.resolve(),))
    return source


def _add(source: Source, file: FilePath, content: bytes, chain: tuple[FilePath, ...]) -> None:
    name = str(file)
    try:
        document = parse(content[: MAX_CHARACTERS + 1].decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError([Problem("", "is not UTF-8 text; save it as UTF-8", name)]) from None
    # A key that stands twice is LiteLLM's last, silently; here it is said, and the file put right by a person.
    if document.faults:
        raise ConfigError([Problem("", fault.message, name, fault.place.line, fault.place.column) for fault in document.faults])
    if not isinstance(document.data, dict | None):
        raise ConfigError([Problem("", "should hold a mapping of sections, e.g. model_list:", name, 1, 1)])
    own: dict[str, Any] = document.data or {}
    shift = {key: len(source.data[key]) for key, value in own.items() if isinstance(value, list) and isinstance(source.data.get(key), list)}
    for key, value in own.items():
        if key in shift:
            source.data[key] = [*source.data[key], *value]
            continue
        for leaf in leaves(source.data.get(key), (key,)) if key in source.data else ():
            source.replaced.append((leaf, source.place(leaf), name))
        for path in [path for path in source.places if path[0] == key]:
            del source.places[path]
        source.data[key] = value
    for table in (document.values, document.keys):
        for path, place in table.items():
            if path:
                moved = (
                    (path[0], path[1] + shift[path[0]], *path[2:])
                    if len(path) > 1 and path[0] in shift and isinstance(path[1], int)
                    else path
                )
                source.places[moved] = (name, place)
    include = own.get("include")
    for position, entry in enumerate(include if isinstance(include, list) else [include] if include else []):
        where: Path = ("include", position + shift.get("include", 0)) if isinstance(include, list) else ("include",)
        target = (file.parent / str(entry)).resolve()
        if target in chain:
            source.included.append((where, "includes itself, over other files or directly; take one of the two lines out"))
        elif len(chain) >= _MOST_FILES:
            source.included.append((where, f"is nested more than {_MOST_FILES} deep"))
        else:
            try:
                content = target.read_bytes()
            except OSError as error:
                source.included.append((where, f"cannot be read: {error.strerror}; LiteLLM does not start with this file, either"))
                continue
            _add(source, target if file.is_absolute() else file.parent / str(entry), content, (*chain, target))


def leaves(data: Any, path: Path = ()) -> Iterator[Path]:
    """The path of every value that is no mapping or list with something in it."""
    inside = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    if data in ({}, []) or not isinstance(data, Mapping | list):
        if path:
            yield path
        return
    for name, value in inside:
        yield from leaves(value, (*path, name))
