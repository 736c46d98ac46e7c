"""One small registry by which configuration names a stage, provider, picker, observer or probe: built in, dotted path, or installed."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

ENTRY_POINT_PREFIX = "hx_gateway."


class UnknownPlugin(LookupError):
    """A name in the configuration that nothing answers to; its message says what would."""


def _imported(path: str) -> Any:
    module, _, attribute = path.rpartition(":" if ":" in path else ".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # blame: the plug-in's; its module does anything when it is imported
        raise _unloaded(path, error) from error


def _unloaded(name: str, error: Exception) -> UnknownPlugin:
    kind = "" if isinstance(error, (ImportError, AttributeError, ValueError)) else f"{type(error).__name__}: "
    return UnknownPlugin(f"cannot load {name!r}: {kind}{error}")


def find(kind: str, name: str, built_in: Mapping[str, str]) -> Any:
    """The object that ``name`` stands for.

    Args:
        kind: What is looked for, e.g. ``"stage"``; installed packages offer theirs in the entry point
            group ``hx_gateway.<kind>``.
        name: A built-in name, a dotted path (``package.module:attribute``), or an installed entry point.
        built_in: Built-in names and the dotted paths they stand for, imported only when asked for.

    Raises:
        UnknownPlugin: Nothing answers to the name.
    """
    if name in built_in:
        return _imported(built_in[name])
    if ":" not in name:  # no entry point has such a name, and to look through what is installed takes milliseconds
        for entry in importlib.metadata.entry_points(group=ENTRY_POINT_PREFIX + kind):
            if entry.name == name:
                try:
                    return entry.load()
                except Exception as error:  # blame: the plug-in's
                    raise _unloaded(name, error) from error
    if "." in name or ":" in name:
        return _imported(name)
    near = difflib.get_close_matches(name, built_in, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownPlugin(f"no {kind} is called {name!r}{hint} (built in: {', '.join(sorted(built_in)) or 'none'})")
