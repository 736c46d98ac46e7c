"""What keeps the gateway from being installed, each with its remedy; bundles that are damaged; the unit's text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.unit.ops.pretended import Pretended, source

from hx_gateway.ops import release, requirements
from hx_gateway.ops.bundle import ENTRY, MANIFEST, Source, of_wheels, opened, write
from hx_gateway.ops.host import Refused, environment_of
from hx_gateway.ops.requirements import lacks, strange, taken
from hx_gateway.ops.unit import Limits, litellm_text, unit_text

DEBIAN = {"apt-get", "systemctl", "journalctl", "getent", "useradd", "userdel"}
FEDORA = DEBIAN - {"apt-get"} | {"dnf"}


def found(tmp_path: Path, have: set[str], given: Source | None = None, python: Path | None = None, uid: int = 0) -> list[str]:
    machine = Pretended(tmp_path)
    return list(lacks(machine.host, given or source(), python, lambda name: name if name in have else None, uid))


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python outside of homes."""
    place = tmp_path / "bin/python3.11"
    place.parent.mkdir()
    place.touch()
    monkeypatch.setattr(release, "_PLACES", (str(place.parent),))
    return place


def test_a_machine_that_has_everything(tmp_path: Path, python: Path) -> None:
    assert found(tmp_path / "m", DEBIAN) == []


PACKAGES = {
    "systemctl": ("systemd", "systemd"),
    "journalctl": ("systemd", "systemd"),
    "getent": ("libc-bin", "glibc-common"),
    "useradd": ("passwd", "shadow-utils"),
    "userdel": ("passwd", "shadow-utils"),
}


@pytest.mark.parametrize("program", [program for program, *_ in requirements.PROGRAMS])
def test_each_missing_program_is_named_with_its_package(program: str, tmp_path: Path, python: Path) -> None:
    debian, fedora = PACKAGES[program]
    assert found(tmp_path / "m", DEBIAN - {program}) == [f"{program} is missing: apt install {debian}"]
    assert found(tmp_path / "n", FEDORA - {program}) == [f"{program} is missing: dnf install {fedora}"]
    neither = f"{program} is missing: install the package {debian} (Debian) or {fedora} (Fedora)"
    assert found(tmp_path / "o", FEDORA - {"dnf", program}) == [neither]


def test_rights_and_systemd(tmp_path: Path, python: Path) -> None:
    assert found(tmp_path / "m", DEBIAN, uid=1000) == ["only root can install a service: run it again with sudo"]
    machine = Pretended(tmp_path / "n")
    (machine.host.root / "run/systemd/system").rmdir()
    (said,) = lacks(machine.host, source(), None, lambda name: name, 0)
    assert said.startswith("this machine was not started by systemd")


def test_a_python_below_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = found(tmp_path / "m", DEBIAN, python=Path("/nowhere/python3"))
    assert said == "/nowhere/python3 does not exist"
    home = "/" + "home/somebody/bin/python3"
    monkeypatch.setattr(os.path, "realpath", lambda path: home)
    (said,) = found(tmp_path / "n", DEBIAN, python=Path(sys.executable))
    assert "below a home directory" in said and "203/EXEC" in said and "--python" in said
    monkeypatch.setattr(release, "_PLACES", ())
    (said,) = found(tmp_path / "o", DEBIAN, given=source())
    assert said.startswith("no Python 3.11 or newer that the service could run: apt install python3 (")


def test_a_python_that_makes_no_environments(tmp_path: Path, python: Path) -> None:
    machine = Pretended(tmp_path / "m")
    machine.failing = "ensurepip"
    (said,) = lacks(machine.host, Source("1.0.0"), python, lambda name: name if name in DEBIAN else None, 0)
    assert said == f"{python} cannot make environments: apt install python3-venv"


def test_a_full_disk(tmp_path: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1 << 30, 1 << 30, 5 << 20))  # type: ignore[attr-defined]
    (said,) = found(tmp_path / "m", DEBIAN)
    assert "has 5 MB free, and 600 MB are needed" in said


def test_the_wrong_machine() -> None:
    assert strange("127.0.0.1") == ""
    assert "does not have the address 192.0.2.1; if it is the right one, say --force or FORCE=1" in strange("192.0.2.1")
    assert "cannot be resolved" in strange("no-such-name.invalid")


def test_a_taken_port() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert taken(listener.getsockname()[1])


def bundle(tmp_path: Path) -> Path:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "hx_gateway-1.2.3-py3-none-any.whl").write_bytes(b"a wheel")
    (wheels / "pip-26.0-py3-none-any.whl").write_bytes(b"pip")
    return write(wheels, tmp_path / "dist", "3.11", ["local"])


def test_a_bundle_is_what_was_put_in(tmp_path: Path) -> None:
    tar = bundle(tmp_path)
    assert tar.name == "hx-gateway-1.2.3-py311.tar"
    with opened(tar) as made:
        assert (made.version, made.python, made.extras) == ("1.2.3", "3.11", ("local",))
        assert made.pip is not None and made.pip.read_bytes() == b"pip"
    with pytest.raises(Refused, match=r"the bundle has not redis; it has local"), opened(tar, ["redis"]):
        pass
    shutil.unpack_archive(tar, tmp_path / "out")
    folder = tmp_path / "out" / tar.stem
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert os.access(folder / ENTRY, os.X_OK)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["python"] = "3.99"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    done = subprocess.run([sys.executable, str(folder / ENTRY)], capture_output=True, text=True)
    assert done.returncode == 1 and "This bundle is for Python 3.99: start it as python3.99" in done.stderr


@pytest.mark.parametrize(("harm", "said"), [("change", "is damaged in the bundle"), ("remove", "is missing in the bundle")])
def test_a_damaged_bundle_is_refused(harm: str, said: str, tmp_path: Path) -> None:
    tar = bundle(tmp_path)
    shutil.unpack_archive(tar, tmp_path / "out")
    wheel = tmp_path / "out" / tar.stem / "wheels/hx_gateway-1.2.3-py3-none-any.whl"
    wheel.write_bytes(b"another") if harm == "change" else wheel.unlink()
    with pytest.raises(Refused, match=said), opened(tmp_path / "out" / tar.stem):
        pass


@pytest.mark.parametrize("name", ["hx_gateway-9.0.0-py3-none-any.whl", "pydantic-99.0.tar.gz"])
def test_a_file_that_is_not_in_the_manifest_is_refused(name: str, tmp_path: Path) -> None:
    tar = bundle(tmp_path)
    shutil.unpack_archive(tar, tmp_path / "out")
    folder = tmp_path / "out" / tar.stem
    (folder / "wheels" / name).write_bytes(b"from elsewhere")
    with pytest.raises(Refused, match=rf"wheels/{name}: not in the bundle's manifest bundle\.json; remove it"), opened(folder):
        pass


def test_the_entry_of_a_bundle_imports_nothing_that_is_not_in_the_manifest(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    def wheel(folder: Path, name: str) -> None:
        with zipfile.ZipFile(folder / f"{name}-1.2.3-py3-none-any.whl", "w") as made:
            for package in ("hx_gateway", "hx_gateway/cli"):
                made.writestr(f"{package}/__init__.py", "")
            made.writestr("hx_gateway/cli/main.py", f"def main(): print({name!r})")

    wheel(wheels, "hx_gateway")
    tar = write(wheels, tmp_path / "dist", f"{sys.version_info.major}.{sys.version_info.minor}", [])
    shutil.unpack_archive(tar, tmp_path / "out")
    wheel(tmp_path / "out" / tar.stem / "wheels", "another")
    assert subprocess.check_output([sys.executable, tmp_path / "out" / tar.stem / ENTRY], text=True) == "hx_gateway\n"


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    with pytest.raises(Refused, match="cannot be unpacked"), opened(tmp_path / "x.tar"):
        pass
    with pytest.raises(Refused, match="is no bundle.*make bundle"), opened(tmp_path):
        pass
    with pytest.raises(Refused, match="one wheel of hx-gateway among the wheels, not 0"):
        of_wheels(tmp_path, [])


def test_the_unit() -> None:
    text = unit_text("/opt/hx-gateway/current/bin/hx-gateway", "/etc/hx-gateway/config.yaml", "/etc/hx-gateway/environment", Limits(2, 4))
    for line in (
        "Type=notify",
        "MemoryMax=2048M",
        "CPUQuota=400%",
        "NoNewPrivileges=yes",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
    ):
        assert f"\n{line}\n" in text
    low = unit_text("/x", "/y", "/z", Limits(port=443, drain_s=100))
    assert "\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in low and "\nTimeoutStopSec=130\n" in low and "MemoryMax" not in low
    assert "\nExecStart=\nExecStart=/usr/bin/litellm --config /c --host 0.0.0.0 --port 4000\n" in litellm_text(
        "/usr/bin/litellm", "/c", "0.0.0.0", 4000
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_the_unit_clean_and_tight(tmp_path: Path) -> None:
    unit = tmp_path / "hx-gateway.service"
    unit.write_text(unit_text("/bin/true", "/etc/hx-gateway/config.yaml", "/etc/hx-gateway/environment", Limits(2, 4)))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_environment_file() -> None:
    assert environment_of("# a comment\nA=1\n B = two\nC='three words'\nnothing\nD=\"\"\n;E=5\n1F=6\n") == {
        "A": "1",
        "B": " two",
        "C": "three words",
        "D": "",
    }
