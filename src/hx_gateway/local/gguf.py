"""What the head of a GGUF file says about the model, read without loading it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_POOLING = ("none", "mean", "cls", "last", "rank")
_LONGEST_STRING = 1 << 24  # chat templates are long, but a longer one means the file is damaged
_MOST_ENTRIES = 1 << 16


class GgufError(ValueError):
    """The file cannot be used as a model; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """The few facts the gateway needs.

    Args:
        architecture: ``llama``, ``qwen3``, ``bert`` …
        name: The model's own name; may be empty.
        context_length: Tokens it was trained for; 0 when not said.
        embedding_length: Width of its vectors; 0 when not said.
        pooling: ``mean``, ``cls``, ``last`` or ``rank`` for an embedding model, empty for any other.
    """

    architecture: str = ""
    name: str = ""
    context_length: int = 0
    embedding_length: int = 0
    pooling: str = ""

    @property
    def embeds(self) -> bool:
        """Whether the file says of itself that it is an embedding model."""
        return bool(self.pooling)


class _Reader:
    """Reads GGUF's typed values from an open file, in order."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError
        return data

    def skip(self, count: int) -> None:
        if self.file.tell() + count > self.size:  # seeking past the end would not fail by itself
            raise EOFError
        self.file.seek(count, os.SEEK_CUR)

    def scalar(self, kind: int) -> Any:
        form = _SCALARS[kind]
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        length = self.scalar(10)
        if length > _LONGEST_STRING:
            raise EOFError
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            self._skip_array()
            return None
        return self.scalar(kind)

    def _skip_array(self) -> None:
        kind, count = self.scalar(4), self.scalar(10)
        if kind in _SCALARS:
            self.skip(count * struct.calcsize(_SCALARS[kind]))
            return
        for _ in range(count):  # a vocabulary: strings have to be stepped over one by one
            if kind == _STRING:
                self.skip(self.scalar(10))
            else:
                self._skip_array()


def read(path: Path) -> GgufInfo:
    """Read the head of a GGUF file.

    Raises:
        GgufError: The file is missing, not readable, not a GGUF file, or cut off within its head.
    """
    try:
        with path.open("rb") as file:
            return _info(_Reader(file), path)
    except FileNotFoundError:
        raise GgufError(f"{path}: no such file; `path` must name a model file in GGUF format") from None
    except IsADirectoryError:
        raise GgufError(f"{path}: is a directory; `path` must name the .gguf file inside it") from None
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror}") from None


def _info(reader: _Reader, path: Path) -> GgufInfo:
    if reader.file.read(4) != _MAGIC:
        raise GgufError(f"{path}: not a GGUF file; convert the model with llama.cpp's convert_hf_to_gguf.py")
    found: dict[str, Any] = {}
    try:
        reader.scalar(4)  # format version
        reader.scalar(10)  # number of tensors
        entries = reader.scalar(10)
        if entries > _MOST_ENTRIES:
            raise EOFError
        for _ in range(entries):
            key = reader.text()
            found[key] = reader.value(reader.scalar(4))
    except (EOFError, KeyError, RecursionError, struct.error):
        raise GgufError(f"{path}: damaged or cut off within its head; download it again") from None
    architecture = str(found.get("general.architecture", ""))
    pooling = found.get(f"{architecture}.pooling_type")
    known = isinstance(pooling, int) and 0 < pooling < len(_POOLING)
    return GgufInfo(
        architecture=architecture,
        name=str(found.get("general.name", "")),
        context_length=int(found.get(f"{architecture}.context_length") or 0),
        embedding_length=int(found.get(f"{architecture}.embedding_length") or 0),
        pooling=_POOLING[pooling] if known and pooling is not None else "",
    )
