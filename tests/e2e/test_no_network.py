"""Without any network but the machine's own: the gateway starts, serves, and names what it cannot reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import required

from hx_gateway.local import tiny

ROOT = Path(__file__).resolve().parents[2]
# Runs in a network namespace of its own, where at first not even the loopback device is up.
INSIDE = """
import fcntl, http.client, json, socket, struct, subprocess, sys
sys.path.insert(0, sys.argv[1])
from tests.support.gateway import GatewayProcess
with socket.socket() as device:
    fcntl.ioctl(device, 0x8914, struct.pack("16sh14x", b"lo", 0x1))  # SIOCSIFFLAGS, IFF_UP
def reached():
    try:
        socket.create_connection(("192.0.2.1", 80), 1).close()
    except OSError:
        return False
    return True
def ask(gateway, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    headers = {"Authorization": "Bearer " + gateway.key}
    connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())
chat = {"messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}], "max_tokens": 10, "temperature": 0}
with GatewayProcess(sys.argv[2]) as gateway:
    found = {
        "outside": reached(),
        "here": ask(gateway, "/v1/chat/completions", {**chat, "model": "here"}),
        "away": ask(gateway, "/v1/chat/completions", {**chat, "model": "away"}),
        "models": ask(gateway, "/v1/models"),
        "documents": ask(gateway, "/openapi.json")[0],
    }
print(json.dumps(found))
"""


def cut() -> list[str]:
    """The command that runs another without a network; where this is not allowed, the test ends."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            break
    if os.geteuid() == 0:
        required.missing("root may not make a network namespace here")
    pytest.skip("this user may not make a network namespace")


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_it_starts_and_serves_with_the_network_cut() -> None:
    required.llamacpp()
    config = f"""\
models:
  here: {{path: {json.dumps(str(tiny.path()))}, mode: chat, threads: 1}}
  away: {{endpoint: "http://llm-01.example:11434"}}
gateway: {{default_model: here}}
"""
    command = [*cut(), sys.executable, "-c", INSIDE, str(ROOT), config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["outside"] is False, "the network was not cut"
    status, answer = found["here"]
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "HX-OK")
    status, answer = found["away"]
    assert (status, answer["error"]["code"]) == (502, "upstream_connect_failed")
    assert {model["id"] for model in found["models"][1]["data"]} == {"here", "away"}
    assert found["documents"] == 200
