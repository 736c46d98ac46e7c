"""`endpoints` against a real gateway: what it lists, taking a server out and back, and what it says without a key."""

from __future__ import annotations

from tests.integration.ops.conftest import Fleet
from tests.support.gateway import KEY
from typer.testing import CliRunner

from hx_gateway.cli.endpoints import group


def test_a_server_is_taken_out_and_back(fleet: Fleet) -> None:
    def run(*words: str, **environment: str) -> str:
        done = CliRunner().invoke(group(), [*words, "--url", fleet.gateway.url], env={"MASTER_KEY": None, **environment})
        return f"{done.exit_code} {done.output}"

    assert "1 hx-gateway: the environment has no HX_API_KEY" in run("list")
    assert run("drain", "one", HX_API_KEY=KEY).startswith("0 one is drained\n")
    assert run("drain", "one", MASTER_KEY=KEY).startswith("0 one is drained already\n")
    states = {line.split()[0]: line for line in run("list", HX_API_KEY=KEY).splitlines()[1:]}
    assert "drained by" in states["one"] and "http://127.0.0.1:" in states["one"] and " up " in states["two"]
    assert run("undrain", "one", "--key", "MINE", MINE=KEY).startswith("0 one is in service\n")
    assert run("drain", "none", HX_API_KEY=KEY).startswith("1 hx-gateway: there is no endpoint")
