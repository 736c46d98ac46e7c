"""`top` in a real terminal: what it shows, that a key ends it, and that the terminal is as it was."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from tests.integration.ops.conftest import Fleet
from tests.support.gateway import KEY

from hx_gateway.ops.verify_client import Client

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[a-zA-Z]")


def command(fleet: Fleet, *words: str) -> list[str]:
    return [sys.executable, "-m", "hx_gateway", "top", "--url", fleet.gateway.url, *words]


def environment() -> dict[str, str]:
    return {**os.environ, "HX_API_KEY": KEY, "TERM": "xterm-256color", "NO_COLOR": "1"}


def say(fleet: Fleet, count: int) -> None:
    client = Client(fleet.gateway.url, KEY)
    for number in range(count):
        body = {"model": "small", "messages": [{"role": "user", "content": f"Say: {number}"}]}
        client.ask("POST", "/v1/chat/completions", body).wanted()


def test_one_picture_without_a_terminal(fleet: Fleet) -> None:
    process = subprocess.Popen(command(fleet, "--once"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    give_up_s = time.monotonic() + 60
    while process.poll() is None:  # the traffic must fall between its two looks
        assert time.monotonic() < give_up_s
        say(fleet, 5)
    shown, errors = process.communicate()
    assert process.returncode == 0 and not errors
    lines = shown.splitlines()
    assert fleet.gateway.url in lines[0] and "healthy" in lines[0] and "requests/s" in lines[1]
    rows = {line.split()[0]: line.split() for line in lines[2:] if line.strip()}
    assert rows["one"][1] == rows["two"][1] == "up" and float(rows["one"][4]) > 0
    assert rows["hx-chat"][1:3] == ["group", "round_robin"] and float(rows["small"][3]) > 0 and float(rows["small"][5]) > 0
    assert rows["large"][3] == "-"
    assert not re.search(r"\x1b", shown)


def test_live_in_a_terminal_until_q_is_pressed(fleet: Fleet) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    before = termios.tcgetattr(follower)
    process = subprocess.Popen(command(fleet, "--interval", "0.2"), env=environment(), stdin=follower, stdout=follower, stderr=follower)
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        give_up_s = time.monotonic() + 20
        while wanted not in ESCAPES.sub(b"", seen):
            assert time.monotonic() < give_up_s and process.poll() is None, seen[-3000:]
            if select.select([leader], [], [], 0.1)[0]:
                seen += os.read(leader, 65536)

    try:
        until(b"q quits")
        assert b"\x1b[?1049h" in seen, "on a screen of its own"
        assert not termios.tcgetattr(follower)[3] & termios.ECHO
        seen = b""
        fleet.fail("two", "refuse")
        until(b"down")
        fleet.fail("two", None)
        os.write(leader, b"xq")
        give_up_s = time.monotonic() + 30
        while process.poll() is None:
            assert time.monotonic() < give_up_s
            if select.select([leader], [], [], 0.1)[0]:
                os.read(leader, 65536)
        assert process.returncode == 0
        assert termios.tcgetattr(follower) == before
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)


def test_why_there_is_no_picture(fleet: Fleet, tmp_path: Path) -> None:
    def ended(*words: str, key: str = KEY) -> tuple[int, str]:
        done = subprocess.run(
            command(fleet, "--once", *words), env={**environment(), "HX_API_KEY": key}, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr

    status, said = ended(key="hx-wrong")
    assert status == 1 and said.startswith("hx-gateway: an admin key is needed: invalid_api_key: the API key is not known to this gateway")
    assert ended("--url", "http://127.0.0.1:9")[1].startswith("hx-gateway: GET /admin/endpoints: no whole answer: [Errno 111]")
    assert ended("--url", "gopher://there")[0] == 2
