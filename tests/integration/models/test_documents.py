"""The contract's smoke searches by curl, with a real embedding model behind the gateway: nothing in an empty collection, the right text in a full one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import required
from tests.support.gateway import GatewayProcess
from tools import minilm

TEXTS = {
    "password": "To set a new password, follow the link in the e-mail.",
    "shipping": "Delivery is free for orders above 50 euros.",
    "hours": "Our opening hours are Monday to Friday, nine to five.",
    "guitar": "A man is playing a guitar on stage.",
}
QUESTIONS = {"How do I reset my login?": "password", "What does it cost to send a parcel?": "shipping", "When are you open?": "hours"}


@pytest.fixture(scope="module")
def gateway(minilm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that serves the model itself and keeps vectors in its state directory."""
    required.llamacpp()
    required.program("curl")
    required.vectors()
    state = tmp_path_factory.mktemp("state")
    model = (
        f"{{path: {json.dumps(str(minilm_path))}, mode: embedding, dimensions: {minilm.DIMENSIONS}, slots: 2, context: 512, threads: 1}}"
    )
    with GatewayProcess(f"models: {{minilm: {model}}}\nstorage: {{state_directory: {state}}}\n") as started:
        yield started


def curl(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> Any:
    """The JSON that curl prints."""
    words = ["curl", "--silent", "--show-error", "--fail-with-body", f"{gateway.url}{path}", "-H", f"Authorization: Bearer {gateway.key}"]
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_smoke_searches(gateway: GatewayProcess) -> None:
    asked = {"query": "When are you open?", "limit": 3, "score_threshold": 0.2}
    empty = curl(gateway, "/v1/rag/search", asked)
    assert (empty["status"], empty["result"]) == ("ok", {"points": []})
    added = curl(gateway, "/v1/rag/upsert", {"documents": [{"id": id, "text": text} for id, text in TEXTS.items()]})
    assert (added["status"], added["result"]["stored"]) == ("ok", 4)
    for question, answer in QUESTIONS.items():
        for mode in ("dense", "hybrid"):
            found = curl(gateway, "/v1/rag/search", {**asked, "query": question, "mode": mode})
            assert found["result"]["points"][0]["payload"]["document"] == answer, (question, mode)
    spread = curl(gateway, "/v1/rag/search", {"query": "music", "limit": 1, "mode": "dense"})
    assert spread["result"]["points"][0]["payload"]["text"] == TEXTS["guitar"]
    # 0.2 is a cosine: what has nothing to do with the question is not found, however few texts there are.
    assert curl(gateway, "/v1/rag/search", {"query": "quantum chromodynamics", "score_threshold": 0.4})["result"]["points"] == []


def test_a_vector_of_the_same_model_finds_the_same(gateway: GatewayProcess) -> None:
    curl(gateway, "/v1/rag/upsert", {"documents": [{"id": id, "text": text} for id, text in TEXTS.items()]})
    made = curl(gateway, "/v1/embeddings", {"model": "minilm", "input": "When are you open?"})["data"][0]["embedding"]
    by_vector = curl(gateway, "/v1/rag/search", {"vector": made, "limit": 2})["result"]["points"]
    by_words = curl(gateway, "/v1/rag/search", {"query": "When are you open?", "limit": 2, "mode": "dense"})["result"]["points"]
    assert [point["id"] for point in by_vector] == [point["id"] for point in by_words]
    assert [point["score"] for point in by_vector] == pytest.approx([point["score"] for point in by_words], abs=1e-3)
