"""What the scripted model server says: the same answer to the same request, always."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

ALL_CAPABILITIES = ("completion", "tools", "thinking", "vision", "insert", "embedding")
_EXACTLY = re.compile(
    r"(?:Return exactly the text|Return exactly|Reply with exactly|Say|Echo|Repeat)(?::\s?|\s)(.*)", re.IGNORECASE | re.DOTALL
)
_COUNT = re.compile(r"Count to (\d{1,5})", re.IGNORECASE)
_CALL = re.compile(r"Call (\w+) with (\{.*\})", re.DOTALL)
_TOKEN = re.compile(r"\s*\S{1,4}|\s+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the server claims to have.

    Args:
        name: Its name, with tag if any.
        capabilities: As Ollama's ``/api/show`` gives them.
        context_length: Tokens.
        dimensions: Length of its embeddings.
        size: Bytes.
    """

    name: str
    capabilities: tuple[str, ...] = ALL_CAPABILITIES
    context_length: int = 32_768
    dimensions: int = 16
    size: int = 1_000_000_000

    @property
    def digest(self) -> str:
        """A digest that is the same wherever the name is."""
        return hashlib.sha256(self.name.encode()).hexdigest()


def tokens(text: str) -> list[str]:
    """The text in pieces of at most four characters and the blanks before them; joined they are the text again."""
    return _TOKEN.findall(text)


def vector(text: str, length: int) -> list[float]:
    """A vector of length one that depends on the text alone."""
    numbers: list[float] = []
    for block in range(-(-length // 32)):
        digest = hashlib.sha256(f"{block}:{text}".encode()).digest()
        numbers += [(byte - 127.5) / 127.5 for byte in digest]
    numbers = numbers[:length]
    norm = math.sqrt(sum(number * number for number in numbers))
    return [round(number / norm, 8) for number in numbers]


@dataclass(slots=True)
class Plan:
    """What will be said.

    Args:
        thinking: Pieces of the reasoning.
        content: Pieces of the answer.
        calls: Functions to call, with their arguments.
        finish: ``stop`` or ``length``.
        prompt_tokens: Tokens of the prompt.
    """

    thinking: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    finish: str = "stop"
    prompt_tokens: int = 0

    @property
    def completion_tokens(self) -> int:
        """Tokens of everything said."""
        return len(self.thinking) + len(self.content) + sum(len(tokens(json.dumps(arguments))) + 1 for _, arguments in self.calls)


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))


def _instance(schema: Any) -> Any:
    """The smallest value that fits a JSON schema of the simple kind."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else None)
    if kind == "object":
        return {name: _instance(inner) for name, inner in schema.get("properties", {}).items()}
    samples: dict[Any, Any] = {"array": [], "string": "text", "integer": 1, "number": 0.5, "boolean": True}
    return samples.get(kind)


def _spoken(prompt: str) -> str:
    if found := _EXACTLY.search(prompt):
        return found.group(1)
    if found := _COUNT.search(prompt):
        return " ".join(str(number) for number in range(1, int(found.group(1)) + 1))
    return "pong" if prompt.strip().lower() == "ping" else prompt


def plan(
    prompt: str,
    whole_prompt: str,
    *,
    offered: tuple[str, ...] = (),
    forced: str = "",
    think: bool = False,
    limit: int | None = None,
    stop: tuple[str, ...] = (),
    schema: Any = None,
) -> Plan:
    """Decide the answer.

    Args:
        prompt: The last message's text: ``Return exactly the text: X``, ``Count to N``, ``Call NAME with {JSON}``, ``ping``; else
            it is echoed.
        whole_prompt: All text, for counting.
        offered: Names of the functions that may be called.
        forced: The function that must be called.
        think: Whether to reason first.
        limit: Most tokens to say; None for no limit.
        stop: Texts before which to stop.
        schema: ``"json"`` or a JSON schema that the answer must fit.
    """
    result = Plan(prompt_tokens=max(1, len(tokens(whole_prompt))))
    if think:
        result.thinking = tokens(f"The user says: {prompt[:40]}")
    found = _CALL.search(prompt)
    if found and found.group(1) in offered:
        result.calls = [(found.group(1), json.loads(found.group(2)))]
    elif forced:
        result.calls = [(forced, {})]
    if result.calls:
        return result
    if schema is None:
        text = _spoken(prompt)
    else:
        text = json.dumps({"answer": _spoken(prompt)} if schema == "json" else _instance(schema))
    for end in stop:
        text = text.partition(end)[0]
    result.content = tokens(text)
    if limit is not None and len(result.thinking) + len(result.content) > limit:
        result.thinking = result.thinking[:limit]
        result.content = result.content[: limit - len(result.thinking)]
        result.finish = "length"
    return result
