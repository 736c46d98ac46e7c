"""Deployed from a bundle on a machine that systemd booted: twice, watched, upgraded under load, taken back, backed up, and gone again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
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
from hx_gateway.stores.sql.upgrade import newest, steps

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
LONG = bool(os.environ.get("HX_LONG"))
# After the line of which step the deployment is killed, and how many seconds later.
KILLS = (("directories", 2.0), ("database", 0.3), ("switch", 0.0), ("enable", 0.5), ("start", 0.3))[:: 1 if LONG else 2]
MASTER = "the-master-key-of-the-litellm-that-was-here-before"
LITELLM = f"""
model_list:
  - model_name: tiny
    litellm_params: {{model: openai/tiny, api_base: "http://127.0.0.1:8081/v1", api_key: a-key-of-the-back-end}}
general_settings: {{master_key: {MASTER}}}
router_settings: {{model_group: {{hx-chat: [tiny]}}}}
"""
NEWEST, OLDER = list(steps().walk_revisions())[:2]
OLD_SCHEMA = {f"hx_gateway/stores/sql/migrations/{Path(NEWEST.path).name}": None}
BROKEN = {"hx_gateway/server/app.py": b"\nraise RuntimeError('planted: this release cannot serve')\n"}
EVERYTHING = ("opt/hx-gateway", "etc/hx-gateway", "etc/systemd/system", "usr/local/bin")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with bundles in /srv/hx: 0.0.0 with the schema before the newest, 0.0.1, 0.0.2, and 0.0.3, which cannot serve.

    Those of 0.0.2 are an index, too: a folder for each project.
    """
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
        for release, changes in (("0.0.0", OLD_SCHEMA), ("0.0.1", {}), ("0.0.2", {}), ("0.0.3", BROKEN)):
            wheel = renamed(kept, release, changes)
            placed = Path(shutil.move(wheel, wheels / wheel.name))
            tar = write(wheels, made.share, version.stdout.strip(), ["local"])
            shutil.unpack_archive(tar, made.share, filter="fully_trusted")
            (made.share / tar.stem).rename(made.share / release)
            tar.unlink()
            placed.unlink()
        for one in (made.share / "0.0.2/wheels").iterdir():
            place = made.share / "index/simple" / re.sub(r"[-_.]+", "-", one.name.split("-")[0]).lower()
            place.mkdir(parents=True, exist_ok=True)
            (place / one.name).hardlink_to(one)
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


def chat(machine: Machine, key: str = KEY, port: int = 8000) -> str:
    body = {
        "model": "hx-chat",
        "temperature": 0,
        "max_tokens": 10,
        "messages": [{"role": "user", "content": "Return exactly the text: HX-OK"}],
    }
    heads = ["-H", f"authorization: Bearer {key}", "-H", "content-type: application/json"]
    said = machine.do("curl", "-s", "--max-time", "30", *heads, "-d", json.dumps(body), f"http://127.0.0.1:{port}/v1/chat/completions")
    assert '"choices"' in said, said
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


def test_what_a_machine_lacks_is_told_before_anything_is_changed(machine: Machine) -> None:
    before = files_below(machine.root, *EVERYTHING)
    words = ["/srv/hx/0.0.1/deploy", "--config", "/srv/hx/config.yaml"]
    done = machine.run(*words, environ={"PATH": "/usr/bin:/bin"})
    assert "useradd is missing: apt install passwd" in done.stderr and "userdel is missing: apt install passwd" in done.stderr
    done = machine.run("setpriv", "--reuid=65534", "--clear-groups", *words)
    assert done.stderr.count("- only root can install a service: run it again with sudo") == 1
    strange = machine.share / "0.0.1/wheels/another-1.0-py3-none-any.whl"
    strange.write_bytes(b"")
    try:
        assert f"wheels/{strange.name}: not in the bundle's manifest" in deploy(machine, "0.0.1", fails=True)
    finally:
        strange.unlink()
    assert files_below(machine.root, *EVERYTHING) == before


def test_a_first_deployment_that_is_killed_again_and_again_goes_on(machine: Machine) -> None:
    # In the middle of: the release, the key, the links, the start, the validation. Each step in turn: tests/unit/ops/test_deployment.py
    for last, more_s in KILLS:
        words = machine.command("/srv/hx/0.0.1/deploy", "--config", "/srv/hx/config.yaml", environ={"MASTER_KEY": KEY})
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stdout is not None
        begun = False
        for line in process.stdout:
            begun = begun or not line.strip()  # after the plan
            if begun and line.startswith(f"{last:<14} "):
                time.sleep(more_s)
                os.killpg(process.pid, signal.SIGKILL)
                break
        assert process.wait(30) == -signal.SIGKILL, last
        process.stdout.close()


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


def uninstalled(machine: Machine) -> None:
    """Take it away, and see that nothing is left."""
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


def test_uninstall_leaves_nothing(machine: Machine) -> None:
    uninstalled(machine)


# The second life of the machine: LiteLLM's configuration, a release with an older schema, upgrades from an index.


@pytest.fixture(scope="module")
def back_end(machine: Machine) -> Iterator[None]:
    """A real llama.cpp server at port 8081 of the machine that wants a key, and an index of packages at port 8099."""
    model = [
        sys.executable,
        "-m",
        "hx_gateway.local.server",
        "--path",
        str(tiny.path()),
        "--port",
        "8081",
        "--alias",
        "tiny",
        "--slots",
        "4",
    ]
    index = [sys.executable, "-m", "http.server", "8099", "--bind", "127.0.0.1", "--directory", str(machine.share / "index")]
    with machine.beside(*model, environ={"HX_LOCAL_API_KEY": "a-key-of-the-back-end"}), machine.beside(*index):
        until(lambda: "ok" in machine.get("/health", port=8081) and "simple" in machine.get("/", port=8099))
        yield


def from_index(machine: Machine, version: str, fails: bool = False) -> str:
    """Upgrade from the index; what was said."""
    words = ["deploy", "--index", "http://127.0.0.1:8099/simple", "--version", version]
    done = machine.run("hx-gateway", *words, within_s=300)
    assert (done.returncode != 0) is fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def database(machine: Machine) -> tuple[str, int]:
    """Schema of the database, and how many records of usage it has."""
    told = json.loads(machine.do("hx-gateway", "service", "run", "--", "db", "status", "--json"))
    return told["schema"], told["rows"]["usage"]


def test_a_litellm_file_becomes_a_deployed_gateway(machine: Machine, back_end: None) -> None:
    (machine.share / "litellm.yaml").write_text(LITELLM)
    said = deploy(machine, "0.0.0", "--litellm", "/srv/hx/litellm.yaml", key="")
    assert "hx-chat" in said and "router_settings.model_group" in said, said
    assert chat(machine, MASTER) == "HX-OK"
    config = (machine.root / "etc/hx-gateway/config.yaml").read_text()
    assert MASTER not in config and "a-key-of-the-back-end" not in config
    environment = machine.root / "etc/hx-gateway/environment"
    assert f"\nMASTER_KEY={MASTER}\n" in environment.read_text() and environment.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not LONG, reason="takes HX_LONG=1")
def test_an_upgrade_that_changes_the_schema_and_fails_changes_it_back(machine: Machine, back_end: None) -> None:
    assert "planted: this release cannot serve" in deploy(machine, "0.0.3", key="", fails=True)
    assert database(machine)[0] == OLDER.revision and chat(machine, MASTER) == "HX-OK"


def test_an_upgrade_that_changes_the_schema_keeps_the_data(machine: Machine, back_end: None) -> None:
    older = OLDER.revision
    key = machine.run("hx-gateway", "service", "run", "--", "keys", "create", "before", "--model", "hx-chat").stdout.strip()
    models = ("curl", "-s", "-H", f"authorization: Bearer {key}", "http://127.0.0.1:8000/v1/models")
    until(lambda: '"hx-chat"' in machine.do(*models))  # the workers know a new key within a second
    assert chat(machine, key) == "HX-OK"
    until(lambda: database(machine)[1] >= 1)
    assert database(machine)[0] == older
    assert "release 0.0.2" in from_index(machine, "0.0.2")
    schema, records = database(machine)
    assert schema == newest() and records >= 1 and chat(machine, key) == "HX-OK"


def test_a_rollback_takes_the_database_along_where_that_is_said(machine: Machine, back_end: None) -> None:
    older = OLDER.revision
    done = machine.run("hx-gateway", "rollback")
    assert done.returncode == 1 and f"the database has schema {newest()}, and release 0.0.0 knows up to {older}" in done.stderr
    assert "--with-database" in done.stderr and chat(machine, MASTER) == "HX-OK"
    machine.do("hx-gateway", "rollback", "--with-database")
    assert database(machine)[0] == older and chat(machine, MASTER) == "HX-OK"
    aside = list((machine.root / "var/lib/hx-gateway").glob("hx-gateway.db.before-restore-*"))
    assert aside, "what was recorded since the upgrade is kept"


def test_several_workers_on_a_low_port(machine: Machine, back_end: None) -> None:
    assert int(machine.do("cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start")) > 80
    config = machine.root / "etc/hx-gateway/config.yaml"
    text = config.read_text()
    assert text.count("port: 8000}") == 1
    config.write_text(text.replace("port: 8000}", "port: 80, workers: 2}"))
    said = from_index(machine, "0.0.2")  # forward again at the same time
    assert database(machine)[0] == newest()
    assert "unit           done" in said and "release        nothing to do" in said and "tiny answered 'HX-OK'" in said
    assert machine.shown("AmbientCapabilities") == machine.shown("CapabilityBoundingSet") == "cap_net_bind_service"
    assert machine.shown("User") == "hx-gateway" and chat(machine, MASTER, 80) == "HX-OK"
    level = machine.do("systemd-analyze", "security", "--threshold=20", "hx-gateway.service").splitlines()[-1]
    assert float(level.split("level for hx-gateway.service:")[1].split()[0]) <= 2.0
    assert "hx_gateway_workers 2" in machine.get("/metrics", MASTER, 80)
    before = machine.shown("MainPID")
    with load(machine, MASTER, 80) as told:
        assert "handed over" in machine.do("hx-gateway", "service", "restart")
    assert machine.shown("MainPID") != before
    assert told["failures"] == [] and int(str(told["good"])) > 10
    uninstalled(machine)
