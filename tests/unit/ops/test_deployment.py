"""A deployment on a machine that is pretended: twice, failed, broken off at each of its commands and run again."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.ops.pretended import BrokenOff, Pretended, source

from hx_gateway.ops import rollback, service, steps
from hx_gateway.ops.bundle import Source
from hx_gateway.ops.host import Host, Refused, open_unlinked
from hx_gateway.ops.install import alone, deploy, removal
from hx_gateway.ops.permissions import deviations, put_right
from hx_gateway.ops.plan import Failed, Step, carry_out, shown
from hx_gateway.ops.steps import Deployment


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must hold for five seconds is looked at once; nobody listens, so nobody is asked."""
    for module in (service, steps, rollback):
        for name in ("start", "stop"):
            if hasattr(module, name):
                found = getattr(service, name)
                monkeypatch.setattr(module, name, lambda host, confirm_s=0.0, found=found, **how: found(host, 0.0, **how))
        monkeypatch.setattr(module, "restart", lambda host, full=False: host.systemctl("restart", "hx-gateway.service") or "restarted")
    monkeypatch.setattr(steps, "validate", lambda *_: [])
    monkeypatch.setattr(steps, "ready", lambda *_: None)


def deployment(machine: Pretended, given: Source | None = None, **how: object) -> Deployment:
    return Deployment(machine.host, given or source(), Path("/usr/bin/python3"), **how)  # type: ignore[arg-type]


def deployed(machine: Pretended, given: Source | None = None, **how: object) -> int:
    made = deployment(machine, given, **how)
    return carry_out(made.steps(), lambda line: None, made.recover)


def state_of(root: Path) -> dict[str, object]:
    """Everything below the root but the log."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
        if path.name != "deploy.log"
    }


def test_a_dry_run_tells_everything_and_changes_nothing(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    before = state_of(tmp_path)
    plan = {name: why for name, _, why in shown(deployment(machine).steps())}
    assert plan["user"] == "there is none"
    assert plan["release"] == plan["command"] == "it is not there"
    assert plan["start"] == "it does not run"
    assert plan["validation"] == "it is tested every time"
    assert state_of(tmp_path) == before and not any(call[0] in ("useradd", "userdel") for call in machine.calls)


def test_twice_changes_nothing(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    assert deployed(machine) > 8
    before, pid = state_of(tmp_path), machine.pid
    assert deployed(machine) == 0
    assert (state_of(tmp_path), machine.pid) == (before, pid)
    assert (tmp_path / "etc/hx-gateway/environment").stat().st_mode & 0o777 == 0o640
    assert b"hx-made" not in b"".join(value for value in before.values() if isinstance(value, bytes))


def test_broken_off_at_each_command_and_run_again(tmp_path: Path) -> None:
    whole = Pretended(tmp_path / "whole")
    deployed(whole)
    expected = state_of(whole.host.root)
    for call in range(1, len(whole.calls) + 1):
        machine = Pretended(tmp_path / str(call))
        machine.break_at = call
        with pytest.raises(BrokenOff):
            deployed(machine)
        machine.break_at = 0
        deployed(machine)
        assert machine.active and machine.enabled and machine.user
        found = state_of(machine.host.root)
        assert found.keys() == expected.keys(), f"broken off at {whole.calls[call - 1]}"
        assert deployed(machine) == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_broken_off_in_each_step_and_run_again(moment: str, tmp_path: Path) -> None:
    whole = Pretended(tmp_path / "whole")
    deployed(whole)
    expected = state_of(whole.host.root).keys()
    names = [step.name for step in deployment(whole).steps()]
    assert len(names) == 16
    for name in names:
        machine = Pretended(tmp_path / name)

        def breaking(step: Step, name: str = name) -> Step:
            def apply() -> None:
                if moment == "after":
                    step.apply()
                raise BrokenOff

            return replace(step, apply=apply) if step.name == name else step

        said: list[str] = []
        made = deployment(machine)
        if name == "tidy":  # it has something to do only where there are many releases
            for version in ("0.1", "0.2", "0.3", "0.4"):
                deployed(machine, source(version))
        with pytest.raises(BrokenOff):
            carry_out([breaking(step) for step in made.steps()], said.append, made.recover)
        assert said[-1] == f"{name:<14} broken off; run it again to go on from here"
        deployed(machine)
        assert machine.active and machine.enabled and machine.user
        if name != "tidy":
            assert state_of(machine.host.root).keys() == expected, name
        assert deployed(machine) == 0


def test_two_deployments_at_once(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    with alone(machine.host), pytest.raises(Refused, match="another deployment is under way on this machine: wait for it"):
        deploy(deployment(machine), lambda line: None)
    assert deploy(deployment(machine), lambda line: None) > 8


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Pretended(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        machine.port = listener.getsockname()[1]
        with pytest.raises(Failed, match=rf"port {machine.port} is taken by another program: stop it, or set service.port in "):
            deployed(machine)
    assert deployed(machine) > 8


def test_a_command_of_that_name_that_is_another_program(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    machine.host.command.parent.mkdir(parents=True)
    machine.host.command.write_text("#!/bin/sh\n")
    with pytest.raises(Failed, match="hx-gateway is another program: move it away"):
        deployed(machine)
    assert machine.host.command.read_text() == "#!/bin/sh\n"


def test_a_configuration_that_cannot_be_used(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    machine.problems = [{"path": "service.port", "message": "should be a number"}]
    with pytest.raises(Failed, match=r"config.yaml cannot be used:\n  service.port: should be a number\ncorrect it, then run this again"):
        deployed(machine)


def test_a_database_of_a_newer_release(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    deployed(machine)
    machine.schema = "0009"
    with pytest.raises(Failed, match="the database has schema 0009, and release 2.0.0 knows up to 0003: install a release that does"):
        deployed(machine, source("2.0.0"))


@pytest.mark.parametrize("at", ["start", "validation"])
def test_a_schema_that_a_failed_upgrade_changed_is_changed_back(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Pretended(tmp_path)
    deployed(machine)

    def upgraded(host: Host, full: bool = False) -> str:
        if host.release() == host.releases / "2.0.0":
            assert full, "the schema must not change under a release that runs"
            machine.schema = "0004"
            if at == "start":
                raise Refused("as planned")
        return service.restart(host, full)

    def refused(*_: object) -> list[str]:
        raise Refused("as planned")

    machine.newest_of["2.0.0"] = "0004"
    monkeypatch.setattr(steps, "restart", upgraded)
    if at == "validation":
        monkeypatch.setattr(steps, "validate", refused)
    with pytest.raises(Failed, match="as planned"):
        deployed(machine, source("2.0.0"))
    assert (machine.schema, machine.active, machine.host.release()) == ("0003", True, machine.host.releases / "1.0.0")


def test_a_rollback_takes_the_database_back_where_that_is_said(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    host = machine.host
    machine.newest_of["2.0.0"] = "0004"
    for version in ("1.0.0", "2.0.0"):
        deployed(machine, source(version))
    machine.schema = "0004"
    target = rollback.target_of(host, "")
    with pytest.raises(Failed, match="Say --with-database to put back the copy"):
        carry_out(rollback.to_release(host, target), lambda line: None)
    machine.failing = "revert"
    with pytest.raises(Failed, match="the database stays as it is: revert: as planned"):
        carry_out(rollback.to_release(host, target, True), lambda line: None)
    assert machine.active and host.release() == host.releases / "2.0.0", "it runs as before"
    machine.failing = ""
    carry_out(rollback.to_release(host, target, True), lambda line: None)
    assert (machine.schema, machine.active, host.release()) == ("0003", True, host.releases / "1.0.0")


@pytest.mark.parametrize("failing", ["useradd", "venv", "install", "create", "daemon-reload", "enable", "start"])
def test_a_first_deployment_that_fails_leaves_nothing(failing: str, tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    before = state_of(tmp_path)
    machine.failing = failing
    with pytest.raises(Failed, match="as planned"):
        deployed(machine)
    left = state_of(tmp_path).keys() - before.keys()
    assert not [name for name in left if "hx-gateway" in name], left
    assert not machine.active and not machine.user


def test_an_upgrade_that_fails_leaves_the_release_before(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    deployed(machine)
    before = state_of(tmp_path)
    machine.failing = "restart"
    with pytest.raises(Failed, match="as planned"):
        deployed(machine, source("2.0.0"))
    assert state_of(tmp_path) == before
    machine.failing = ""
    assert deployed(machine) == 0


def test_releases_lie_beside_each_other_and_a_rollback_goes_back_and_forth(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    host = machine.host
    for version in ("1.0.0", "2.0.0"):
        deployed(machine, source(version))
    assert (host.release(), host.release(host.previous)) == (host.releases / "2.0.0", host.releases / "1.0.0")
    for expected in ("1.0.0", "2.0.0"):
        carry_out(rollback.to_release(host, rollback.target_of(host, "")), lambda line: None)
        assert host.release() == host.releases / expected
    assert deployed(machine, source("2.0.0")) == 0
    with pytest.raises(Refused, match=r"release 9 is not installed here; there are: 1\.0\.0, 2\.0\.0"):
        rollback.target_of(host, "9")
    machine.schema = "0004"
    with pytest.raises(Failed, match="the database has schema 0004, and release 1.0.0 knows up to 0003"):
        carry_out(rollback.to_release(host, rollback.target_of(host, "1.0.0")), lambda line: None)
    assert host.release() == host.releases / "2.0.0"


def test_another_build_of_a_version_gets_a_folder_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    deployed(machine)
    deployed(machine, source(digest="0123456789"))
    assert machine.host.release() == machine.host.releases / "1.0.0+01234567"
    for version in ("2.0.0", "3.0.0", "4.0.0", "5.0.0"):
        deployed(machine, source(version))
    assert sorted(path.name for path in machine.host.releases.iterdir()) == ["3.0.0", "4.0.0", "5.0.0"]


def test_an_admin_key_is_made_once_or_is_the_one_given(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    made = deployment(machine)
    carry_out(made.steps(), lambda line: None)
    assert made.made_key == "hx-made-on-this-machine"
    assert deployed(machine, master_key="another-key-of-mine") == 1
    assert ["rotate", "admin"] in [call[2:4] for call in machine.calls if "keys" in call]
    assert deployed(machine, master_key="another-key-of-mine") == 0


def test_back_ends_that_are_away_count_at_the_first_deployment_only(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    machine.findings = ["llm-01 cannot be reached: connection refused"]
    with pytest.raises(Failed, match="llm-01 cannot be reached.*say --force"):
        deployed(machine)
    deployed(machine, lenient=True)
    deployed(machine, source("2.0.0"))


def test_to_litellm_and_back(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    host = machine.host
    deployed(machine)
    program, config = tmp_path / "litellm", tmp_path / "litellm.yaml"
    with pytest.raises(Refused, match="--litellm-program"):
        rollback.to_litellm(host, str(program), config, "127.0.0.1", 4000)
    program.touch()
    with pytest.raises(Refused, match="--litellm-config"):
        rollback.to_litellm(host, str(program), config, "127.0.0.1", 4000)
    config.touch()
    carry_out(rollback.to_litellm(host, str(program), config, "127.0.0.1", 4000), lambda line: None)
    assert f"ExecStart=\nExecStart={program} --config {config} --host 127.0.0.1 --port 4000\n" in host.litellm.read_text()
    carry_out(rollback.to_release(host, rollback.target_of(host, "")), lambda line: None)
    assert not host.litellm.exists() and host.release() == host.releases / "1.0.0"
    assert deployed(machine) == 0


def test_a_litellm_file_is_imported_and_its_secrets_go_to_the_environment(tmp_path: Path) -> None:
    theirs = tmp_path / "config.yaml"
    theirs.write_text(
        "model_list: [{model_name: m, litellm_params: {model: openai/m, api_base: 'http://llm-01:1/v1', api_key: written-out}}]\n"
        "general_settings: {master_key: os.environ/THEIR_KEY}\nrouter_settings: {model_group: {g: [m]}}\n"
    )
    machine = Pretended(tmp_path)
    host = machine.host
    host.environment.parent.mkdir(parents=True)
    host.environment.write_text("THEIR_KEY=mine\n")
    assert deployed(machine, litellm=theirs) > 0
    assert host.variables()["LLM_01_API_KEY"] == "written-out" and host.variables()["THEIR_KEY"] == "mine"
    made = host.config.read_text()
    assert "env:LLM_01_API_KEY" in made and "g: {models: [m]}" in made and "written-out" not in made
    assert not list(host.state.glob("imported*"))
    assert deployed(machine, litellm=theirs) == 0


@pytest.mark.parametrize("keep", [False, True])
def test_uninstall(keep: bool, tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    before = state_of(tmp_path).keys()
    deployed(machine)
    carry_out(removal(machine.host, keep), lambda line: None)
    left = [name for name in state_of(tmp_path).keys() - before if "hx-gateway" in name]
    assert bool(left) is keep is machine.user and not machine.active
    assert all(name.startswith(("etc/hx-gateway", "var/")) for name in left)


def test_modes_for_a_server_and_for_somebody_s_work(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    deployed(machine)
    config = machine.host.config
    config.chmod(0o644)
    modes = {one.path: (one.found.split()[1], one.wanted.split()[1]) for one in deviations(machine.host)}
    assert modes[config] == ("0644", "0640")
    put_right(machine.host)
    assert config.stat().st_mode & 0o777 == 0o640
    put_right(machine.host, "somebody")
    assert config.stat().st_mode & 0o777 == 0o660
    assert machine.host.configuration.stat().st_mode & 0o777 == 0o770


def test_the_address_of_an_index_is_in_no_command_and_no_message(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    machine.failing = "hx-gateway=="
    with pytest.raises(Failed) as failed:
        deployed(machine, Source("1.0.0", digest="d", index="http://who:pw@127.0.0.1:9/simple"))
    assert "pw@" not in str(failed.value) + str(machine.calls) and any("install" in call for call in machine.calls)


def test_what_the_service_s_user_put_in_its_folders_leads_nobody_elsewhere(tmp_path: Path) -> None:
    machine = Pretended(tmp_path)
    host, victim = machine.host, tmp_path / "victim"
    victim.write_text("before\n")
    host.log.mkdir(parents=True)
    (host.log / "deploy.log").symlink_to(victim)
    host.log_line("deployed")
    assert victim.read_text() == "before\n"
    with pytest.raises(OSError, match="symbolic"):
        open_unlinked(host.log / "deploy.log")
    (host.log / "deploy.log").unlink()
    host.log_line("deployed")
    assert (host.log / "deploy.log").read_text().endswith("Z deployed\n")
