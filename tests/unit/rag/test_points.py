"""Points and filters: what is refused, and with which place."""

from __future__ import annotations

import math
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from hx_gateway.rag.filters import EVERYTHING, Filter, Match, Range, of_documents, parsed
from hx_gateway.rag.points import Collection, Point, Terms, Unfit, checked_name, checked_points, packed, unpacked

COLLECTION = Collection(name="papers", model="m", digest="d", dimension=3)


def point(**changes: Any) -> Point:
    return msgspec.structs.replace(
        Point(id=str(uuid.UUID(int=1)), namespace="n", document="d", chunk=0, text="t", vector=packed([3, 0, 4])), **changes
    )


def test_a_vector_keeps_its_direction() -> None:
    assert unpacked(packed([3, 0, 4])) == pytest.approx([0.6, 0.0, 0.8])


@pytest.mark.parametrize(
    "values",
    [[math.nan, 1], [math.inf, 1], [1e300, 1], [0, 0], [], ["a"], [None]],
    ids=["nan", "inf", "huge", "zeros", "empty", "text", "null"],
)
def test_what_has_no_direction_is_no_vector(values: list[Any]) -> None:
    with pytest.raises(Unfit) as refused:
        packed(values)
    assert refused.value.field == "vector"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vector": packed([1, 2])}, "vector"),
        ({"vector": b""}, "vector"),
        ({"vector": b"\0\0\xc0\x7f" * 3}, "vector"),
        ({"vector": b"\0\0\x80\x3f" * 3}, "vector"),
        ({"id": "7"}, "id"),
        ({"id": str(uuid.UUID(int=2**128 - 1)).upper()}, "id"),
        ({"namespace": "../x"}, "namespace"),
        ({"text": "a\0b"}, "text"),
        ({"document": "a\0b"}, "text"),
        ({"metadata": {"a": ["\0"]}}, "metadata"),
        ({"metadata": {"\0": 1}}, "metadata"),
        *[
            ({"sparse": Terms(*terms)}, "sparse")
            for terms in (
                ([1], [math.nan]),
                ([1], [0.0]),
                ([2, 1], [1.0, 1.0]),
                ([1, 1], [1.0, 1.0]),
                ([1], []),
                ([10**9], [1.0]),
                ([-1], [1.0]),
            )
        ],
    ],
)
def test_a_point_that_cannot_be_kept_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Unfit) as refused:
        checked_points(COLLECTION, [point(), point(**changes)])
    assert refused.value.field == field


def test_a_backslash_before_u0000_is_no_nul() -> None:
    checked_points(COLLECTION, [point(metadata={"a": "\\u0000"}, text="\\0")])


@pytest.mark.parametrize("change", [{"model": "x"}, {"digest": "x"}, {"dimension": 4}, {"terms": "de-1"}])
def test_vectors_of_another_kind_do_not_go_into_a_collection(change: dict[str, Any]) -> None:
    refused = COLLECTION.refusal(msgspec.structs.replace(COLLECTION, **change))
    assert refused is not None and next(iter(change)) in str(refused)
    assert COLLECTION.refusal(msgspec.structs.replace(COLLECTION, created_ms=5)) is None


@pytest.mark.parametrize("name", ["a", "Team-7", "x_.y", "0" * 64])
def test_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", "a ", "a.", "é", "a\n", "0" * 65])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(Unfit):
        checked_name(name, "namespace")


def test_a_filter_is_read() -> None:
    found = parsed(
        {
            "must": [{"key": "year", "range": {"gte": 1960, "lt": 1970.5}}, {"key": "metadata.a.b", "match": {"any": ["x", "y"]}}],
            "must_not": {"key": "draft", "match": {"value": True}},
            "should": [{"must": [{"key": "document", "match": {"value": "d1"}}]}],
        }
    )
    assert found == Filter(
        must=(Range(("metadata", "year"), {"gte": 1960.0, "lt": 1970.5}), Match(("metadata", "a", "b"), ("x", "y"))),
        must_not=(Match(("metadata", "draft"), (True,)),),
        should=(of_documents("d1"),),
    )
    assert parsed(None) is EVERYTHING and not EVERYTHING and found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=list[str] | Filter) == found


def nested(depth: int) -> dict[str, Any]:
    return {"must": [nested(depth - 1)]} if depth else {}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "filter"),
        ("x", "filter"),
        ({"most": []}, "filter.most"),
        ({"must": [7]}, "filter.must[0]"),
        ({"must": [{"key": "a", "match": {"value": 1}}, {"key": 7, "match": {"value": 1}}]}, "filter.must[1].key"),
        ({"must": [{"key": "a b", "match": {"value": 1}}]}, "filter.must[0].key"),
        ({"must": [{"key": "a..b", "match": {"value": 1}}]}, "filter.must[0].key"),
        ({"should": [{"key": "a"}]}, "filter.should[0]"),
        ({"should": [{"key": "a", "match": {"value": 1}, "range": {"gt": 1}}]}, "filter.should[0]"),
        ({"must": [{"key": "a", "match": {"text": "x"}}]}, "filter.must[0].match"),
        ({"must": [{"key": "a", "match": {"value": 1.5}}]}, "filter.must[0].match.value"),
        ({"must": [{"key": "a", "match": {"value": None}}]}, "filter.must[0].match.value"),
        ({"must": [{"key": "a", "match": {"value": 2**63}}]}, "filter.must[0].match.value"),
        ({"must": [{"key": "a", "match": {"value": "\0"}}]}, "filter.must[0].match.value"),
        ({"must": [{"key": "a", "match": {"any": []}}]}, "filter.must[0].match.any"),
        ({"must": [{"key": "a", "match": {"any": ["x", 1]}}]}, "filter.must[0].match.any"),
        ({"must": [{"key": "a", "match": {"any": [True]}}]}, "filter.must[0].match.any"),
        ({"must": [{"key": "a", "range": {}}]}, "filter.must[0].range"),
        ({"must": [{"key": "a", "range": {"above": 1}}]}, "filter.must[0].range"),
        ({"must": [{"key": "a", "range": {"gt": "1"}}]}, "filter.must[0].range.gt"),
        ({"must": [{"key": "a", "range": {"gt": math.nan}}]}, "filter.must[0].range.gt"),
        ({"must": [{"key": "a", "range": {"gt": 10**400}}]}, "filter.must[0].range.gt"),
        (nested(4), "filter.must[0].must[0].must[0].must[0]"),
        ({"must": [{"key": "a", "match": {"value": 1}}] * 65}, "filter.must[64]"),
    ],
)
def test_a_malformed_filter_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(Unfit) as refused:
        parsed(value)
    assert refused.value.field == place


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(
            some.sampled_from(["must", "must_not", "should", "key", "match", "value", "any", "range", "gt"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_json_is_sent_is_read_or_refused(value: object) -> None:
    try:
        assert isinstance(parsed(value), Filter)
    except Unfit as refused:
        assert refused.field.startswith("filter")
