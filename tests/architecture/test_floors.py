"""Who may import whom, and that the data plane carries no framework."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
from tests.architecture.sources import ROOT, SOURCES

FRAMEWORKS = {"aiohttp", "fastapi", "httpx", "pydantic", "redis", "requests", "rich", "sqlalchemy", "starlette", "typer"}
WITHOUT_FRAMEWORK = ("core", "openai", "fleet", "ledger", "routing", "dataplane")
LOOK = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_imports_go_down_never_up() -> None:
    done = python("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("room", WITHOUT_FRAMEWORK)
def test_a_room_of_the_data_plane_imports_no_framework(room: str) -> None:
    done = python("-c", LOOK, f"hx_gateway.{room}")
    assert done.returncode == 0, done.stderr
    assert FRAMEWORKS & set(json.loads(done.stdout)) == set()


def test_the_package_itself_imports_nothing_heavy() -> None:
    done = python("-c", "import json, sys, hx_gateway; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))")
    assert done.returncode == 0, done.stderr
    assert (FRAMEWORKS | {"uvicorn", "xllamacpp", "prometheus_client", "yaml"}) & set(json.loads(done.stdout)) == set()


def test_every_room_is_on_a_floor() -> None:
    """A room that no contract names could import whatever it likes."""
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[[tool.importlinter.contracts]]")[2]
    rooms = {path.name for path in SOURCES.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    missing = {room for room in rooms if f'"{room}' not in contract and f"| {room}" not in contract and f"({room})" not in contract}
    assert missing == set()


def test_the_page_on_architecture_shows_the_floors_as_they_are() -> None:
    def built(layer: str) -> set[str]:
        rooms = {room.strip(" ()") for room in layer.split("|")}
        return {room for room in rooms if (SOURCES / room).is_dir() or (SOURCES / f"{room}.py").exists()} - {"__main__"}

    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    drawn = page.partition("## Rooms and floors")[2].split("```")[1].strip().splitlines()
    floors = [rooms for layer in contract["layers"] if (rooms := built(layer))]
    shown = [rooms for line in drawn if (rooms := built(line.split("  ")[0]))]
    assert shown == floors, "draw the floors of pyproject.toml in docs/explanation/architecture.md"
    rows = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))))
    assert set().union(*floors) <= rows, "each room has a row that says what it is for"
