"""The command line's frame: quick to list, imports only what is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hx_gateway.cli.main import COMMANDS, application

HEAVY = "{'pydantic', 'fastapi', 'starlette', 'uvicorn', 'yaml', 'rich', 'structlog', 'prometheus_client', 'msgspec'}"


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(application(), list(words))
    return done.exit_code, done.output


def test_help_lists_every_command() -> None:
    code, output = run("--help")
    assert code == 0
    assert all(name in output and summary[:20] in output for name, _, summary in COMMANDS)


def test_version() -> None:
    code, output = run("--version")
    assert code == 0
    assert output.startswith("hx-gateway ")
    assert output.strip()[-1].isdigit()


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_nothing_heavy_is_imported_to_list_commands(words: str) -> None:
    code = (
        "import sys\nfrom hx_gateway.cli.main import application\n"
        f"try: application()([{words!r}])\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)), [name for name in sys.modules if name.startswith('hx_gateway.') and '.cli' not in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"


def test_a_command_that_does_not_exist() -> None:
    code, output = run("chek")
    assert code == 2
    assert "there is no command chek; did you mean check?" in output


def test_a_command_whose_module_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hx_gateway.cli.main.COMMANDS", (("gone", "hx_gateway.cli.gone_for_good:gone", "Not there."),))
    code, output = run("gone")
    assert code == 2
    assert "gone is not part of this installation" in output


def test_a_module_that_cannot_import_what_it_needs_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "broken_command.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("hx_gateway.cli.main.COMMANDS", (("broken", "broken_command:broken", "Broken."),))
    done = CliRunner().invoke(application(), ["broken"])
    assert isinstance(done.exception, ModuleNotFoundError)
    assert "a_package_that_is_not_there" in str(done.exception)


@pytest.mark.parametrize("name", [name for name, path, _ in COMMANDS if importlib.util.find_spec(path.partition(":")[0])])
def test_every_command_has_a_help_page(name: str) -> None:
    code, output = run(name, "--help")
    assert code == 0
    assert f"{name} [OPTIONS]" in output


def commands(of: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    if hasattr(of, "list_commands"):
        for name in of.list_commands(None):
            yield from commands(of.get_command(None, name), (*words, name))
    else:
        yield words, of


def test_the_configuration_is_named_the_same_way_everywhere() -> None:
    found = dict(commands(typer.main.get_command(application())))
    own = {words: [one for one in found[words].params if "--config" in one.opts] for words in found}
    named = {words: params[0].opts for words, params in own.items() if params}
    assert {("serve",), ("check",), ("db",), ("backup",), ("restore",), ("keys", "list"), ("router", "list"), ("verify",)} <= set(named)
    assert all("-c" in opts for words, opts in named.items() if words != ("deploy",)), named
    argument = {words for words in named if any(one.name == "file" and not one.required for one in found[words].params)}
    assert argument == {("serve",), ("check",), ("db",)}, "others have an argument of another kind"


def test_argument_and_option_mean_the_same_file(tmp_path: Path) -> None:
    file, other = tmp_path / "a.yaml", tmp_path / "b.yaml"
    for one in (file, other):
        one.write_text(f"service: {{name: {one.stem}}}\nstorage: {{state_directory: {tmp_path / one.stem}}}\n")
    runner = CliRunner()
    for words in (["db", "status", "--json"], ["check", "--json"]):
        ways = [
            runner.invoke(application(), [*words, *more]) for more in ([str(file)], ["--config", str(file)], ["-c", str(file), str(file)])
        ]
        assert [way.exit_code for way in ways] == [0, 0, 0] and len({way.stdout for way in ways}) == 1 and str(file)[:-5] in ways[0].stdout
        two = runner.invoke(application(), [*words, str(file), "--config", str(other)])
        assert two.exit_code == 2 and "give one of them" in two.stderr
