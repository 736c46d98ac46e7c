"""Short ways to ask the gateway something and look at the answer."""

from __future__ import annotations

from typing import Any

from tests.integration.protocol.wire import Answer, Client, ask, one, request


def chat(
    port: int,
    content: str = "ping",
    model: str = "solo",
    stream: bool = False,
    *lines: str,
    path: str = "/v1/chat/completions",
    **more: Any,
) -> Answer:
    """Ask on a connection of its own."""
    return one(port, request(ask(content, stream=stream, model=model, **more), *lines, path=path))


def opened(port: int, content: str, model: str = "solo", **more: Any) -> Client:
    """A connection on which a stream has been asked for."""
    client = Client(port)
    client.send(request(ask(content, stream=True, model=model, **more)))
    return client
