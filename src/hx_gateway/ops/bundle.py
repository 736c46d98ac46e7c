"""A bundle: one tar with the wheels of the gateway and of all it needs, their checksums, and the command that installs them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hx_gateway.ops.host import Refused, file_digest

MANIFEST = "bundle.json"
WHEELS = "wheels"
ENTRY = "deploy"
_ENTRY = '''\
#!/usr/bin/env python3
"""Installs HX Gateway from the wheels beside this file, without a network: sudo ./deploy --help"""

import json
import pathlib
import sys
import tempfile
import zipfile

here = pathlib.Path(__file__).resolve().parent
manifest = json.loads((here / "bundle.json").read_text())
version = manifest["python"]
if sys.version_info[:2] != tuple(map(int, version.split("."))):
    sys.exit("This bundle is for Python %s: start it as python%s %s" % (version, version, " ".join(sys.argv)))
wheels = [here / name for name in manifest["files"]]
# The command line is run from the wheels as they are; what is compiled must be unpacked, and of that it needs one.
unpacked = tempfile.TemporaryDirectory(prefix="hx-deploy-")
for wheel in wheels:
    if wheel.name.startswith("pydantic_core-"):
        zipfile.ZipFile(wheel).extractall(unpacked.name)
sys.path[:0] = [unpacked.name, *(str(wheel) for wheel in wheels if wheel.name.endswith("-none-any.whl"))]
from hx_gateway.cli.main import main  # noqa: E402

sys.argv[1:1] = ["deploy", "--bundle", str(here)]
main()
'''


@dataclass(frozen=True, slots=True)
class Source:
    """Where a release is installed from.

    Args:
        version: Of the gateway.
        wheels: Folder of wheels; None to ask an index.
        python: Python version the wheels are for, such as ``3.11``; empty where that is not known.
        extras: Optional parts to install.
        digest: SHA-256 over what the wheels are; tells two builds of the same version apart.
        index: Address of a package index; empty for pip's own setting.
        names: File names of the wheels.
    """

    version: str
    wheels: Path | None = None
    python: str = ""
    extras: tuple[str, ...] = ()
    digest: str = ""
    index: str = ""
    names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def pip(self) -> Path | None:
        """The wheel of pip, where it came along."""
        return next((self.wheels / name for name in self.names if name.startswith("pip-")), None) if self.wheels is not None else None


def write(folder: Path, target: Path, python: str, extras: Sequence[str]) -> Path:
    """Make a bundle of a folder of wheels; returns the tar.

    Args:
        folder: The wheels: one of the gateway, all it needs, and pip.
        target: Folder to put the tar into.
        python: Python version the wheels are for.
        extras: Optional parts whose wheels are there.
    """
    wheels = sorted(folder.glob("*.whl"))
    version = _version(wheels)
    files = {f"{WHEELS}/{wheel.name}": file_digest(wheel) for wheel in wheels}
    name = f"hx-gateway-{version}-py{python.replace('.', '')}"
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target) as made:
        top = Path(made) / name
        (top / WHEELS).mkdir(parents=True)
        for wheel in wheels:
            shutil.copyfile(wheel, top / WHEELS / wheel.name)
        entry = top / ENTRY
        entry.write_text(_ENTRY, encoding="utf-8")
        entry.chmod(0o755)
        manifest = {"version": version, "python": python, "extras": sorted(extras), "files": files}
        (top / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        sums = "".join(
            f"{value}  {path}\n" for path, value in {**files, ENTRY: file_digest(entry), MANIFEST: file_digest(top / MANIFEST)}.items()
        )
        (top / "SHA256SUMS").write_text(sums, encoding="ascii")
        tar = target / f"{name}.tar"
        with tarfile.open(tar, "w") as archive:
            archive.add(top, name, filter=_anonymous)
    return tar


@contextmanager
def opened(place: Path, extras: Sequence[str] | None = None) -> Iterator[Source]:
    """A bundle, as its tar or unpacked, with every checksum compared.

    Args:
        place: It.
        extras: Optional parts to install; None for all it has.

    Raises:
        Refused: It is damaged, incomplete, lacks a part, or has a file that is not in its manifest.
    """
    with TemporaryDirectory(prefix="hx-bundle-") as made:
        if place.is_file():
            try:
                with tarfile.open(place) as archive:
                    archive.extractall(made, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(made)  # noqa: S202
            except (tarfile.TarError, OSError) as error:
                raise Refused(f"{place} cannot be unpacked: {error}; copy it again") from None
            place = next((found.parent for found in Path(made).glob(f"*/{MANIFEST}")), Path(made))
        try:
            manifest = json.loads((place / MANIFEST).read_bytes())
            version, python, has, files = (manifest[key] for key in ("version", "python", "extras", "files"))
        except (OSError, ValueError, KeyError) as error:
            raise Refused(f"{place} is no bundle: {error}; make one with `make bundle`") from None
        for name, expected in files.items():
            wheel = place / name
            if not wheel.is_file() or file_digest(wheel) != expected:
                raise Refused(f"{name} is {'damaged' if wheel.is_file() else 'missing'} in the bundle; copy it again")
        # Whatever else lies there pip could take instead.
        if more := sorted(
            str(path.relative_to(place)) for path in (place / WHEELS).rglob("*") if str(path.relative_to(place)) not in files
        ):
            raise Refused(f"{', '.join(more)}: not in the bundle's manifest {MANIFEST}; remove it, or unpack the bundle again")
        wanted = tuple(has if extras is None else extras)
        if missing := sorted(set(wanted) - set(has)):
            raise Refused(
                f"the bundle has not {', '.join(missing)}; it has {', '.join(has) or 'no optional part'}: make it with those extras"
            )
        names = tuple(sorted(name.rpartition("/")[2] for name in files))
        yield Source(version, place / WHEELS, python, wanted, hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest(), names=names)


def of_wheels(folder: Path, extras: Sequence[str]) -> Source:
    """A folder of wheels as a source.

    Raises:
        Refused: There is not exactly one wheel of the gateway in it.
    """
    wheels = sorted(folder.glob("*.whl"))
    sums = repr([(wheel.name, file_digest(wheel)) for wheel in wheels]).encode()
    return Source(
        _version(wheels), folder, "", tuple(extras), hashlib.sha256(sums).hexdigest(), names=tuple(wheel.name for wheel in wheels)
    )


def _version(wheels: Sequence[Path]) -> str:
    found = [wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("hx_gateway-")]
    if len(found) != 1:
        raise Refused(f"there must be one wheel of hx-gateway among the wheels, not {len(found)}")
    return found[0]


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A member of the archive without who made it and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    return member
