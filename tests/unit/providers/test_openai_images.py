"""Images for a model that takes none: the client's matter, before the server is asked where that is known, and after."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hx_gateway.core import errors
from hx_gateway.core.errors import Failure
from hx_gateway.core.interfaces import Outgoing
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.testing.factories import make_deployment, make_exchange

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def chat(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": part} for part in content], **fields}


def test_they_are_refused_where_the_server_said_so() -> None:
    deployment = make_deployment()
    exchange = make_exchange(chat("hello", [{"type": "text", "text": "what is this?"}, IMAGE]))
    assert isinstance(OpenAIProvider().prepare(exchange, deployment), Outgoing)  # nothing known: the server decides
    deployment.unable = frozenset(("vision",))
    with pytest.raises(Failure) as caught:
        OpenAIProvider().prepare(exchange, deployment)
    assert (caught.value.kind, caught.value.param) == (errors.UNSUPPORTED_PARAMETER, "messages")
    assert "shown-name" in caught.value.message


@pytest.mark.parametrize(
    "body",
    [
        chat('about "image_url" in JSON'),
        chat(
            "hello",
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"image_url": {"type": "string"}}}}}],
        ),
        chat([{"type": "text", "text": '"image_url"'}]),
    ],
)
def test_the_word_alone_is_no_image(body: dict[str, Any]) -> None:
    deployment = make_deployment()
    deployment.unable = frozenset(("vision",))
    assert isinstance(OpenAIProvider().prepare(make_exchange(body), deployment), Outgoing)


def test_llamacpps_500_is_not_its_fault() -> None:
    said = {
        "error": {"code": 500, "message": "image input is not supported - hint: you may need to provide the mmproj", "type": "server_error"}
    }
    exchange = make_exchange(chat([IMAGE]))
    failure = OpenAIProvider().failure(exchange, make_deployment(), 500, [], json.dumps(said).encode())
    assert failure.kind is errors.UNSUPPORTED_PARAMETER and not failure.kind.breaks and failure.status == 400
