"""The ways in which a scripted model server misbehaves, each with its name and one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

WIRE_FAULTS = {
    "hang": "accepts the request and never answers",
    "reset_head": "resets the connection before a byte of the answer",
    "close_head": "closes the connection in order before a byte of the answer",
    "garbage_http": "answers with bytes that are no HTTP",
    "huge_headers": "answers with a head of 200 KB",
    "interim": "sends 100 and 103 before the answer",
    "slow": "sends the answer byte by byte, delay_s apart",
    "split": "sends the answer in single bytes without delay",
    "black_hole": "falls silent inside the answer and keeps the connection open",
    "reset_body": "resets the connection inside the answer",
    "close_body": "closes the connection in order inside the answer",
    "endless": "never ends the body",
    "extra_bytes": "sends a second, forged response right after the end of the first",
    "close_delimited": "gives no length; the end of the connection is the end of the body",
    "long_length": "announces more bytes than it sends, then closes",
    "short_length": "announces fewer bytes than it sends",
    "double_length": "gives a length and chunks at once",
    "bad_chunk": "sends a chunk size that is no number",
    "close_after": "closes the connection after the answer without saying so",
}
"""Faults of HTTP and TCP, the same for every dialect."""

CONTENT_FAULTS = {
    "status": "answers with an error of the given status",
    "busy": "is full: 429 with retry-after, or Ollama's 503",
    "not_found": "does not know the model",
    "too_long": "refuses the prompt as longer than the context",
    "error_200": "answers 200 with an error as body",
    "garbage_json": "answers 200 with a body that is no JSON",
    "empty": "answers 200 with an empty body",
    "garbage_events": "puts a line into the stream that is no event",
    "error_event": "reports an error inside the stream, then ends it",
    "truncated": "ends the stream in order, but before the answer is complete",
    "no_usage": "never says how many tokens there were",
    "usage_in_last": "puts the usage into the chunk with the finish reason",
    "usage_with_choice": "gives the usage chunk one empty choice",
    "crlf": "ends the lines of the stream with CR LF",
    "bom": "starts the stream with a byte order mark",
    "comments": "puts comment lines between the events",
    "no_final_blank": "leaves out the blank line after the last event",
    "repeated_finish": "sends the chunk with the finish reason twice",
    "fickle": "adds another word to each chat (OpenAI's dialect)",
    "other_model": "names another model in its answers (OpenAI's dialect)",
    "early_finish": "gives the finish reason before the last piece (OpenAI's dialect)",
    "nested_embedding": "gives one vector per token, in a list within the list",
    "empty_embedding": "answers embeddings with an empty vector",
    "fewer_embeddings": "leaves out the last vector",
}
"""Faults of the answer itself."""

LISTENER_FAULTS = {"refuse": "closes its port and all connections, as if the process were gone"}
KINDS = {**LISTENER_FAULTS, **WIRE_FAULTS, **CONTENT_FAULTS}
HEADER = "x-backend-fault"
_MARKER = re.compile(r"\s*\[\[fault:([^\]]*)\]\]")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        kind: A name from `KINDS`.
        after: Pieces of a streamed answer that still pass; whole answers break in the middle.
        status: HTTP status of ``status``.
        message: What the error says.
        retry_after_s: Sent as Retry-After by ``busy`` and ``status``; negative for none.
        delay_s: Seconds between two bytes of ``slow``.
        times: Requests it strikes before it goes away; 0 for all.

    Raises:
        ValueError: No fault is called so.
    """

    kind: str
    after: int = 2
    status: int = 500
    message: str = "scripted failure"
    retry_after_s: float = -1.0
    delay_s: float = 0.01
    times: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(KINDS)}")

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``kind name=value name=value``, as it stands in a header or in ``[[fault:...]]``.

        Raises:
            ValueError: A name is not known, or a value is not of its type.
        """
        kind, *settings = text.split()
        fault = cls(kind)
        types = {field.name: type(getattr(fault, field.name)) for field in fields(cls)}
        changes: dict[str, Any] = {}
        for setting in settings:
            name, _, value = setting.partition("=")
            if name not in types or name == "kind":
                raise ValueError(f"a fault has no setting {name!r}; there are {', '.join(types)}")
            changes[name] = types[name](value)
        return replace(fault, **changes)


def take_marker(text: str) -> tuple[str, Fault | None]:
    """The text without its ``[[fault:...]]`` marker, and the fault that it asks for."""
    found = _MARKER.search(text)
    if found is None:
        return text, None
    return text[: found.start()] + text[found.end() :], Fault.parse(found.group(1))
