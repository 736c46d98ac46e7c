"""Terms: what is taken out of a text, and that their weights are BM25's."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hx_gateway.rag.sparse import AVERAGE, K1, B, document_terms, query_terms, stem


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("rational", "ration"),
        ("vietnamization", "vietnam"),
        ("electricity", "electr"),
        ("goodness", "good"),
        ("adjustable", "adjust"),
        ("adoption", "adopt"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("controlling", "control"),
        ("roll", "roll"),
        ("x15", "x15"),
    ],
)
def test_a_word_loses_the_endings_of_porters_published_examples(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_weights_grow_with_the_count_and_shrink_with_the_length() -> None:
    once, twice = document_terms("wing tail"), document_terms("wing wing")
    assert once is not None and twice is not None
    scale = K1 * (1 - B + B * 2 / AVERAGE)
    assert once.values == pytest.approx([(K1 + 1) / (1 + scale)] * 2)
    assert twice.values == pytest.approx([2 * (K1 + 1) / (2 + scale)])
    longer = document_terms("wing " + " ".join(f"w{number}" for number in range(400)))
    wing = query_terms("wings")
    assert longer is not None and wing is not None
    assert longer.values[longer.indices.index(wing.indices[0])] < min(once.values)


@pytest.mark.parametrize("text", ["", "  ", "the of and", "!?…"])
def test_a_text_without_words_has_no_terms(text: str) -> None:
    assert document_terms(text) is None and query_terms(text) is None


@pytest.mark.parametrize(
    ("question", "text"),
    [("Flügel", "FLÜGEL und Leitwerk"), ("京都", "東京都庁"), ("ﬁling", "files"), ("wing-tip", "tip of a wing"), ("Ωmega", "ωMEGA")],
)
def test_words_of_other_scripts_and_spellings_meet(question: str, text: str) -> None:
    asked, kept = query_terms(question), document_terms(text)
    assert asked is not None and kept is not None
    assert set(asked.indices) & set(kept.indices)


@given(some.text(max_size=300))
def test_any_text_gives_ascending_numbers_and_finite_weights(text: str) -> None:
    terms = document_terms(text)
    if terms is not None:
        assert terms.indices == sorted(set(terms.indices)) and len(terms.indices) == len(terms.values) > 0
        assert all(0 <= number < 10**9 for number in terms.indices)
        assert all(math.isfinite(weight) and weight > 0 for weight in terms.values)
