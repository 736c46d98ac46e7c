"""A proxy as LiteLLM behaves without a database: its answers to right and wrong keys, and a few routes the gateway knows nothing of."""

from __future__ import annotations

import json
from types import TracebackType

from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.wire import Listener

NO_DATABASE = {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}}
SOUND = bytes(range(256)) * 64


class LitellmLike:
    """The proxy, as ``async with``.

    Args:
        key: The one key it knows.

    Attributes:
        requests: What it received.
        left: Paths of answers whose client went away.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.requests: list[Received] = []
        self.left: list[str] = []
        self._listener = Listener(self._serve)

    async def __aenter__(self) -> LitellmLike:
        await self._listener.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._listener.stop()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self._listener.host}:{self._listener.port}"

    @property
    def asked(self) -> list[Received]:
        """Requests that were no probes."""
        return [request for request in self.requests if request.path not in ("/v1/models", "/health", "/health/readiness", "/")]

    async def _serve(self, received: Received, answer: Answer) -> None:
        self.requests.append(received)
        try:
            await self._answer(received, answer)
        finally:
            if not answer.complete:
                self.left.append(received.path)

    async def _answer(self, received: Received, answer: Answer) -> None:
        path = received.path
        if received.headers.get("authorization") != f"Bearer {self.key}":
            await answer.whole(400, json.dumps(NO_DATABASE).encode())
        elif path == "/v1/models":
            await answer.whole(200, b'{"object": "list", "data": [{"id": "mock", "object": "model", "created": 1, "owned_by": "openai"}]}')
        elif path == "/v1/moderations":
            found = {"id": "modr-1", "model": "mock", "results": [], "seen": received.json()}
            headers = {"x-litellm-call-id": "call-1", "connection": "x-private", "x-private": "1", "set-cookie": "session=1"}
            await answer.whole(200, json.dumps(found).encode(), headers=headers)
        elif path == "/v1/audio/speech":
            await answer.begin(200, "audio/mpeg")
            for at in range(0, len(SOUND), 1024):
                await answer.piece(SOUND[at : at + 1024])
            await answer.end()
        elif path == "/v1/endless":
            await answer.begin(200, "text/event-stream")
            await answer.piece(b"data: 1\n\n")
            await answer.wait_for_client()
        elif path == "/v1/bad":
            await answer.whole(
                400, b'{"error": {"message": "input is required", "type": "invalid_request_error", "param": "input", "code": "400"}}'
            )
        elif path == "/v1/busy":
            await answer.whole(429, b'{"error": {"message": "slow down"}}', headers={"retry-after": "7"})
        elif path.startswith("/v1/files"):
            found = {"id": "file-1", "object": "file", "bytes": len(received.body), "method": received.method, "query": received.query}
            await answer.whole(200, json.dumps(found).encode())
        else:
            await answer.whole(404, b'{"detail":"Not Found"}')
