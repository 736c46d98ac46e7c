"""A scripted model server that reads plain requests the way a model would: which tool is meant, and what to hand it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from hx_gateway.testing.backend import Backend
from hx_gateway.testing.reply import Answer, Received
from hx_gateway.testing.script import text_of

_WORD = re.compile(r"[A-Z]?[a-z]{3,}")
_QUOTED = re.compile(r"'([^']+)'")


def _meant(prompt: str, tools: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The tool that the prompt speaks of: by its name, by a word of its name, or as "the tool"."""
    named = [tool for tool in tools if tool["name"] in prompt]
    words = {word.lower() for word in _WORD.findall(prompt)}
    alike = [tool for tool in tools if words & {word.lower() for word in _WORD.findall(tool["name"])}]
    found = max(named, key=lambda tool: len(tool["name"]), default=None) or next(iter(alike), None)
    return found or (tools[0] if tools and "tool" in words else None)


def _argument(schema: dict[str, Any], prompt: str) -> Any:
    """A value of the schema's type that is taken from the prompt."""
    number = re.search(r"\d+", prompt)
    if schema.get("type") in ("integer", "number"):
        return int(number.group()) if number else 1
    quoted = _QUOTED.search(prompt)
    return quoted.group(1) if quoted else prompt


def obliged(body: dict[str, Any]) -> dict[str, Any]:
    """The request with its last message put in the words that the scripted server acts upon."""
    messages = body.get("messages") or []
    if not messages or messages[-1].get("role") != "user":
        return body
    prompt = text_of(messages[-1]["content"])
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    said = ""
    tool = _meant(prompt, tools)
    if tool is not None and body.get("tool_choice") != "none":
        properties = (tool.get("parameters") or {}).get("properties", {})
        arguments = {name: _argument(schema, prompt) for name, schema in properties.items()}
        said = f"Call {tool['name']} with {json.dumps(arguments, ensure_ascii=False)}"
    elif body.get("format") == "json" or (body.get("response_format") or {}).get("type") == "json_object":
        answer = {name: f"{name} of the answer" for name in _QUOTED.findall(prompt)}
        said = f"Return exactly the text: {json.dumps(answer)}"
        body = {name: value for name, value in body.items() if name not in ("format", "response_format")}
    return {**body, "messages": [*messages[:-1], {**messages[-1], "content": said}]} if said else body


class Obliging(Backend):
    """A scripted model server, with the same arguments as `Backend`, that understands which tool is wanted."""

    async def _serve(self, received: Received, answer: Answer) -> None:
        if received.method == "POST" and b'"messages"' in received.body:
            received = replace(received, body=json.dumps(obliged(received.json())).encode())
        await super()._serve(received, answer)
