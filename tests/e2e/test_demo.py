"""The demo as a user starts it: real models behind the real gateway, over real HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hx_gateway.cli.demo import free_port

COMMAND = Path(sys.executable).with_name("hx-gateway")


async def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def environment(tmp_path: Path) -> dict[str, str]:
    """One in which what the demo leaves behind can be seen: the state of a gateway of this user's, and temporary files."""
    for name in ("state", "tmp"):
        (tmp_path / name).mkdir()
    return {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}


def left(tmp_path: Path) -> list[Path]:
    return [*(tmp_path / "state").iterdir(), *(tmp_path / "tmp").glob("hx-*")]


async def test_once_asks_prints_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = await asyncio.create_subprocess_exec(
        COMMAND, "demo", "--once", "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path)
    )
    out, err = await demo.communicate()
    assert demo.returncode == 0, err.decode()
    assert "streamed: HX-OK\nplain: HX-OK\n" in out.decode()
    assert left(tmp_path) == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_it_keeps_running_until_told_and_takes_its_models_along(end: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    demo = await asyncio.create_subprocess_exec(
        COMMAND, "demo", "--port", str(port), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(tmp_path)
    )
    assert demo.stdout is not None
    try:
        said = ""
        while "export KEY=" not in said:
            line = await demo.stdout.readline()
            assert line, f"ended with {await demo.wait()} before it was ready: {said}"
            said += line.decode()
        models = await children(demo.pid)
        if sys.platform == "linux":
            assert len(models) >= 4
        assert [path.name[:8] for path in left(tmp_path)] == ["hx-demo-"], "it has a state directory of its own"
        demo.send_signal(end)
        await demo.stdout.read()
        await demo.wait()
        assert [pid for pid in models if Path(f"/proc/{pid}").exists()] == []
        assert left(tmp_path) == []
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
