"""The API's documentation as one page without scripts or anything from elsewhere, made from the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 small { font-weight: normal; opacity: .7; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); text-transform: capitalize; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; padding: 0 .8rem; }
summary { cursor: pointer; padding: .5rem 0; }
summary b { display: inline-block; min-width: 4.5rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: .3rem; padding: .7rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-bottom: .8rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem .25rem 0; text-align: left; vertical-align: top; }
"""
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_METHODS = ("get", "post", "put", "patch", "delete")


def _resolve(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference: str = schema.get("$ref", "")
    found: dict[str, Any] = document["components"]["schemas"].get(reference.rpartition("/")[2], {}) if reference else schema
    return found


def _kind(schema: dict[str, Any]) -> str:
    kind: Any = schema.get("type") or schema.get("$ref", "").rpartition("/")[2]
    if not kind and "anyOf" in schema:
        kind = [_kind(part) for part in schema["anyOf"]]
    if kind == "array" and schema.get("items"):
        return f"list of {_kind(schema['items']) or 'anything'}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _fields(document: dict[str, Any], schema: dict[str, Any]) -> str:
    schema = _resolve(document, schema)
    required = schema.get("required", ())
    return _table(
        ("field", "type", ""),
        [
            (f"<code>{escape(name)}</code>{' *' if name in required else ''}", escape(_kind(field)), escape(field.get("description", "")))
            for name, field in schema.get("properties", {}).items()
        ],
    )


def _content(document: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    for kind, media in content.items():
        yield f"<p><code>{escape(kind)}</code></p>"
        yield _fields(document, media.get("schema", {}))
        example = media.get("example")
        if example is not None:
            text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
            yield f"<pre>{escape(text)}</pre>"


def _operation(document: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    about = operation.get("description") or operation.get("summary", "")
    yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {escape(about.partition('.')[0])}</summary>"
    yield f"<p>{escape(about)}</p><p>{'Needs an API key.' if operation.get('security') else 'Needs no key.'}</p>"
    yield _table(
        ("parameter", "in", ""),
        [
            (f"<code>{escape(item['name'])}</code>", escape(item["in"]), escape(item.get("description", "")))
            for item in operation.get("parameters", ())
        ],
    )
    if "requestBody" in operation:
        yield "<h4>Request</h4>"
        yield from _content(document, operation["requestBody"]["content"])
    answers = operation["responses"]
    if "200" in answers:
        yield "<h4>Answer</h4>"
        yield from _content(document, answers["200"].get("content", {}))
    rows = [(f"<code>{escape(status)}</code>", escape(answer["description"])) for status, answer in answers.items() if status != "200"]
    yield _table(("otherwise", ""), rows)
    yield "</details>"


def page(document: dict[str, Any]) -> str:
    """The OpenAPI document as HTML."""
    title = escape(document["info"]["title"])
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>',
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style>',
        f"<h1>{title} <small>{escape(document['info']['version'])}</small></h1><p>{escape(document['info'].get('description', ''))}</p>",
        '<p>The same for machines: <a href="openapi.json">openapi.json</a>. Fields marked * are required.</p>',
    ]
    by_tag: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                tag = (item[method].get("tags") or ["other"])[0]
                by_tag.setdefault(tag, []).extend(_operation(document, path, method, item[method]))
    for tag, operations in by_tag.items():
        parts.append(f"<h2>{escape(tag)}</h2>")
        parts += operations
    return "\n".join(parts)


def router() -> APIRouter:
    """The route."""
    found = APIRouter()

    async def docs(request: Request) -> Response:
        """This page."""
        return Response(page(request.app.openapi()), headers=_HEADERS, media_type="text/html")

    found.add_api_route("/docs", docs, methods=["GET"], include_in_schema=False)
    return found
