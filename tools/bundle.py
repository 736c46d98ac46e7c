"""Make a bundle: one tar from which the gateway is installed without a network, with the optional parts that are named.

As a program::

    python tools/bundle.py --to dist --extras local,postgres,qdrant,rag,redis
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from hx_gateway.ops.bundle import write

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = "local,postgres,qdrant,rag,redis"


def wheels_into(folder: Path, extras: str, python: str) -> None:
    """Collect the wheels of this checkout, of all it needs, and pip's own."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True)
    own = next(folder.glob("hx_gateway-*.whl"))
    constraints = ROOT / "requirements" / "constraints.txt"
    wanted = f"{own}[{extras}]" if extras else str(own)
    subprocess.run(
        [*pip, "download", "--only-binary", ":all:", "--python-version", python, "-c", str(constraints), "-d", str(folder), wanted, "pip"],
        check=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="folder for the tar")
    parser.add_argument("--extras", default=EXTRAS, help=f"optional parts, with commas ({EXTRAS})")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=running, help=f"Python version of the machine it is for ({running})")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hx-wheels-") as made:
        wheels_into(Path(made), given.extras, given.python)
        tar = write(Path(made), given.to, given.python, [part for part in given.extras.split(",") if part])
    print(f"{tar}, {tar.stat().st_size / 1e6:.0f} MB: copy it to the server, then: tar xf {tar.name} && sudo ./{tar.stem}/deploy --dry-run")


if __name__ == "__main__":
    main()
