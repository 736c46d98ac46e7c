"""What `deploy` refuses before it looks at the machine, and on the wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hx_gateway.cli.main import application


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bundle", "a", "--wheels", "b"], "--bundle, --wheels and --index exclude each other"),
        (["--wheels", "a", "--index", "http://127.0.0.1:9/simple"], "--bundle, --wheels and --index exclude each other"),
        (["--master-key", "short"], "MASTER_KEY is shorter than"),
        (["--bundle", "nowhere"], "nowhere is no bundle"),
        (["--expect-address", "192.0.2.1"], "does not have the address 192.0.2.1; if it is the right one, say --force or FORCE=1"),
        (["--python", "/nowhere/python3"], "- /nowhere/python3 does not exist"),
    ],
)
def test_what_is_refused_at_once(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(application(), ["deploy", "--dry-run", *words])
    assert done.exit_code == 1
    assert said in done.output and "plan" not in done.output
    assert list(tmp_path.iterdir()) == []
