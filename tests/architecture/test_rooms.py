"""Size, names and manners of the rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT, modules, shown, tree

LONGEST_ROOM = 400
LARGEST_HOUSE = 55_000
THE_WAY = ("core", "openai", "fleet", "routing", "dataplane", "server", "upstream", "gateway.py")
LONGEST_WAY = 12_000
TABOO_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}
RUFF_DIRECTIVE = re.compile(r"#\s*(noqa|type:|fmt:|pragma)[^#]*")

every_module = pytest.mark.parametrize("path", modules(), ids=shown)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@every_module
def test_no_room_is_too_long(path: Path) -> None:
    assert len(lines_of(path)) <= LONGEST_ROOM, f"{shown(path)} is two rooms: split it"


def test_the_house_is_small() -> None:
    # testing/ ships for plugin authors and is not part of what must be read to know the gateway (decision 6)
    rooms = [path for path in modules() if "testing" not in path.parts]
    assert sum(len(lines_of(path)) for path in rooms) < LARGEST_HOUSE


def test_the_way_of_a_request_is_short() -> None:
    """What must be read to know what happens to a request."""
    # routing/learned/ is a wing: a request passes it only where a group asks for it (decision 6)
    rooms = [
        path for path in modules() if path.relative_to(ROOT / "src" / "hx_gateway").parts[0] in THE_WAY and "learned" not in path.parts
    ]
    assert 5_000 < sum(len(lines_of(path)) for path in rooms) < LONGEST_WAY


@every_module
def test_a_module_opens_with_one_sentence_on_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(tree(path))
    assert docstring, f"{shown(path)} has no docstring"
    opening = docstring.split("\n\n")[0]
    assert opening.rstrip().endswith("."), f"{shown(path)}: the docstring's first paragraph is no sentence: {opening!r}"
    assert len(re.findall(r"[.!?](?:\s+[A-Z])", opening)) == 0, (
        f"{shown(path)}: the docstring opens with more than one sentence: {opening!r}"
    )


@every_module
def test_names_that_say_nothing_are_not_used(path: Path) -> None:
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not TABOO_NAMES & set(part.lower().split("_")), f"{shown(path)}: {part!r} says nothing about what is in it"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            words = {word.lower() for word in re.findall(r"[A-Z][a-z]+", node.name)}
            assert not TABOO_NAMES & words, f"{shown(path)}:{node.lineno}: {node.name} says nothing about what it does"


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")) for kind in kinds)


@every_module
def test_whoever_catches_everything_says_why(path: Path) -> None:
    lines = lines_of(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and _catches_everything(node):
            if any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node)):
                continue  # it cleans up and lets the error go on
            line = RUFF_DIRECTIVE.sub("", lines[node.lineno - 1])
            _, _, why = line.partition("#")
            assert len(why.split()) >= 3, f"{shown(path)}:{node.lineno}: say on the line of `except` whose fault this can be"


@every_module
def test_only_the_command_line_prints(path: Path) -> None:
    if "cli" in path.parts:
        return
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{shown(path)}:{node.lineno}: print() outside cli/; log it or return it"


@every_module
def test_nothing_happens_at_import(path: Path) -> None:
    """Module level holds definitions and constants: no loops, no bare calls but the guarded entry point."""
    for node in tree(path).body:
        assert not isinstance(node, ast.For | ast.While | ast.AsyncFor | ast.With), f"{shown(path)}:{node.lineno}: work at import"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant), f"{shown(path)}:{node.lineno}: work at import"


@every_module
def test_no_state_is_kept_at_module_level(path: Path) -> None:
    for node in ast.walk(tree(path)):
        assert not isinstance(node, ast.Global), f"{shown(path)}:{node.lineno}: `global` means module-level mutable state"
    for node in tree(path).body:
        value = getattr(node, "value", None)
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if names and not names[0].isupper() and not names[0].startswith("_") and names[0] != "__all__":
            assert not isinstance(value, ast.Dict | ast.List | ast.Set), (
                f"{shown(path)}:{node.lineno}: {names[0]} is mutable module-level state"
            )


def test_every_package_is_typed_and_ships_its_marker() -> None:
    assert (ROOT / "src" / "hx_gateway" / "py.typed").exists()
