"""Documents added, found and removed, on a store in memory: who may, what is embedded again, and what becomes of the others when one fails."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.remembering import Remembering

from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.rag.bodies import Delete, Search, Upsert, read
from hx_gateway.rag.points import StoreUnavailable, Unfit, packed
from hx_gateway.rag.service import Embedded, Shelves, collections, delete, drop, search
from hx_gateway.rag.upsert import Limits, failure_of, upsert

WORDS = ("wing", "flow", "heat", "shock", "jet", "plate")


def embedding(text: str) -> bytes:
    """A vector whose numbers count words, and a little of everything."""
    return packed([0.01 + text.lower().count(word) for word in WORDS])


class Embedding:
    """An asker whose model counts words."""

    def __init__(self, identity: Identity | None = None, model: str = "counter", digest: str = "d1") -> None:
        self.identity = identity
        self.model = model
        self.digest = digest
        self.tokens: dict[str, int] = {}
        self.embedded: list[str] = []

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:
        await asyncio.sleep(0)
        if any("unbearable" in text for text in texts):
            raise Failure(errors.CONTEXT_LENGTH, "the input is too long")
        self.embedded += texts
        return Embedded([embedding(text) for text in texts], self.digest)

    async def rerank(self, model: str, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        return sorted(((number, float(len(text))) for number, text in enumerate(texts)), key=lambda one: -one[1])


def body(kind: type[msgspec.Struct], **fields: Any) -> Any:
    return read(kind, msgspec.json.encode(fields))


def document(id: str, *chunks: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "chunks": list(chunks), **more}


@pytest.fixture
def shelves() -> Shelves:
    return Shelves(Remembering(), "documents")


async def put(shelves: Shelves, asker: Embedding, *documents: dict[str, Any], limits: Limits = Limits(), **more: Any) -> dict[str, Any]:  # noqa: B008
    return await upsert(shelves, body(Upsert, documents=documents, **more), asker, limits)


async def found(shelves: Shelves, asker: Embedding, **fields: Any) -> list[str]:
    return [point["payload"]["text"] for point in (await search(shelves, body(Search, **fields), asker))["points"]]


async def test_what_was_added_is_found_by_meaning_by_words_and_by_both(shelves: Shelves) -> None:
    asker = Embedding()
    done = await put(shelves, asker, document("a", "the wing and the flow"), document("b", "heat of a jet"), document("c", "Bibliothek"))
    assert (done["status"], done["stored"], done["chunks"]) == ("completed", 3, 3)
    result = await search(shelves, body(Search, query="flow over a wing"), asker)
    best = result["points"][0]
    assert best["payload"] == {"text": "the wing and the flow", "document": "a", "chunk": 0, "namespace": "default", "metadata": {}}
    assert best["found_by"] == {"dense": 1, "sparse": 1} and best["score"] == pytest.approx(2 / 61)
    assert await found(shelves, asker, query="bibliothek", mode="sparse") == ["Bibliothek"]
    assert await found(shelves, asker, query="jet", mode="dense", limit=1) == ["heat of a jet"]
    assert await found(shelves, asker, vector=[0, 0, 1, 0, 1, 0], limit=1) == ["heat of a jet"]
    by_vector = await search(shelves, body(Search, vector=[0, 0, 1, 0, 1, 0], limit=1, with_vectors=True), asker)
    assert set(by_vector["points"][0]["found_by"]) == {"dense"} and math.hypot(*by_vector["points"][0]["vector"]) == pytest.approx(1)


async def test_an_empty_collection_finds_nothing_and_embeds_nothing(shelves: Shelves) -> None:
    asker = Embedding()
    assert (await search(shelves, body(Search, query="anything"), asker)) == {"points": []}
    assert asker.embedded == []


async def test_what_has_not_changed_is_not_embedded_again(shelves: Shelves) -> None:
    asker = Embedding()
    documents = [document("a", "wing", "flow"), document("b", "heat", metadata={"year": 1960})]
    await put(shelves, asker, *documents)
    assert len(asker.embedded) == 3
    again = await put(shelves, asker, *documents)
    assert (again["unchanged"], again["stored"], len(asker.embedded)) == (2, 0, 3)
    changed = await put(shelves, asker, documents[0], document("b", "heat", metadata={"year": 1961}))
    assert [result.status for result in changed["documents"]] == ["unchanged", "stored"]
    assert [point["payload"]["metadata"] for point in (await search(shelves, body(Search, query="heat", limit=1), asker))["points"]] == [
        {"year": 1961}
    ]


async def test_a_document_that_is_replaced_leaves_no_old_chunk(shelves: Shelves) -> None:
    asker = Embedding()
    await put(shelves, asker, document("a", "wing one", "wing two", "wing three"), document("other", "wing four"))
    await put(shelves, asker, document("a", "shock"))
    assert sorted(await found(shelves, asker, query="wing shock", limit=50)) == ["shock", "wing four"]
    assert await shelves.store.namespaces("documents") == {"default": 2}


async def test_half_a_replacement_is_put_right_by_the_next(shelves: Shelves) -> None:
    """The gateway died after new chunks were stored and before old ones were removed."""
    asker = Embedding()
    await put(shelves, asker, document("a", "wing one", "wing two"))
    old = await shelves.store.fetch(
        "documents", "default", [point["id"] for point in (await search(shelves, body(Search, query="two"), asker))["points"]], vectors=True
    )
    await put(shelves, asker, document("a", "shock"))
    await shelves.store.upsert("documents", [point for point in old if point.chunk == 1])
    assert (await put(shelves, asker, document("a", "shock")))["stored"] == 1
    assert await found(shelves, asker, query="wing shock") == ["shock"]


async def test_one_document_that_fails_fails_alone(shelves: Shelves) -> None:
    documents = [
        document("good", "wing"),
        document("blank", "  "),
        document("long", "unbearable"),
        document("wide", {"text": "flow", "vector": [1, 2]}),
        document("good", "twice"),
        {"id": "both", "text": "a", "chunks": ["b"]},
        document("fine", "heat"),
        document("large", "x" * 2000),
        document("odd", "a\0b"),
        document("words", {"text": "flow", "vector": ["one", "two"]}),
        document("fits", {"text": "flow", "vector": [1, 0, 0, 0, 0, 0.5]}, {"text": "heat", "vector": None}),
    ]
    done = await put(shelves, Embedding(), *documents, limits=Limits(document_bytes=1000))
    told = [
        (result.id, result.status, result.error["code"] if result.error else "", result.error["param"] if result.error else None)
        for result in done["documents"]
    ]
    assert told == [
        ("good", "stored", "", None),
        ("blank", "failed", "invalid_value", "documents[1].chunks[0]"),
        ("long", "failed", "context_length_exceeded", None),
        ("wide", "failed", "invalid_value", "documents[3].chunks[0].vector"),
        ("good", "failed", "invalid_value", "documents[4].id"),
        ("both", "failed", "invalid_value", "documents[5].text"),
        ("fine", "stored", "", None),
        ("large", "failed", "request_too_large", "documents[7].text"),
        ("odd", "failed", "invalid_value", "documents[8].chunks[0]"),
        ("words", "failed", "invalid_value", "documents[9].chunks[0].vector"),
        ("fits", "stored", "", None),
    ]
    assert (done["status"], done["stored"], done["failed"]) == ("partial", 3, 8)


async def test_where_none_could_be_stored_the_first_failure_is_the_answer(shelves: Shelves) -> None:
    with pytest.raises(Failure) as caught:
        await put(shelves, Embedding(), document("a", " "), document("b", " "))
    assert caught.value.param == "documents[0].chunks[0]" and "other 1 " in caught.value.message


async def test_another_model_or_other_weights_are_refused(shelves: Shelves) -> None:
    await put(shelves, Embedding(), document("a", "wing"))
    for asker, more in ((Embedding(), {"model": "another"}), (Embedding(digest="d2"), {})):
        with pytest.raises(Failure) as caught:
            await put(shelves, asker, document("b", "flow"), **more)
        assert caught.value.kind is errors.CONFLICT and caught.value.param == "model"
    with pytest.raises(Failure) as caught:
        await search(shelves, body(Search, query="wing", model="another"), Embedding())
    assert caught.value.kind is errors.CONFLICT
    with pytest.raises(Failure):
        await search(shelves, body(Search, query="wing"), Embedding(digest="d2"))
    # The gateway's own default has changed: the collection stays with its model.
    assert (await put(shelves, Embedding(model="newer"), document("b", "flow")))["stored"] == 1
    assert (await shelves.store.collections())[0].model == "counter"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": " "}, "query"),
        ({}, "query"),
        ({"vector": [1, 2, 3]}, "vector"),
        ({"vector": [0, 0, 0, 0, 0, 0]}, "vector"),
        ({"vector": [1, 2, 3, 4, 5, 6], "mode": "hybrid"}, "query"),
        ({"query": "a", "namespace": "no/name"}, "namespace"),
        ({"query": "a", "collection": "../up"}, "collection"),
        ({"query": "a", "filter": {"must": [{"key": "year", "range": {}}]}}, "filter.must[0].range"),
        ({"query": "a", "filter": {"most": []}}, "filter.most"),
    ],
)
async def test_what_cannot_be_searched_is_told_with_its_field(shelves: Shelves, fields: dict[str, Any], field: str) -> None:
    await put(shelves, Embedding(), document("a", "wing"))
    with pytest.raises(Unfit) as caught:
        await search(shelves, body(Search, **fields), Embedding())
    assert caught.value.field == field
    failure = failure_of(caught.value)
    assert failure.status == 400 and failure.param == field


async def test_thresholds(shelves: Shelves) -> None:
    asker = Embedding()
    await put(shelves, asker, document("a", "wing"), document("b", "wing heat"), document("c", "plate zebra"))
    assert await found(shelves, asker, query="wing", score_threshold=0.99) == ["wing"]
    assert await found(shelves, asker, query="wing", mode="dense", score_threshold=0.5) == ["wing", "wing heat"]
    # Only its word finds the zebra: whether it is near enough is looked up.
    assert "plate zebra" in await found(shelves, asker, query="zebra", candidates=1, score_threshold=0.2)
    assert await found(shelves, asker, query="wing zebra", score_threshold=0.9) == ["wing"]
    assert await found(shelves, asker, query="wing", mode="sparse", score_threshold=1e6) == []


async def test_filters_mmr_and_rerank(shelves: Shelves) -> None:
    asker = Embedding()
    await put(
        shelves, asker, *(document(f"w{number}", f"wing {'x' * number}", metadata={"number": number}) for number in range(5)),
        document("f", "wing flow shock", metadata={"number": 9}),
    )  # fmt: skip
    assert set(await found(shelves, asker, query="wing", filter={"must": [{"key": "number", "range": {"gte": 4}}]})) == {
        "wing xxxx",
        "wing flow shock",
    }
    spread = await found(shelves, asker, query="wing", mode="dense", limit=2, mmr={"diversity": 0.8})
    assert "wing flow shock" in spread
    ranked = await search(shelves, body(Search, query="wing", limit=2, rerank={"model": "r"}), asker)
    assert [(point["payload"]["text"], point["found_by"]["rerank"]) for point in ranked["points"]] == [
        ("wing flow shock", 1),
        ("wing xxxx", 2),
    ]


async def test_documents_are_removed_by_id_by_filter_and_all(shelves: Shelves) -> None:
    asker = Embedding()
    await put(shelves, asker, document("a", "wing", "flow"), document("b", "heat", metadata={"year": 1960}), document("c", "jet"))
    assert (await delete(shelves, body(Delete, ids=["a", "none"]), asker, 100))["deleted"] == 2
    assert (await delete(shelves, body(Delete, filter={"must": [{"key": "year", "match": {"value": 1960}}]}), asker, 100))["deleted"] == 1
    for fields in ({}, {"ids": ["a"], "everything": True}, {"filter": {}}):
        with pytest.raises(Unfit):
            await delete(shelves, body(Delete, **fields), asker, 100)
    assert (await delete(shelves, body(Delete, everything=True), asker, 100))["deleted"] == 1
    assert (await delete(shelves, body(Delete, everything=True, collection="none"), asker, 100))["deleted"] == 0


async def test_a_collection_is_removed_when_it_is_empty(shelves: Shelves) -> None:
    asker = Embedding()
    await put(shelves, asker, document("a", "oak"), collection="trees")
    with pytest.raises(Failure, match="'trees' is not empty: remove the documents of default first") as failure:
        await drop(shelves, "trees", asker)
    assert failure.value.kind is errors.CONFLICT
    await delete(shelves, body(Delete, everything=True, collection="trees"), asker, 100)
    bound = Embedding(Identity("team", namespaces=frozenset({"default"})))
    with pytest.raises(Failure, match="not bound to namespaces"):
        await drop(shelves, "trees", bound)
    assert [(await drop(shelves, "trees", asker))["removed"] for _ in range(2)] == [True, False]
    await put(shelves, asker, document("a", "oak"), collection="trees")
    assert await found(shelves, asker, query="oak", collection="trees") == ["oak"]


async def test_a_store_that_dies_midway_is_told_per_document(shelves: Shelves) -> None:
    class Dying(Remembering):
        async def upsert(self, name: str, points: Sequence[Any]) -> None:
            if any("flow" in point.text for point in points):
                raise StoreUnavailable("embedded", "does not answer")
            await super().upsert(name, points)

    done = await put(Shelves(Dying(), "documents"), Embedding(), document("a", "wing"), document("b", "flow"), limits=Limits(batch=1))
    assert [result.status for result in done["documents"]] == ["stored", "failed"]
    assert done["documents"][1].error["code"] == "store_unavailable" and "embedded" in done["documents"][1].error["message"]


async def test_progress_tells_of_every_document_once(shelves: Shelves) -> None:
    told: list[tuple[int, str]] = []
    asked = body(Upsert, documents=[document(f"d{number}", "wing" if number != 3 else " ") for number in range(10)])
    await upsert(shelves, asked, Embedding(), Limits(batch=2), lambda number, result: told.append((number, result.status)))
    assert sorted(told) == [(number, "failed" if number == 3 else "stored") for number in range(10)]


async def test_a_namespace_that_is_not_there_is_told_from_an_empty_one(shelves: Shelves) -> None:
    admin = Embedding()
    assert await found(shelves, admin, query="wing", namespace="manuels") == [], "nothing is there at all"
    await put(shelves, admin, document("a", "wing"), namespace="manuals")
    for mode in ("dense", "sparse", "hybrid"):
        with pytest.raises(Failure, match="no namespace 'manuels' in collection 'documents'; there are 'manuals'") as caught:
            await found(shelves, admin, query="wing", namespace="manuels", mode=mode)
        assert (caught.value.kind, caught.value.param) == (errors.NAMESPACE_NOT_FOUND, "namespace")
    assert await found(shelves, admin, query="wing") == await found(shelves, admin, query="wing", namespace="default") == []
    assert await found(shelves, Embedding(Identity("team", namespaces=frozenset({"manuels"}))), query="wing", namespace="manuels") == []
    nothing = {"must": [{"key": "n", "match": {"value": 1}}]}
    assert await found(shelves, admin, query="wing", namespace="manuals", filter=nothing) == []


SCOPED = Identity("team", namespaces=frozenset({"ours", "theirs:r"}))


async def test_a_key_reads_and_writes_what_it_may(shelves: Shelves) -> None:
    admin, team = Embedding(Identity("root", admin=True)), Embedding(SCOPED)
    await put(shelves, admin, document("a", "wing"), namespace="theirs")
    await put(shelves, admin, document("a", "flow"))
    await put(shelves, team, document("a", "heat"), namespace="ours")
    assert await found(shelves, team, query="wing", namespace="theirs") == ["wing"]
    for work, word in (
        (put(shelves, team, document("a", "x"), namespace="theirs"), "only read"),
        (put(shelves, team, document("a", "x")), "not use"),
        (put(shelves, team, document("a", "x", namespace="default"), namespace="ours"), "not use"),
        (found(shelves, team, query="flow"), "default"),
        (delete(shelves, body(Delete, everything=True, namespace="theirs"), team, 100), "only read"),
    ):
        with pytest.raises(Failure, match=word) as caught:
            await work
        assert caught.value.kind is errors.NAMESPACE_NOT_ALLOWED
    (seen,) = (await collections(shelves, team))["collections"]
    assert (seen["namespaces"], seen["points_count"], seen["dimension"]) == ({"ours": 1, "theirs": 1}, 2, len(WORDS))
    assert (await collections(shelves, Embedding(Identity("none", namespaces=frozenset()))))["collections"] == []
    assert (await collections(shelves, admin))["collections"][0]["points_count"] == 3


NAMESPACES = ("one", "two")
DOCUMENTS = st.sampled_from(["a", "b", "c"])
TEXTS = st.lists(st.sampled_from([f"{one} {other}" for one in WORDS for other in WORDS]), min_size=1, max_size=3)
CONDITION = st.one_of(
    st.builds(
        lambda key, value: {"key": key, "match": {"value": value}},
        st.sampled_from(["n", "document", "namespace"]),
        st.sampled_from(["a", "one", "two"]),
    ),
    st.builds(lambda low: {"key": "n", "range": {"gte": low}}, st.integers(0, 3)),
)
FILTER = st.none() | st.builds(
    lambda clause, conditions: {clause: conditions},
    st.sampled_from(["must", "must_not", "should"]),
    st.lists(CONDITION, min_size=1, max_size=2),
)
STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMESPACES), DOCUMENTS, TEXTS, st.integers(0, 3)),
    st.tuples(st.just("drop"), st.sampled_from(NAMESPACES), st.lists(DOCUMENTS, min_size=1) | FILTER),
)


@given(st.lists(STEP, max_size=12), FILTER, st.sampled_from(["dense", "sparse", "hybrid"]), st.booleans(), st.integers())
@settings(deadline=None, max_examples=60)
async def test_two_namespaces_never_see_each_other(steps: list[Any], filter: Any, mode: str, mmr: bool, seed: int) -> None:
    """Whatever is done in both: each is as if it were alone."""
    both = Shelves(Remembering(), "documents")
    alone = {name: Shelves(Remembering(), "documents") for name in NAMESPACES}
    keys = {name: Embedding(Identity(name, namespaces=frozenset({name}))) for name in NAMESPACES}
    for step in steps:
        name = step[1]
        for shelves in (both, alone[name]):
            if step[0] == "put":
                await put(shelves, keys[name], document(step[2], *step[3], metadata={"n": step[4]}), namespace=name)
            else:
                how = {"ids": step[2]} if isinstance(step[2], list) else {"filter": step[2]} if step[2] else {"everything": True}
                await delete(shelves, body(Delete, namespace=name, **how), keys[name], 100)
    query = " ".join(random.Random(seed).choices(WORDS, k=2))
    for name in NAMESPACES:
        fields = {"query": query, "namespace": name, "limit": 50, "mode": mode, "filter": filter, "mmr": mmr, "with_vectors": True}
        together = (await search(both, body(Search, **fields), keys[name]))["points"]
        by_itself = (await search(alone[name], body(Search, **fields), keys[name]))["points"]
        assert {point["payload"]["namespace"] for point in together} <= {name}
        assert {point["id"] for point in together} == {point["id"] for point in by_itself}
        other = next(one for one in NAMESPACES if one != name)
        with pytest.raises(Failure):
            await search(both, body(Search, **{**fields, "namespace": other}), keys[name])
        # The same id means another document in each.
        mine = {point["id"] for point in together}
        assert await both.store.fetch("documents", other, list(mine)) == []


async def test_titles_and_headings_are_found_and_embedded_with_every_chunk(shelves: Shelves) -> None:
    asker = Embedding()
    text = "# Wing\n\n" + "flow " * 300 + "\n\n## Jet\n\n" + "heat " * 300
    await put(shelves, asker, {"id": "a", "text": text, "format": "markdown", "metadata": {"title": "Shock"}}, document("b", "plate"))
    assert len(asker.embedded) > 3
    assert all(part.startswith("Shock\nWing\n") for part in asker.embedded[:-1]) and asker.embedded[-1] == "plate"
    for word in ("shock", "wing"):
        points = (await search(shelves, body(Search, query=word, mode="sparse", limit=50), asker))["points"]
        assert len(points) == len(asker.embedded) - 1, "every chunk of the document, and none of the other"
        assert not any("Shock" in point["payload"]["text"] for point in points), "a text stays as it was given"


async def test_what_was_stored_before_titles_counted_is_stored_again(shelves: Shelves) -> None:
    asker = Embedding()
    titled, plain = document("a", "flow", metadata={"title": "Wing"}), document("b", "flow")
    await put(shelves, asker, titled, plain)
    old = await shelves.store.documents("documents", "default", ["a"])
    await shelves.store.upsert(
        "documents", [msgspec.structs.replace(point, content_hash="of another time", vector=embedding("flow")) for point in old["a"]]
    )
    again = await put(shelves, asker, titled, plain)
    assert [result.status for result in again["documents"]] == ["stored", "unchanged"]
    assert await found(shelves, asker, query="wing", mode="sparse") == ["flow"]


@pytest.mark.parametrize("metadata", [{"title": 7, "headings": "Wing"}, {"title": " ", "headings": [1, None, {}]}, {"title": "x" * 10_000}])
async def test_a_title_that_is_none_and_one_too_long_to_read_do_no_harm(shelves: Shelves, metadata: dict[str, Any]) -> None:
    asker = Embedding()
    assert (await put(shelves, asker, document("a", "flow " * 440, metadata=metadata)))["stored"] == 1
    assert asker.embedded == ["flow " * 440]
