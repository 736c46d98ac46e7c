"""What every vector store must do, over all three of them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from tests.support.vectors import EAST, PAPERS, ident, point

from hx_gateway.rag.filters import EVERYTHING, of_documents, parsed
from hx_gateway.rag.points import Hit, Point, Terms, Unfit, VectorStore, packed, unpacked
from hx_gateway.rag.sparse import query_terms

Reopened = Callable[[], Awaitable[VectorStore]]


def ids(found: list[Hit] | list[Point]) -> list[str]:
    return [item.point.id if isinstance(item, Hit) else item.id for item in found]


async def filled(store: VectorStore, *points: Point) -> VectorStore:
    await store.create(PAPERS)
    await store.upsert("papers", points)
    return store


async def test_a_store_that_was_never_used_is_empty(store: VectorStore) -> None:
    await store.ping()
    assert await store.collections() == []
    assert await store.dense("papers", "default", EAST, 10, EVERYTHING) == []
    assert await store.sparse("papers", "default", Terms([1], [1.0]), 10, EVERYTHING) == []
    assert await store.fetch("papers", "default", [ident(1)]) == []
    assert await store.count("papers", "default", EVERYTHING) == 0
    assert await store.delete("papers", "default", [ident(1)]) == 0
    assert await store.documents("papers", "default", ["d0"]) == {}
    assert await store.namespaces("papers") == {}
    assert await store.scroll("papers", "", 10) == []
    assert await store.drop("papers") is False
    with pytest.raises(Unfit) as refused:
        await store.upsert("papers", [point(1)])
    assert refused.value.field == "collection"


async def test_a_collection_remembers_its_model(store: VectorStore, reopened: Reopened) -> None:
    made = await store.create(PAPERS)
    assert made.created_ms > 0 and msgspec.structs.replace(made, created_ms=0) == PAPERS
    assert await store.create(PAPERS) == made
    for change in ({"model": "other"}, {"digest": "sha256:2"}, {"dimension": 4}):
        with pytest.raises(Unfit, match=next(iter(change))):
            await store.create(msgspec.structs.replace(PAPERS, **change))
    other = await store.create(msgspec.structs.replace(PAPERS, name="Books-2.x", dimension=5))
    assert await store.collections() == [other, made]
    store = await reopened()
    assert await store.collections() == [other, made] and await store.create(PAPERS) == made
    await store.upsert("papers", [point(1)])
    assert await store.drop("papers") is True and await store.drop("papers") is False
    assert await store.collections() == [other] and await store.count("papers", "default", EVERYTHING) == 0
    await store.create(msgspec.structs.replace(PAPERS, model="other", dimension=4))
    assert await store.count("papers", "default", EVERYTHING) == 0


async def test_what_was_kept_is_there_whole_after_a_restart(store: VectorStore, reopened: Reopened) -> None:
    points = [
        point(1, text="wings and flutter", year=1961, tags=["a", "b"], deep={"er": {"x": None}}, ok=True, part=0.5, big=2**60),
        point(2, text="Größe \\u0000 'quoted' \"double\" 東京 🛩 \n\t"),
        msgspec.structs.replace(point(3), document="odd/../name %20 ü", text=""),
    ]
    await filled(store, *points)
    for _ in range(2):
        found = await store.fetch("papers", "default", [item.id for item in points] + [ident(99)], vectors=True)
        assert sorted(map(whole, found)) == sorted(map(whole, points))
        bare = await store.fetch("papers", "default", [points[0].id])
        assert bare[0].vector == b"" and bare[0].sparse is None and bare[0].text == points[0].text
        store = await reopened()


def whole(item: Point) -> Any:
    """A point for comparison: weights as stores keep them, in single precision."""
    sparse = None if item.sparse is None else (item.sparse.indices, [round(weight, 5) for weight in item.sparse.values])
    vector = [round(number, 5) for number in unpacked(item.vector)]  # the stand-in for Qdrant makes them of length 1 once more
    return (item.id, str(vector), str(sparse), msgspec.json.encode(msgspec.structs.replace(item, vector=b"", sparse=None), order="sorted"))


async def test_keeping_again_replaces_and_adds_nothing(store: VectorStore) -> None:
    await filled(store, *[point(number, text=f"word{number} common") for number in range(10)])
    await store.upsert("papers", [point(number, text=f"word{number} common") for number in range(10)])
    assert await store.count("papers", "default", EVERYTHING) == 10
    changed = msgspec.structs.replace(point(3, text="new words"), vector=point(80).vector)
    await store.upsert("papers", [point(3, text="early"), changed])
    assert await store.count("papers", "default", EVERYTHING) == 10
    assert whole((await store.fetch("papers", "default", [ident(3)], vectors=True))[0]) == whole(changed)
    terms = query_terms("word3 early")
    assert terms is not None and await store.sparse("papers", "default", terms, 10, EVERYTHING) == []
    assert ids(await store.dense("papers", "default", point(80).vector, 1, EVERYTHING)) == [ident(3)]


async def test_the_nearest_come_first_with_their_cosine(store: VectorStore) -> None:
    await filled(store, *[point(number) for number in (60, 5, 30, 89, 10)])
    hits = await store.dense("papers", "default", EAST, 3, EVERYTHING)
    assert ids(hits) == [ident(5), ident(10), ident(30)]
    assert [hit.score for hit in hits] == pytest.approx([math.cos(math.radians(angle)) for angle in (5, 10, 30)], abs=1e-5)
    assert hits[0].point.text == "text 5" and hits[0].point.vector == b""
    near = await store.dense("papers", "default", EAST, 10, EVERYTHING, threshold=math.cos(math.radians(45)))
    assert ids(near) == [ident(5), ident(10), ident(30)]
    assert await store.dense("papers", "default", packed([-1, 0, 0]), 10, EVERYTHING, threshold=0.5) == []
    assert len(await store.dense("papers", "default", packed([-1, 0, 0]), 10, EVERYTHING)) == 5


async def test_rare_common_terms_count_most(store: VectorStore) -> None:
    texts = {1: "wing flutter of a wing", 2: "wing loading", 3: "heat transfer", 4: "wing heat", 5: "boundary layer"}
    await filled(store, *[point(number, text=text) for number, text in texts.items()], point(6))
    terms = query_terms("the flutter of wings")
    assert terms is not None
    hits = await store.sparse("papers", "default", terms, 10, EVERYTHING)
    assert ids(hits)[0] == ident(1) and set(ids(hits)) == {ident(1), ident(2), ident(4)}
    assert hits[0].score > 2 * hits[1].score > 0
    total, having = 6, {"flutter": 1, "wing": 3}
    kept = point(1, text=texts[1]).sparse
    assert kept is not None
    weights = dict(zip(kept.indices, kept.values, strict=True))
    expected = 0.0
    for word, count in having.items():
        (number,) = query_terms(word).indices  # type: ignore[union-attr]
        expected += weights[number] * math.log(1 + (total - count + 0.5) / (count + 0.5))
    assert hits[0].score == pytest.approx(expected, rel=0.15)  # whether a point without terms counts differs
    assert ids(await store.sparse("papers", "default", terms, 1, EVERYTHING)) == [ident(1)]
    unknown = query_terms("zeppelin")
    assert unknown is not None and await store.sparse("papers", "default", unknown, 10, EVERYTHING) == []


async def test_namespaces_do_not_see_or_touch_each_other(store: VectorStore) -> None:
    mine = [point(number, "mine", text=f"shared secret{number}") for number in range(4)]
    theirs = [point(number, "theirs", text=f"shared public{number}") for number in range(40)]
    terms = query_terms("shared secret1")
    assert terms is not None
    await filled(store, *mine)
    alone = await store.sparse("papers", "mine", terms, 10, EVERYTHING)
    await store.upsert("papers", theirs)
    assert await store.namespaces("papers") == {"mine": 4, "theirs": 40}
    assert await store.sparse("papers", "mine", terms, 10, EVERYTHING) == alone  # not even in how rare a term is
    assert {hit.point.namespace for hit in await store.dense("papers", "mine", EAST, 100, EVERYTHING)} == {"mine"}
    assert await store.sparse("papers", "theirs", query_terms("secret1"), 10, EVERYTHING) == []  # type: ignore[arg-type]
    assert await store.fetch("papers", "theirs", [mine[0].id]) == []
    assert await store.delete("papers", "theirs", [item.id for item in mine]) == 0
    assert await store.delete("papers", "nobody", EVERYTHING) == 0
    assert set(await store.documents("papers", "mine", ["d0", "d5"])) == {"d0"}
    escaping = parsed({"should": [{"key": "x", "match": {"value": 1}}, {"must_not": [{"key": "x", "match": {"value": 1}}]}]})
    assert await store.count("papers", "mine", escaping) == 4
    assert await store.delete("papers", "theirs", EVERYTHING) == 40
    assert await store.namespaces("papers") == {"mine": 4}
    assert await store.sparse("papers", "mine", terms, 10, EVERYTHING) == alone


FILTERED: list[tuple[dict[str, Any], set[int]]] = [
    ({"must": [{"key": "year", "match": {"value": 1960}}]}, {0}),
    ({"must": [{"key": "metadata.year", "match": {"any": [1960, 1963]}}]}, {0, 3}),
    ({"must": [{"key": "author", "match": {"value": 'it\'s "x" \\ %_'}}]}, {1}),
    ({"must": [{"key": "author", "match": {"any": ["ann", "bob"]}}]}, {0, 2}),
    ({"must": [{"key": "tags", "match": {"value": "red"}}]}, {0, 2, 4}),
    ({"must": [{"key": "tags", "match": {"any": ["blue", "green"]}}]}, {0, 3}),
    ({"must": [{"key": "draft", "match": {"value": True}}]}, {4}),
    ({"must": [{"key": "deep.er.n", "match": {"value": 7}}]}, {5}),
    ({"must": [{"key": "deep.er", "match": {"value": 7}}]}, set()),
    ({"must": [{"key": "year", "match": {"value": "1960"}}]}, set()),
    ({"must": [{"key": "year", "range": {"gte": 1961, "lt": 1963}}]}, {1, 2}),
    ({"must": [{"key": "year", "range": {"gt": 1962.5}}]}, {3}),
    ({"must": [{"key": "part", "range": {"lte": 0.25}}]}, {5}),
    ({"must": [{"key": "author", "range": {"gte": 0}}]}, set()),
    ({"must": [{"key": "scores", "range": {"gt": 8}}]}, {3}),
    ({"must_not": [{"key": "year", "range": {"gte": 0}}]}, {4, 5}),
    ({"must_not": [{"key": "tags", "match": {"value": "red"}}]}, {1, 3, 5}),
    ({"should": [{"key": "year", "match": {"value": 1960}}, {"key": "draft", "match": {"value": True}}]}, {0, 4}),
    ({"must": [{"key": "tags", "match": {"value": "red"}}], "should": [{"key": "year", "range": {"lt": 1961}}]}, {0}),
    ({"must": [{"must_not": [{"key": "year", "match": {"value": 1960}}], "must": [{"key": "tags", "match": {"value": "red"}}]}]}, {2, 4}),
    ({"must": [{"key": "document", "match": {"value": "d1"}}]}, {4, 5}),
    ({"must": [{"key": "document", "match": {"any": ["d0", "d9"]}}, {"key": "chunk", "range": {"gte": 2}}]}, {2, 3}),
    ({"must": [{"key": "chunk", "match": {"value": 0}}]}, {0, 4}),
    ({"must_not": [{"key": "document", "match": {"value": "d0"}}]}, {4, 5}),
    ({"must": [{"key": "missing", "match": {"value": "x"}}]}, set()),
    ({}, {0, 1, 2, 3, 4, 5}),
]


async def test_filters_choose_the_same_points_everywhere(store: VectorStore) -> None:
    await filled(
        store,
        point(0, text="wing", year=1960, author="ann", tags=["red", "blue"]),
        point(1, text="wing", year=1961, author='it\'s "x" \\ %_'),
        point(2, text="wing", year=1962, author="bob", tags=["red"]),
        point(3, text="wing", year=1963, tags="green", scores=[1, 9]),
        point(4, text="wing", draft=True, tags=["red"], year="1960s"),
        point(5, text="wing", deep={"er": {"n": 7}}, part=0.25, year=None),
        point(0, "other", text="wing", year=1960, author="ann", tags=["red", "blue"]),
    )
    wing = query_terms("wing")
    assert wing is not None
    for body, expected in FILTERED:
        chosen = parsed(body)
        wanted = {ident(number) for number in expected}
        assert set(ids(await store.dense("papers", "default", EAST, 10, chosen))) == wanted, body
        assert set(ids(await store.sparse("papers", "default", wing, 10, chosen))) == wanted, body
        assert await store.count("papers", "default", chosen) == len(wanted), body
    for body, expected in FILTERED[:4]:
        assert await store.delete("papers", "default", parsed(body)) == len(expected)
        assert await store.count("papers", "default", parsed(body)) == 0
        await store.upsert("papers", [point(number, text="wing", **META[number]) for number in expected])
    assert await store.count("papers", "other", EVERYTHING) == 1


META: dict[int, dict[str, Any]] = {
    0: {"year": 1960, "author": "ann", "tags": ["red", "blue"]},
    1: {"year": 1961, "author": 'it\'s "x" \\ %_'},
    2: {"year": 1962, "author": "bob", "tags": ["red"]},
    3: {"year": 1963, "tags": "green", "scores": [1, 9]},
}


BAD: list[tuple[str, Callable[[], Point]]] = [
    ("vector", lambda: msgspec.structs.replace(point(2), vector=packed([1, 2]))),
    ("vector", lambda: msgspec.structs.replace(point(2), vector=b"\0\0\xc0\x7f" * 3)),
    ("vector", lambda: msgspec.structs.replace(point(2), vector=b"")),
    ("text", lambda: msgspec.structs.replace(point(2), text="a\0b")),
    ("metadata", lambda: point(2, a="\0")),
    ("id", lambda: msgspec.structs.replace(point(2), id="two")),
    ("sparse", lambda: msgspec.structs.replace(point(2), sparse=Terms([1], [math.inf]))),
    ("namespace", lambda: msgspec.structs.replace(point(2), namespace="a/b")),
]


async def test_of_a_call_with_one_bad_point_nothing_is_kept(store: VectorStore) -> None:
    await filled(store, point(0))
    for field, made in BAD:
        with pytest.raises(Unfit) as refused:
            await store.upsert("papers", [point(1), made()])
        assert refused.value.field == field
    assert await store.count("papers", "default", EVERYTHING) == 1
    for vector in (packed([1, 0]), b"", b"\0\0\xc0\x7f" * 3):
        with pytest.raises(Unfit) as refused:
            await store.dense("papers", "default", vector, 10, EVERYTHING)
        assert refused.value.field == "vector"
    for call in (store.fetch("papers", "default", ["x"]), store.delete("papers", "default", ["'; drop"])):
        with pytest.raises(Unfit):
            await call
    await store.upsert("papers", [])
    assert await store.count("papers", "default", EVERYTHING) == 1


async def test_documents_come_with_their_chunks_in_order_and_go_at_once(store: VectorStore) -> None:
    await filled(store, *[point(number) for number in (7, 5, 6, 4, 0, 9)])
    found = await store.documents("papers", "default", ["d1", "d0", "d7"])
    assert {name: [item.chunk for item in chunks] for name, chunks in found.items()} == {"d1": [0, 1, 2, 3], "d0": [0]}
    assert found["d1"][0].content_hash == "h1" and found["d1"][0].vector == b""
    assert await store.documents("papers", "default", []) == {}
    assert await store.delete("papers", "default", of_documents("d1", "d2")) == 5
    assert await store.delete("papers", "default", [ident(0), ident(1)]) == 1
    assert await store.count("papers", "default", EVERYTHING) == 0


async def test_scrolling_goes_through_everything_once_in_order(store: VectorStore) -> None:
    points = [point(number, namespace) for number in range(50) for namespace in ("a", "b")]
    await filled(store, *reversed(points))
    seen: list[Point] = []
    while page := await store.scroll("papers", seen[-1].id if seen else "", 7):
        assert len(page) <= 7
        seen += page
        if len(seen) == 49:
            await store.delete("papers", seen[-1].namespace, [seen[-1].id])  # the place it stands at may go
    assert ids(seen) == sorted(item.id for item in points)
    kept = {item.id: item.vector for item in points}
    assert all(unpacked(item.vector) == pytest.approx(unpacked(kept[item.id]), abs=1e-6) for item in seen)
