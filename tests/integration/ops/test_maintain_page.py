"""The rehearsal of a restore on the page about maintenance runs as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.architecture.sources import ROOT


def test_the_rehearsal_of_a_restore(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "maintain.md").read_text(encoding="utf-8")
    _, _, part = page.partition("### Rehearse the restore\n")
    settings, commands = (re.findall(rf"^```{kind}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)[0] for kind in ("yaml", "sh"))
    (tmp_path / "rehearsal.yaml").write_text(settings.replace("/srv/rehearsal", str(tmp_path / "rehearsal")))
    (tmp_path / "live.yaml").write_text(f"storage: {{state_directory: '{tmp_path / 'live'}'}}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HX_") and name != "DATABASE_URL"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", script], capture_output=True, text=True, timeout=100, cwd=tmp_path, env=environment, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("hx-gateway keys create app --config live.yaml && hx-gateway backup --config live.yaml backup.tar")
    before = (tmp_path / "live" / "hx-gateway.db").read_bytes()
    said = run(commands)
    assert re.search(r"\bapp\b.*\bactive\b", said) and re.search(r"keys +1 rows", said), said
    assert (tmp_path / "live" / "hx-gateway.db").read_bytes() == before
