"""LangChain's standard tests for chat models, with its own ChatOpenAI and the gateway; run by test_suites.py in their own environment."""

from __future__ import annotations

import base64
import os
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

# One black pixel, for the picture that the tests would fetch from the internet.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture(autouse=True)
def picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched with httpx.get is a pixel; everything that goes to the gateway goes by clients, not by this function."""
    monkeypatch.setattr(httpx, "get", lambda *_, **__: SimpleNamespace(content=base64.b64decode(_PIXEL)))


class TestGateway(ChatModelIntegrationTests):
    """Everything that OpenAI's dialect can carry is tested."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["GATEWAY_MODEL"],
            "base_url": os.environ["GATEWAY_URL"],
            "api_key": os.environ["GATEWAY_KEY"],
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str | None:
        return os.environ["GATEWAY_OTHER_MODEL"]
