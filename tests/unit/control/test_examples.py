"""The description of the API is complete: every operation says what it does, and shows what is sent and what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.control.house import House

from hx_gateway.control import examples
from hx_gateway.control.app import create_app

KNOWN: dict[str, Any] = json.loads(Path(examples.__file__).with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(House()).openapi()


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{method.upper()} {path}": operation for path, item in document["paths"].items() for method, operation in item.items()}


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        assert operation.get("description") or " " in operation["summary"], f"{name}: the handler's docstring is the summary"
        assert operation["tags"], name


def test_every_operation_shows_what_is_sent_and_what_comes_back(document: dict[str, Any]) -> None:
    for name, operation in operations(document).items():
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [answer.get("content", {}) for status, answer in operation["responses"].items() if status[0] == "2"]
        for content in contents:
            for kind, media in content.items():
                assert kind != "application/json" or media.get("example") is not None, name


def test_no_example_is_of_something_that_is_gone(document: dict[str, Any]) -> None:
    assert KNOWN.keys() - operations(document).keys() == set()


def required(schema: dict[str, Any], schemas: dict[str, Any]) -> set[str]:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return set(schema.get("required", ()))


def test_examples_have_what_is_required_and_nothing_unknown(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, operation in operations(document).items():
        media = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
        schema = media.get("schema", {})
        if "$ref" in schema and name in KNOWN:
            about = schemas[schema["$ref"].rpartition("/")[2]]
            assert required(schema, schemas) <= media["example"].keys(), name
            if about.get("additionalProperties") is not True:
                assert media["example"].keys() <= about.get("properties", {}).keys(), name


async def test_the_page_needs_nothing_from_elsewhere() -> None:
    async with House().client() as client:
        page = await client.get("/docs")
        described = await client.get("/openapi.json")
    assert "<script" not in page.text
    assert "src=" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "/admin/endpoints/{name}/drain" in page.text
    assert described.json()["openapi"].startswith("3.")
