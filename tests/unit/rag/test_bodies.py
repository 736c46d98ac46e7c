"""Bodies of requests: each fault is told with the field it is in."""

from __future__ import annotations

import msgspec
import pytest

from hx_gateway.core.errors import Failure
from hx_gateway.rag.bodies import Delete, Search, Upsert, read, schema

FAULTS: list[tuple[type[msgspec.Struct], bytes, str, str | None]] = [
    (Search, b'{"query": 1}', "invalid_value", "query"),
    (Search, b'{"query": "a", "limit": 0}', "invalid_value", "limit"),
    (Search, b'{"query": "a", "limit": 1001}', "invalid_value", "limit"),
    (Search, b'{"vector": []}', "invalid_value", "vector"),
    (Search, b'{"vector": [1, NaN]}', "invalid_json", "vector"),
    (Search, b'{"vector": [1, -Infinity]}', "invalid_json", "vector"),
    (Search, b'{"vector": [1, 1e999]}', "invalid_value", "vector[1]"),
    (Search, b'{"vector": [1, "a"]}', "invalid_value", "vector[1]"),
    (Search, b'{"query": "a", "treshold": 0.5}', "invalid_value", "treshold"),
    (Search, b'{"query": "a", "mode": "both"}', "invalid_value", "mode"),
    (Search, b'{"query": "a", "filter": []}', "invalid_value", "filter"),
    (Search, b'{"query": "a", "mmr": {"diversity": 2}}', "invalid_value", "mmr.diversity"),
    (Search, b"[]", "invalid_value", "body"),
    (Search, b"", "invalid_json", None),
    (Search, b"\xff", "invalid_json", None),
    (Upsert, b"{}", "invalid_value", "documents"),
    (Upsert, b'{"documents": []}', "invalid_value", "documents"),
    (Upsert, b'{"documents": [{"txt": "a"}]}', "invalid_value", "documents[0].txt"),
    (Upsert, b'{"documents": [{"id": "", "text": "a"}]}', "invalid_value", "documents[0].id"),
    (Upsert, b'{"documents": [{"chunks": ["a", {"vector": [1]}]}]}', "invalid_value", "documents[0].chunks[1].text"),
    (Upsert, b'{"documents": [{"text": "a", "metadata": []}]}', "invalid_value", "documents[0].metadata"),
    (Delete, b'{"ids": []}', "invalid_value", "ids"),
    (Delete, b'{"everything": "yes"}', "invalid_value", "everything"),
]


@pytest.mark.parametrize(("kind", "body", "code", "param"), FAULTS)
def test_a_fault_names_its_field(kind: type[msgspec.Struct], body: bytes, code: str, param: str | None) -> None:
    with pytest.raises(Failure) as caught:
        read(kind, body)
    failure = caught.value
    assert (failure.kind.code, failure.param, failure.status) == (code, param, 400)
    assert param is None or param.split("[")[0].split(".")[0] in failure.message or code == "invalid_json"


def test_a_choice_is_told_with_the_others() -> None:
    with pytest.raises(Failure, match="dense, sparse or hybrid"):
        read(Search, b'{"query": "a", "mode": "both"}')


def test_the_contract_s_bodies_are_read() -> None:
    ask = read(Search, b'{"query": "what", "limit": 3, "score_threshold": 0.2, "namespace": "docs"}')
    assert (ask.query, ask.limit, ask.score_threshold, ask.namespace) == ("what", 3, 0.2, "docs")
    assert read(Search, b'{"vector": [1, 0.5]}').vector == [1.0, 0.5]


@pytest.mark.parametrize("kind", [Search, Upsert, Delete])
def test_the_schema_of_a_body_describes_every_field(kind: type[msgspec.Struct]) -> None:
    found = schema(kind)
    assert found["type"] == "object" and "$ref" not in str(found)
    assert set(found["properties"]) == set(kind.__struct_fields__)
    assert all("description" in said for said in found["properties"].values())
