"""What a test needs beyond Python: where it is missing, a skip on a developer's machine, and a failure on a build server."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

ON_BUILD_SERVER = bool(os.environ.get("CI"))
"""Whether nothing may be left out."""


def missing(what: str) -> NoReturn:
    """End the test, because of what is not there: skipped, or failed where ``CI`` is set."""
    if ON_BUILD_SERVER:
        pytest.fail(f"required where CI is set: {what}")
    pytest.skip(what)


def llamacpp() -> None:
    """Need llama.cpp."""
    if importlib.util.find_spec("xllamacpp") is None:
        missing("needs llama.cpp: pip install 'hx-gateway[local]'")


def vectors() -> None:
    """Need the engine of the embedded store of documents."""
    if importlib.util.find_spec("qdrant_edge") is None:
        missing("needs Qdrant's engine: pip install 'hx-gateway[rag]'")


def program(name: str) -> str:
    """Need a program; returns its path."""
    found = shutil.which(name)
    return found if found is not None else missing(f"needs {name}")
