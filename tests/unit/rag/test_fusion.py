"""Rankings joined, and hits that are alike set back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hx_gateway.rag.fusion import cosine, diverse, reciprocal

IDS = st.lists(st.sampled_from("abcdefghij"), unique=True)


def test_what_both_found_comes_before_what_one_found() -> None:
    scores = reciprocal([["a", "b", "c"], ["c", "d"]], 60.0)
    assert list(scores) == ["c", "a", "b", "d"]
    assert scores["c"] == pytest.approx(1 / 63 + 1 / 61)


@given(IDS, IDS, st.floats(1, 100))
def test_every_hit_is_there_once_and_best_first(one: list[str], other: list[str], k: float) -> None:
    scores = reciprocal([one, other], k)
    assert set(scores) == {*one, *other}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    alone = reciprocal([one], k)
    assert list(alone) == one, "one ranking alone stays as it is"


def test_diversity_sets_a_double_behind_what_is_new() -> None:
    vectors = {"a": [1.0, 0.0], "again": [1.0, 0.0], "new": [0.0, 1.0]}
    relevance = {"a": 0.9, "again": 0.89, "new": 0.5}
    assert diverse(relevance, vectors, 3, 0.0) == ["a", "again", "new"]
    assert diverse(relevance, vectors, 2, 0.7) == ["a", "new"]
    assert diverse({}, {}, 3, 0.5) == []


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1), min_size=1), st.integers(1, 10), st.floats(0, 1))
def test_as_many_are_chosen_as_are_wanted_and_there(relevance: dict[str, float], limit: int, diversity: float) -> None:
    vectors = {id: [1.0, 0.0] if number % 2 else [0.6, 0.8] for number, id in enumerate(relevance)}
    chosen = diverse(relevance, vectors, limit, diversity)
    assert len(chosen) == len(set(chosen)) == min(limit, len(relevance))
    assert relevance[chosen[0]] == max(relevance.values()) or diversity == 1.0


def test_cosine_of_unit_vectors() -> None:
    assert cosine([0.6, 0.8], [1.0, 0.0]) == pytest.approx(0.6)
