"""A gateway that keeps documents, over one scripted model server that embeds and chats, and what tests ask of it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models:
  emb: {{endpoint: one, upstream_model: "tiny:1b", mode: embedding}}
  tiny: {{endpoint: one, upstream_model: "tiny:1b", mode: chat}}
storage: {{state_directory: {state}}}
"""


@dataclass
class House:
    """A gateway and its state."""

    gateway: GatewayProcess
    state: Path

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (text for events) and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {"authorization": f"Bearer {key}"} if key else {})
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, json.loads(text) if text[:1] == "{" else text, dict(answer.getheaders())
        finally:
            connection.close()

    def put(self, *texts: str, key: str = KEY, **more: Any) -> dict[str, Any]:
        """Add texts, each a document named by its number."""
        documents = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
        status, answer, _ = self.ask("POST", "/v1/rag/upsert", {"documents": documents, **more}, key)
        assert status == 200, answer
        return dict(answer["result"])

    def texts(self, key: str = KEY, **fields: Any) -> list[str]:
        """The texts a search finds."""
        status, answer, _ = self.ask("POST", "/v1/rag/search", fields, key)
        assert status == 200, answer
        return [point["payload"]["text"] for point in answer["result"]["points"]]


@contextmanager
def housed(state: Path, more: str = "", environment: dict[str, str] | None = None) -> Iterator[House]:
    """A gateway with the models ``emb`` and ``tiny``, documents in the embedded store unless ``more`` of the YAML names another."""
    with (
        scripted("openai", models=("tiny:1b",)) as backend,
        GatewayProcess(CONFIG.format(url=backend.url, state=state) + more, environment) as gateway,
    ):
        yield House(gateway, state)
        assert "Traceback" not in gateway.log, gateway.log
