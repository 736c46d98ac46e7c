"""`drill` on scripted servers of its own, and on a gateway that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from tests.faults.conftest import wait_until
from tests.integration.ops.conftest import Fleet
from tests.support.gateway import KEY

from hx_gateway.core.identifiers import new_id
from hx_gateway.ops.drill import Blow, drill
from hx_gateway.ops.verify_client import Client


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hx_gateway", "drill", *words],
        capture_output=True, text=True, timeout=110, check=False, env={**os.environ, "HX_API_KEY": KEY},
    )  # fmt: skip


def test_no_request_fails_while_servers_are_killed_hung_cut_and_slowed() -> None:
    done = command("--seconds", "0.4", "--clients", "4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"] and [one["blow"] for one in told["outcomes"]] == ["killed", "hung", "cut", "slow"]
    for one in told["outcomes"]:
        assert one["failed"] == 0 < one["requests"] and one["returned_s"] is not None
        assert (one["noticed_s"] is None) == (one["blow"] == "slow")
    assert told["outcomes"][0]["share_before"] > 0 == told["outcomes"][0]["share_during"]


def test_a_running_fleet_is_left_alone_unless_that_is_meant(fleet: Fleet) -> None:
    since = new_id(time.time())  # tests before this one did things, too
    done = command("--url", fleet.gateway.url, "--model", "small")
    assert done.returncode == 2 and "--yes-really" in done.stderr
    deeds = Client(fleet.gateway.url, KEY).ask("GET", "/admin/audit").json()["data"]
    assert not [deed for deed in deeds if deed["id"] > since]
    done = command("--url", fleet.gateway.url, "--model", "small", "--yes-really", "--seconds", "0.3", "--clients", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert [line.split()[:3] for line in done.stdout.splitlines()[1:3]] == [["ok", "drained", "one"], ["ok", "drained", "two"]]
    assert all(one["state"] == "up" for one in Client(fleet.gateway.url, KEY).ask("GET", "/admin/endpoints").json()["data"])


def test_a_failure_is_not_hidden(fleet: Fleet) -> None:
    """`large` has one server: nobody can stand in for it."""
    client = Client(fleet.gateway.url, KEY, 20.0)
    blow = Blow("killed", "one", lambda: fleet.fail("one", "refuse"), lambda: fleet.fail("one", None))
    (outcome,) = drill(client, "large", [blow], phase_s=0.3, clients=2)
    assert not outcome.ok and outcome.failed > 0 and outcome.why and outcome.returned_s is not None
    wait_until(lambda: all(one["state"] == "up" for one in client.ask("GET", "/admin/endpoints").json()["data"]), 30)
