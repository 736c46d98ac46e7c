"""The best hits put in order by a server with /v1/rerank, in the shapes of vLLM and llama.cpp; and what comes of servers without it."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.support import required
from tests.support.background import scripted
from tests.support.documents import House
from tests.support.gateway import GatewayProcess
from tests.unit.ledger.records import found

CONFIG = """
endpoints:
  one: {{url: "{one}", provider: openai}}
  ranks: {{url: "{ranks}", provider: openai}}
models:
  emb: {{endpoint: one, upstream_model: "tiny:1b", mode: embedding}}
  ranker: {{endpoint: ranks, upstream_model: "ranker-v1"}}
  tiny: {{endpoint: one, upstream_model: "tiny:1b"}}
storage: {{state_directory: {state}}}
keys: {{api_keys: [{{name: few, key: key-of-the-few, models: [emb]}}]}}
"""


class Ranking(http.server.BaseHTTPRequestHandler):
    """A server that likes long texts, or answers as it is told."""

    asked: ClassVar[dict[str, Any]] = {}
    told: ClassVar[bytes | None] = None
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._send(b'{"object": "list", "data": [{"id": "ranker-v1", "object": "model"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked = {"path": self.path, **body}
        scores = [{"index": number, "relevance_score": float(len(text))} for number, text in enumerate(body["documents"])]
        self._send(self.told or json.dumps({"model": body["model"], "results": scores}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    required.vectors()
    state: Path = tmp_path_factory.mktemp("state")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ranks = f"http://127.0.0.1:{server.server_port}"
    try:
        with (
            scripted("openai", models=("tiny:1b",)) as one,
            GatewayProcess(CONFIG.format(one=one.url, ranks=ranks, state=state)) as gateway,
        ):
            made = House(gateway, state)
            made.put("wing", "a wing and more", "a wing and much more than that")
            yield made
            assert "Traceback" not in gateway.log, gateway.log
    finally:
        server.shutdown()
        server.server_close()


ASKED = {"query": "wing", "mode": "sparse", "limit": 2, "rerank": {"model": "ranker"}}


def test_the_ranking_decides(house: House) -> None:
    Ranking.told = None
    assert house.texts(query="wing", mode="sparse", limit=1) == ["wing"]
    _, answer, _ = house.ask("POST", "/v1/rag/search", ASKED)
    points = answer["result"]["points"]
    assert [point["payload"]["text"] for point in points] == ["a wing and much more than that", "a wing and more"]
    assert points[0]["found_by"] == {"sparse": 3, "rerank": 1} and points[0]["score"] == points[0]["scores"]["rerank"] == 30.0
    assert (Ranking.asked["path"], Ranking.asked["model"], Ranking.asked["query"]) == ("/v1/rerank", "ranker-v1", "wing")
    part = found(house.state / "journal")[-2]
    assert (part.route, part.asked, part.endpoint, part.outcome) == ("forward", "/v1/rerank", "ranks", "ok")


@pytest.mark.parametrize(
    "told", [b"nonsense", b"{}", b'{"results": [{"index": 0, "score": 1}]}', b'{"results": [{"index": 7}, {"index": 1}, {"index": 2}]}']
)
def test_a_ranking_that_cannot_be_used_is_the_server_s_fault(house: House, told: bytes) -> None:
    Ranking.told = told
    status, answer, _ = house.ask("POST", "/v1/rag/search", ASKED)
    assert (status, answer["error"]["code"]) == (502, "bad_upstream_response") and "ranker" in answer["error"]["message"]


def test_a_server_without_the_route_is_told(house: House) -> None:
    status, answer, _ = house.ask("POST", "/v1/rag/search", {**ASKED, "rerank": {"model": "tiny"}})
    assert 400 <= status < 600 and "rerank" in answer["error"]["message"] and status != 500


def test_a_key_needs_the_model(house: House) -> None:
    status, answer, _ = house.ask("POST", "/v1/rag/search", ASKED, "key-of-the-few")
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (403, "model_not_allowed", "rerank.model")
