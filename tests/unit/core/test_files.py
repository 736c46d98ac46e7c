"""Small files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hx_gateway.core import files


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_gets_other_content_and_is_its_owners_alone(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"before")
    path.chmod(0o644)
    files.replace(path, b"now", durable)
    assert path.read_bytes() == b"now" and path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_what_cannot_be_written_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(path, b"now")
    assert path.is_dir() and [one.name for one in tmp_path.iterdir()] == ["state"]
