"""The same routes with Postgres for the vectors; and when it is away, documents alone are refused, by its name."""

from __future__ import annotations

from pathlib import Path

from tests.faults.conftest import wait_until
from tests.support.documents import housed
from tests.support.engines import Postgres


def test_documents_in_postgres(tmp_path: Path) -> None:
    with (
        Postgres(synchronous_commit="on") as postgres,
        housed(tmp_path, "rag: {store: postgres}\n", {"DATABASE_URL": postgres.url()}) as house,
    ):
        assert house.put("the wing and the flow", "heat of a jet", namespace="ours")["stored"] == 2
        assert house.texts(query="wing", namespace="ours", mode="sparse") == ["the wing and the flow"]
        assert len(house.texts(query="wing", namespace="ours")) == 2 and house.texts(query="wing") == []
        assert house.put("the wing and the flow", "shock", namespace="ours")["unchanged"] == 1
        postgres.kill()
        status, answer, headers = house.ask("POST", "/v1/rag/search", {"query": "wing", "namespace": "ours"})
        assert (status, answer["error"]["code"]) == (503, "store_unavailable") and "postgres" in answer["error"]["message"]
        assert int(headers["retry-after"]) > 0
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        assert house.ask("POST", "/v1/chat/completions", chat)[0] == 200
        assert house.ask("GET", "/healthz/deps")[1]["details"]["vectors"].startswith("postgres, not available")
        postgres.restart()
        wait_until(lambda: house.ask("POST", "/v1/rag/search", {"query": "wing", "namespace": "ours"})[0] == 200, 60)
        assert sorted(house.texts(query="wing shock", namespace="ours", mode="sparse")) == ["shock", "the wing and the flow"]
