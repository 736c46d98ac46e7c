"""The command line's frame: quick to list, imports only what is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
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
