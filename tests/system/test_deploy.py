"""Deployed from a bundle on a machine that systemd booted: twice, watched, upgraded under load, taken back, backed up, and gone again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support import required
from tests.system.machine import Machine, booted, files_below, load, renamed
from tools.bundle import wheels_into

from hx_gateway.local import tiny
from hx_gateway.ops.bundle import write
from hx_gateway.ops.release import find_python
from hx_gateway.stores.sql.upgrade import newest

pytestmark = pytest.mark.timeout(400)
KEY = "a-key-of-the-booted-machine"
CONFIG = """
service: {host: 0.0.0.0, port: 8000}
gateway: {default_model: hx-chat}
models:
  tiny: {path: /srv/hx/tiny.gguf, threads: 1, slots: 4}
groups:
  hx-chat: {models: [tiny]}
performance: {memory_limit_gb: 2, cpu_cores: 2}
"""
BROKEN = {"hx_gateway/server/app.py": b"\nraise RuntimeError('planted: this release cannot serve')\n"}
EVERYTHING = ("opt/hx-gateway", "etc/hx-gateway", "etc/systemd/system", "usr/local/bin")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the bundles of three releases in /srv/hx: 0.0.1, 0.0.2, and 0.0.3, which cannot serve."""
    required.llamacpp()
    python = find_python("")
    if python is None:
        required.missing("needs a Python outside of home directories")
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], text=True, capture_output=True, check=True
    )
    wheels = tmp_path_factory.mktemp("wheels")
    wheels_into(wheels, "local", version.stdout.strip())
    own = next(wheels.glob("hx_gateway-*.whl"))
    kept = tmp_path_factory.mktemp("own") / own.name
    shutil.move(own, kept)
    with booted() as made:
        for release, changes in (("0.0.1", None), ("0.0.2", None), ("0.0.3", BROKEN)):
            wheel = renamed(kept, release, changes)
            placed = Path(shutil.move(wheel, wheels / wheel.name))
            tar = write(wheels, made.share, version.stdout.strip(), ["local"])
            shutil.unpack_archive(tar, made.share, filter="fully_trusted")
            (made.share / tar.stem).rename(made.share / release)
            tar.unlink()
            placed.unlink()
        shutil.copy(tiny.path(), made.share / "tiny.gguf")
        (made.share / "config.yaml").write_text(CONFIG)
        yield made


def deploy(machine: Machine, release: str, *words: str, fails: bool = False, key: str = KEY) -> str:
    """Run a bundle's entry; what it said."""
    environ = {"MASTER_KEY": key} if key else {}
    done = machine.run(f"/srv/hx/{release}/deploy", *words, environ=environ, within_s=300)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "what was waited for did not come"
        time.sleep(0.2)


def chat(machine: Machine, key: str = KEY) -> str:
    body = {
        "model": "hx-chat",
        "temperature": 0,
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}],
    }
    heads = ["-H", f"authorization: Bearer {key}", "-H", "content-type: application/json"]
    said = machine.do("curl", "-s", "--max-time", "30", *heads, "-d", json.dumps(body), "http://127.0.0.1:8000/v1/chat/completions")
    return str(json.loads(said)["choices"][0]["message"]["content"])


def test_the_first_deployment_is_taken_back_when_it_fails(machine: Machine) -> None:
    before = files_below(machine.root, "etc", "opt", "usr/local/bin", "var/lib/hx-gateway", "var/log/hx-gateway")
    assert "does not have the address 192.0.2.1" in deploy(machine, "0.0.1", "--expect-address", "192.0.2.1", fails=True)
    planned = deploy(machine, "0.0.1", "--dry-run", "--config", "/srv/hx/config.yaml")
    assert "release        release 0.0.1 installed" in planned and "done" not in planned
    said = deploy(machine, "0.0.3", "--config", "/srv/hx/config.yaml", fails=True)
    assert "planted: this release cannot serve" in said and "user           taken back" in said
    after = files_below(machine.root, "etc", "opt", "usr/local/bin", "var/lib/hx-gateway", "var/log/hx-gateway")
    # useradd keeps the last version of each of its files beside it, and its locks and subordinate ids are its own.
    changed = {name for name in before.keys() | after.keys() if before.get(name, (0,))[1:] != after.get(name, (0,))[1:]}
    assert {name for name in changed if "hx" in name} == set()
    assert machine.run("getent", "passwd", "hx-gateway").returncode != 0


def test_deployed_offline_and_again_without_a_change(machine: Machine) -> None:
    said = deploy(machine, "0.0.1", "--config", "/srv/hx/config.yaml", "--expect-address", "127.0.0.1")
    assert "hx-chat answered 'HX-OK'" in said
    assert chat(machine) == "HX-OK"
    status = json.loads(machine.do("hx-gateway", "service", "status", "--json"))
    assert (status["active"], status["at_boot"], status["release"]) == (True, True, "0.0.1")
    assert "everything is as it should be in production" in machine.do("hx-gateway", "permissions", "check")
    level = machine.do("systemd-analyze", "security", "--threshold=20", "hx-gateway.service").splitlines()[-1]
    assert float(level.split("level for hx-gateway.service:")[1].split()[0]) <= 2.0
    assert machine.do("systemd-analyze", "verify", "/etc/systemd/system/hx-gateway.service") == ""
    assert (machine.shown("MemoryMax"), machine.shown("CPUQuotaPerSecUSec")) == (str(2 << 30), "2s")
    assert (machine.root / "etc/hx-gateway/environment").stat().st_mode & 0o777 == 0o640
    assert KEY not in (machine.root / "etc/hx-gateway/environment").read_text() + (machine.root / "etc/hx-gateway/config.yaml").read_text()
    before, pid = files_below(machine.root, *EVERYTHING), machine.shown("MainPID")
    for key in (KEY, ""):
        assert "nothing to change; release 0.0.1" in deploy(machine, "0.0.1", key=key)
    assert (files_below(machine.root, *EVERYTHING), machine.shown("MainPID")) == (before, pid)


def test_the_watchdog_ends_a_gateway_that_stands_still(machine: Machine) -> None:
    sharper = machine.root / "etc/systemd/system/hx-gateway.service.d/watchdog.conf"
    sharper.parent.mkdir(parents=True)
    sharper.write_text("[Service]\nWatchdogSec=3\n")
    machine.do("systemctl", "daemon-reload")
    machine.do("hx-gateway", "service", "restart", "--full")
    pid = machine.shown("MainPID")
    machine.do("kill", "-STOP", pid)
    # Its sockets are kept: who comes meanwhile waits for the next process.
    assert chat(machine) == "HX-OK"
    assert machine.shown("MainPID") != pid
    assert "Watchdog timeout" in machine.do("journalctl", "-u", "hx-gateway", "--no-pager", "-o", "cat")
    sharper.unlink()
    sharper.parent.rmdir()
    machine.do("systemctl", "daemon-reload")


def test_an_upgrade_under_load_refuses_and_cuts_nobody(machine: Machine) -> None:
    with load(machine, KEY) as told:
        before = machine.shown("MainPID")
        said = deploy(machine, "0.0.2")
        assert "handed over to a new process" in said
        upgraded = machine.shown("MainPID")
        # A release that cannot serve changes nothing for those who call.
        said = deploy(machine, "0.0.3", fails=True)
        assert "planted: this release cannot serve" in said and "switch         taken back" in said
        assert machine.shown("MainPID") == upgraded != before
        assert json.loads(machine.do("hx-gateway", "service", "status", "--json"))["release"] == "0.0.2"
        machine.do("hx-gateway", "rollback")
        assert machine.shown("MainPID") not in (before, upgraded)
        assert json.loads(machine.do("hx-gateway", "service", "status", "--json"))["release"] == "0.0.1"
    assert told["failures"] == []
    assert int(str(told["good"])) > 50 and int(str(told["streams"])) > 10


def test_a_release_that_does_not_know_the_schema_is_refused(machine: Machine) -> None:
    change = "import sqlite3; base = sqlite3.connect('/var/lib/hx-gateway/hx-gateway.db'); base.execute('UPDATE hx_gateway_schema SET version_num = ?', ({!r},)); base.commit()"
    machine.do("python3", "-c", change.format("9999"))
    try:
        done = machine.run("hx-gateway", "rollback", "--to", "0.0.2")
        assert done.returncode == 1 and f"the database has schema 9999, and release 0.0.2 knows up to {newest()}" in done.stderr
        assert chat(machine) == "HX-OK"
    finally:
        machine.do("python3", "-c", change.format(newest()))


def test_backup_and_restore(machine: Machine) -> None:
    machine.do("hx-gateway", "backup", "/srv/hx/backup.tar")
    assert (machine.share / "backup.tar").stat().st_mode & 0o777 == 0o600
    machine.do("hx-gateway", "service", "run", "--", "keys", "create", "later")
    done = machine.run("hx-gateway", "restore", "/srv/hx/backup.tar")
    assert done.returncode == 1 and "hx-gateway service stop" in done.stderr
    machine.do("hx-gateway", "service", "stop")
    for path in (machine.root / "var/lib/hx-gateway").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    machine.do("hx-gateway", "restore", "/srv/hx/backup.tar")
    machine.do("hx-gateway", "service", "start")
    until(lambda: '"hx-chat"' in machine.get("/v1/models", KEY))
    assert chat(machine) == "HX-OK"
    keys = json.loads(machine.do("hx-gateway", "service", "run", "--", "keys", "list", "--json"))["keys"]
    assert [key["name"] for key in keys if not key["name"].startswith(("deploy-", "verify-"))] == ["admin"]


def test_back_to_litellm_and_to_the_gateway(machine: Machine) -> None:
    program = machine.share / "litellm"
    program.write_text("#!/usr/bin/python3\nimport sys, time\nprint('started with', sys.argv[1:], flush=True)\ntime.sleep(3600)\n")
    program.chmod(0o755)
    words = ["--litellm-program", "/srv/hx/litellm", "--litellm-config", "/srv/hx/config.yaml"]
    machine.do("hx-gateway", "rollback", "--to-litellm", *words)
    said = machine.do("journalctl", "-u", "hx-gateway", "-n", "5", "--no-pager", "-o", "cat")
    assert "started with ['--config', '/srv/hx/config.yaml', '--host', '0.0.0.0', '--port', '4000']" in said
    assert machine.get("/readyz") == ""
    machine.do("hx-gateway", "rollback")
    assert chat(machine) == "HX-OK"


def test_uninstall_leaves_nothing(machine: Machine) -> None:
    machine.do("hx-gateway", "uninstall", "--yes")
    left = [
        path
        for folder in ("etc", "opt", "usr/local", "var/lib", "var/log", "run")
        for path in (machine.root / folder).rglob("*hx-gateway*")
    ]
    assert [path for path in left if "journal" not in path.parts] == []
    assert machine.run("getent", "passwd", "hx-gateway").returncode != 0
    assert machine.run("systemctl", "cat", "hx-gateway").returncode != 0
    assert machine.run("pgrep", "-f", "hx_gateway|hx-gateway").stdout == ""
