"""Walks the schema by name: which settings exist below a path, and what kind of value each one takes."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from hx_gateway.config.located import Path
from hx_gateway.config.schema import GatewayConfig, Secret, Settings


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand at one place of the configuration.

    Args:
        section: The section's class, if named settings may stand there.
        mapping: Annotation of the values, if any name may stand there.
        items: Annotation of the items, if it is a list.
        scalars: Types of single values that may stand there (str, int, float, bool, Secret).
        choices: The only values, if they are listed.
        nullable: Whether it may be none.
    """

    section: type[Settings] | None = None
    mapping: Any = None
    items: Any = None
    scalars: tuple[type, ...] = ()
    choices: tuple[str, ...] = ()
    nullable: bool = False

    @property
    def secret(self) -> bool:
        """Whether a secret may stand there."""
        return Secret in self.scalars

    @property
    def nested(self) -> bool:
        """Whether it is a section or a mapping."""
        return self.section is not None or self.mapping is not None


def shape_of(annotation: Any) -> Shape:
    """What the type ``annotation`` of a setting allows."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        parts = [shape_of(part) for part in get_args(annotation) if part is not type(None)]
        return Shape(
            next((part.section for part in parts if part.section), None),
            next((part.mapping for part in parts if part.mapping is not None), None),
            next((part.items for part in parts if part.items is not None), None),
            tuple(kind for part in parts for kind in part.scalars),
            tuple(choice for part in parts for choice in part.choices),
            nullable=type(None) in get_args(annotation),
        )
    if origin is dict:
        return Shape(mapping=get_args(annotation)[1])
    if origin is tuple:
        return Shape(items=get_args(annotation)[0])
    if origin is Literal:
        return Shape(scalars=(str,), choices=get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return Shape(section=annotation)
    return Shape(scalars=(annotation,))


ROOT = Shape(section=GatewayConfig)


def below(shape: Shape, part: str | int) -> Shape | None:
    """What stands under ``part``; None if nothing of that name can."""
    if isinstance(part, int):
        return shape_of(shape.items) if shape.items is not None else None
    if shape.section is not None:
        found = shape.section.model_fields.get(part)
        return shape_of(found.annotation) if found is not None else None
    return shape_of(shape.mapping) if shape.mapping is not None else None


def at(path: Iterable[str | int]) -> Shape | None:
    """What stands at ``path``; None if nothing can."""
    shape: Shape | None = ROOT
    for part in path:
        if shape is None:
            return None
        shape = below(shape, part)
    return shape


def settings(shape: Shape = ROOT, path: Path = ()) -> Iterator[tuple[Path, FieldInfo, Shape]]:
    """Every setting with its path, its declaration and its shape; ``<name>`` and ``<n>`` stand for free names and positions."""
    if shape.section is None:
        return
    for name, declared in shape.section.model_fields.items():
        here: Path = (*path, name)
        inside = shape_of(declared.annotation)
        if not (inside.section is not None and issubclass(inside.section, Settings) and not path):
            yield here, declared, inside
        if inside.section is not None:
            yield from settings(inside, here)
        for annotation, placeholder in ((inside.mapping, "<name>"), (inside.items, "<n>")):
            if annotation is not None:
                yield from settings(shape_of(annotation), (*here, placeholder))


def shown(name: str) -> str:
    """``name`` on one line of bounded length, whatever it holds."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= 80 else text[:77] + "..."


def dotted(path: Iterable[str | int]) -> str:
    """``path`` as people write it: ``models."phi-3.5".weight``, ``keys.api_keys[0].name``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        name = shown(part)
        text += ("." if text else "") + (f'"{name}"' if "." in name or " " in name or not name else name)
    return text


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` with the known name that looks most like ``name``; empty if none does."""
    folded = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(name.lower()[:100], folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[found[0]]}?" if found else ""


def elsewhere(name: str) -> str:
    """``; it belongs under …`` when a setting called ``name`` exists in exactly one other place."""
    homes = [path for path, _, _ in settings() if path[-1] == name and "<n>" not in path]
    return f"; it belongs under {dotted(homes[0][:-1])}" if len(homes) == 1 and len(homes[0]) > 1 else ""
