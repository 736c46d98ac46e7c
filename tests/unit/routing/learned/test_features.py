"""What the scorer sees of a prompt: the same everywhere, bounded, and without text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.routing.learned.features import BITS, HEAD_CHARS, SHAPES, STEPS, TAIL_CHARS, Features, extract, named, shape_name


def test_hashes_are_the_same_in_every_process_and_release() -> None:
    # Artifacts and logs rest on them: whoever changes this raises the format of artifacts.
    assert sorted(extract("Ask, ask 2 Owls?").words) == [33742, 49840, 114189, 164718, 191200, 201826, 213681, 235174, 237141, 245357]


def test_words_signs_and_pairs_are_named() -> None:
    names = named("Is 2x a limit?")
    assert set(names.values()) == {"is", "2x", "a", "limit", "?", "is 2x", "2x a", "a limit", "limit ?"}
    assert set(names) == set(extract("Is 2x a limit?").words)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("one", 1), ("one two", 3), ("one two one", 4), ("\u0130" * 5000, 4)])
def test_every_pair_has_a_hash_of_its_own(text: str, count: int) -> None:
    assert len(extract(text).words) == len(set(named(text))) == len(set(named(text).values())) == count


def test_scripts_without_spaces_have_pairs_of_characters() -> None:
    names = set(named("東京は hell").values())
    assert {"東", "東 京", "京 は", "hell"} <= names
    assert set(named("東京は hell")) == set(extract("東京は hell").words)


def test_of_a_long_prompt_the_beginning_and_the_end_are_read() -> None:
    middle = "y" * 10_000
    long = "alpha " * 300 + middle + " omega" * 300
    assert extract(long).words == extract(long.replace("yyy", "z" * 3)).words
    assert {"alpha", "omega"} <= set(named(long).values())
    assert len(extract("ab " * 100_000).words) <= HEAD_CHARS + TAIL_CHARS


@pytest.mark.parametrize(
    ("text", "turns", "tools", "shape"),
    [
        ("```\nx = 1;\n```", 1, 0, "code"),
        ("what is $x^2$", 1, 0, "formula"),
        ("what is it?", 1, 0, "question"),
        ("hello", 9, 0, "turns"),
        ("hello", 1, 4, "tools"),
        ("привет", 1, 0, "other scripts"),
    ],
)
def test_the_shape_tells_kinds_of_prompts_apart(text: str, turns: int, tools: int, shape: str) -> None:
    position = SHAPES.index(shape)
    assert extract(text, turns, tools).shape[position] > position * STEPS
    assert extract("hello").shape[position] == position * STEPS
    assert shape_name(position * STEPS + 3) == f"{shape} step 3"


@given(st.text(max_size=300) | st.text(st.characters(categories=["Cs", "Lu", "Nd", "So"]), max_size=50), st.integers(-3, 10**9))
def test_any_text_has_features_that_a_log_gives_back(text: str, number: int) -> None:
    features = extract(text, number, number)
    back = Features.unpack(features.pack())
    assert (set(back.words), back.shape) == (set(features.words), features.shape)
    assert all(0 <= word < 1 << BITS for word in features.words)
    assert [position // STEPS for position in features.shape] == list(range(len(SHAPES)))
    assert set(named(text)) == set(features.words)


@pytest.mark.parametrize("packed", [b"", b"\x00" * 3, b"\xff" * 40, b"\x00" * len(SHAPES) + b"\xff\xff\xff\x7f"])
def test_other_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="no packed features"):
        Features.unpack(packed)
