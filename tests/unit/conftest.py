"""What every unit test shares: no state of a gateway that the developer runs, wherever a test looks without an environment."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nobody_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let ``~`` be a folder that nobody uses."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))
