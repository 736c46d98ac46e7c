"""Write requirements/constraints.txt: the exact version of every package in the environment that runs this."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "requirements" / "constraints.txt"
NOT_PINNED = {"hx-gateway", "pip", "setuptools", "wheel"}
HEAD = """\
# Exact versions for reproducible installs: pip install -c requirements/constraints.txt 'hx-gateway[local]'
# Written by `make constraints` from the environment that last passed `make test`; do not edit by hand.
"""


def main() -> None:
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        versions[re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()] = distribution.version
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items()) if name not in NOT_PINNED]
    TARGET.write_text(HEAD + "".join(lines), encoding="utf-8")
    print(f"{len(lines)} versions in {TARGET.name}")


if __name__ == "__main__":
    main()
