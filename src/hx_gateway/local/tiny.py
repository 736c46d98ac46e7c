"""The model that ships with the gateway, for the demo and for tests."""

from __future__ import annotations

from pathlib import Path

NAME = "hx-tiny-copy"
EMBEDDING_LENGTH = 128


def path() -> Path:
    """The GGUF file of the tiny model; ``hx-tiny-copy.md`` beside it says what it can do."""
    return Path(__file__).with_name("hx-tiny-copy.gguf")
