"""Examples for every operation of the OpenAPI document: real ones where there are some, else made from the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_DEEPEST = 6
_PLAIN: dict[str, Any] = {"string": "text", "integer": 1, "number": 0.5, "boolean": True, "null": None}


def illustrate(document: dict[str, Any]) -> None:
    """Give the operations that have none an example of what is sent, and of a good answer; and a summary in words.

    Args:
        document: The OpenAPI document, which is changed.
    """
    known = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            given = known.get(f"{method.upper()} {path}", {})
            about = operation.get("description", "")
            if about:
                operation["summary"] = about.partition("\n")[0].partition(". ")[0].rstrip(".")
            operation.setdefault("tags", ["routing"])
            if "request" in given:
                body = operation.setdefault("requestBody", {"content": {"application/json": {"schema": {"type": "object"}}}})
                body["content"].setdefault("application/json", {"schema": {"type": "object"}})
            for part, contents in (
                ("request", operation.get("requestBody", {}).get("content", {})),
                *(("answer", answer.get("content", {})) for status, answer in operation["responses"].items() if status[0] == "2"),
            ):
                media = contents.get("application/json")
                if media is not None and "example" not in media:
                    media["example"] = given[part] if part in given else _made(media.get("schema", {}), schemas)


def _made(schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0) -> Any:
    """A value that a schema allows, as plain as possible."""
    if "$ref" in schema:
        schema = schemas.get(schema["$ref"].rpartition("/")[2], {})
    for name in ("example", "default", "const"):
        if name in schema:
            return schema[name]
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("enum"):
        return schema["enum"][0]
    if depth > _DEEPEST:
        return None
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _made(schema[name][0], schemas, depth + 1)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return [_made(schema.get("items", {}), schemas, depth + 1)]
    if kind == "object":
        return {name: _made(field, schemas, depth + 1) for name, field in schema.get("properties", {}).items()}
    return _PLAIN.get(kind)
