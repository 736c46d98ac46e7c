"""Two namespaces in one collection of the embedded store, with random keys, filters and deeds: each is as if it were alone."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from tests.support import required
from tests.support.remembering import Remembering
from tests.unit.rag.test_service import WORDS, Embedding, body, document, put

from hx_gateway.core import errors
from hx_gateway.core.context import Identity
from hx_gateway.core.errors import Failure
from hx_gateway.rag.bodies import Delete, Search
from hx_gateway.rag.service import Shelves, delete, search
from hx_gateway.stores.vectors.edge import EmbeddedStore

NAMESPACES = ("one", "two", "three")


def a_filter(chance: random.Random) -> dict[str, Any]:
    condition = chance.choice([
        {"key": "n", "range": {"gte": chance.randrange(4)}},
        {"key": "n", "match": {"value": chance.randrange(4)}},
        {"key": "document", "match": {"any": chance.sample("abcd", 2)}},
        {"key": "namespace", "match": {"value": chance.choice(NAMESPACES)}},  # a metadata of that name, not the wall
    ])  # fmt: skip
    return {chance.choice(["must", "must_not", "should"]): [condition]}


async def points_of(shelves: Shelves, ask: Search, asker: Embedding) -> list[dict[str, Any]]:
    """What a search finds; nothing where the namespace has no documents, and others have."""
    try:
        return (await search(shelves, ask, asker))["points"]
    except Failure as failure:
        assert failure.kind is errors.NAMESPACE_NOT_FOUND
        return []


async def test_no_namespace_sees_another(tmp_path: Path) -> None:
    required.vectors()
    store = EmbeddedStore(tmp_path / "vectors")
    both = Shelves(store, "documents")
    alone = {name: Shelves(Remembering(), "documents") for name in NAMESPACES}
    seed = 2026 if os.environ.get("CI") else random.randrange(1 << 32)  # where nobody looks for it, nothing new is to be found
    chance = random.Random(seed)
    try:
        for _ in range(60):
            name = chance.choice(NAMESPACES)
            scopes = {name: frozenset({name}), "all": None}
            asker = Embedding(Identity("key", namespaces=chance.choice(list(scopes.values()))))
            deed, seen = chance.random(), []
            texts = [" ".join(chance.choices(WORDS, k=3)) for _ in range(chance.randint(1, 3))]
            added = document(chance.choice("abcd"), *texts, metadata={"n": chance.randrange(4), "namespace": chance.choice(NAMESPACES)})
            gone = {"ids": chance.sample("abcd", 2)} if chance.random() < 0.6 else {"filter": a_filter(chance)}
            query = " ".join(chance.choices(WORDS, k=2))
            asked = {
                "query": query,
                "limit": 50,
                "mode": chance.choice(["dense", "sparse", "hybrid"]),
                "with_vectors": chance.random() < 0.3,
            }
            if chance.random() < 0.5:
                asked["filter"] = a_filter(chance)
            for shelves in (both, alone[name]):
                if deed < 0.4:
                    await put(shelves, asker, added, namespace=name)
                elif deed < 0.5:
                    seen.append((await delete(shelves, body(Delete, namespace=name, **gone), asker, 100))["deleted"])
                else:
                    points = await points_of(shelves, body(Search, namespace=name, **asked), asker)
                    assert {point["payload"]["namespace"] for point in points} <= {name}
                    seen.append(
                        sorted((point["payload"]["document"], point["payload"]["chunk"], point["payload"]["text"]) for point in points)
                    )
            assert len(seen) < 2 or seen[0] == seen[1], f"seed {seed}"
            if asker.identity is not None and asker.identity.namespaces is not None:
                other = next(one for one in NAMESPACES if one != name)
                for work in (search(both, body(Search, namespace=other, **asked), asker), put(both, asker, added, namespace=other)):
                    try:
                        await work
                    except Failure as failure:
                        assert failure.kind is errors.NAMESPACE_NOT_ALLOWED
                    else:
                        raise AssertionError(f"a key saw another namespace (seed {seed})")
        for name in NAMESPACES:
            counts = [(await shelves.store.namespaces("documents")).get(name, 0) for shelves in (both, alone[name])]
            assert counts[0] == counts[1], f"seed {seed}"
    finally:
        await store.close()
