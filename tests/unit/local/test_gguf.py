"""The head of a GGUF file: read right, and every kind of damage named."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.local import gguf, tiny


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def head(*entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries)


@pytest.fixture
def written(tmp_path: Path):
    def write(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write


def test_the_model_that_ships_is_the_one_its_page_describes() -> None:
    data = tiny.path().read_bytes()
    page = tiny.path().with_suffix(".md").read_text(encoding="utf-8")
    assert hashlib.sha256(data).hexdigest() in page
    info = gguf.read(tiny.path())
    assert info == gguf.GgufInfo("llama", tiny.NAME, 1024, tiny.EMBEDDING_LENGTH, "")
    assert not info.embeds


def test_an_embedding_model_is_known_by_its_pooling(written) -> None:
    path = written(
        head(
            entry("general.architecture", 8, text("bert")),
            entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bb")),
            entry("tokenizer.ggml.scores", 9, struct.pack("<IQff", 6, 2, 0.0, 1.0)),
            entry("nested", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQBB", 0, 2, 1, 2)),
            entry("bert.pooling_type", 4, struct.pack("<I", 2)),
            entry("bert.context_length", 4, struct.pack("<I", 512)),
        )
    )
    info = gguf.read(path)
    assert (info.architecture, info.pooling, info.context_length, info.embeds) == ("bert", "cls", 512, True)


@pytest.mark.parametrize("pooling", [0, 9])
def test_no_pooling_and_unknown_pooling_make_no_embedding_model(written, pooling: int) -> None:
    path = written(head(entry("general.architecture", 8, text("x")), entry("x.pooling_type", 4, struct.pack("<I", pooling))))
    assert not gguf.read(path).embeds


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(gguf.GgufError, match=r"no such file; `path` must name"):
        gguf.read(tmp_path / "none.gguf")
    with pytest.raises(gguf.GgufError, match="is a directory"):
        gguf.read(tmp_path)


def test_another_format_is_refused_with_the_way_to_convert_it(written) -> None:
    with pytest.raises(gguf.GgufError, match=r"not a GGUF file; convert"):
        gguf.read(written(b"PK\x03\x04 a zip archive"))


@given(cut=st.integers(min_value=4, max_value=4755))  # its head has 4,756 bytes
def test_every_cut_within_the_head_is_noticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.gguf"
    path.write_bytes(tiny.path().read_bytes()[:cut])
    with pytest.raises(gguf.GgufError, match="damaged or cut off"):
        gguf.read(path)


@given(noise=st.binary(max_size=300))
def test_noise_after_the_magic_never_escapes_as_another_error(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "model.gguf"
    path.write_bytes(b"GGUF" + noise)
    try:
        gguf.read(path)
    except gguf.GgufError as error:
        assert str(path) in str(error)


def test_lengths_beyond_the_file_are_damage(written) -> None:
    for bad in (
        entry("general.name", 8, struct.pack("<Q", 1 << 60)),
        entry("tokens", 9, struct.pack("<IQ", 4, 1 << 62)),
        entry("tokens", 9, struct.pack("<IQ", 8, 1 << 40)),
        entry("deep", 9, struct.pack("<IQ", 9, 1) * 5000),
    ):
        with pytest.raises(gguf.GgufError, match="damaged|cannot be read"):
            gguf.read(written(head(bad)))
