"""The demo as a user starts it: real models behind the real gateway, over real HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from hx_gateway.cli.demo import free_port

COMMAND = Path(sys.executable).with_name("hx-gateway")


async def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


async def test_once_asks_prints_and_leaves_nothing_behind() -> None:
    demo = await asyncio.create_subprocess_exec(COMMAND, "demo", "--once", "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await demo.communicate()
    assert demo.returncode == 0, err.decode()
    assert "streamed: HX-OK\nplain: HX-OK\n" in out.decode()


async def test_it_keeps_running_until_told_and_takes_its_models_along() -> None:
    port = free_port()
    demo = await asyncio.create_subprocess_exec(
        COMMAND, "demo", "--port", str(port), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(os.environ, PYTHONUNBUFFERED="1")
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
        demo.send_signal(signal.SIGINT)
        await demo.stdout.read()
        await demo.wait()
        assert [pid for pid in models if Path(f"/proc/{pid}").exists()] == []
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
