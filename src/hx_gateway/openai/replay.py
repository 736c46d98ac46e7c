"""A complete answer kept to be given again: whole or as events, with usage or without, as whoever asks wants it."""

from __future__ import annotations

import re
from typing import Any, cast

import msgspec

from hx_gateway.openai.answers import as_stream
from hx_gateway.openai.sse import DONE, event, payload_of

WHOLE, EVENTS, EVENTS_AND_USAGE = 0, 1, 2
"""The forms an answer is asked for in; the last is a stream with ``stream_options.include_usage``."""

_VERSION = 1
_OVERHEAD = 600  # bytes that keeping one takes beside its forms
_null_usage = re.compile(rb', ?"usage" ?: ?null')
_SPOKEN_ONCE = frozenset(("role", "id", "type", "name", "index", "object"))
_Packed = tuple[int, bool, bytes, int, bytes, int, int, int, bool]
_unpack = msgspec.msgpack.Decoder(_Packed).decode


class Recording:
    """One complete, successful answer; also one vector of a batch of embeddings.

    Args:
        streamed: Whether ``body`` is the events of a stream, usage and ``[DONE]`` included; else a whole answer.
        body: The answer.
        made_ms: When it was given, in milliseconds of Unix time.
        head: Response header lines that name the model.
        tokens: Of the prompt, of the answer, and of the prompt those the engine had cached; -1 for unknown.
        estimated: Whether these are estimates.
    """

    __slots__ = ("estimated", "forms", "head", "made_ms", "streamed", "tokens")

    def __init__(
        self,
        streamed: bool,
        body: bytes,
        made_ms: int,
        head: bytes = b"",
        tokens: tuple[int, int, int] = (-1, -1, -1),
        estimated: bool = False,
    ) -> None:
        self.streamed = streamed
        self.forms: list[bytes | None] = [None, None, body] if streamed else [body, None, None]
        self.made_ms = made_ms
        self.head = head
        self.tokens = tokens
        self.estimated = estimated

    @property
    def body(self) -> bytes:
        """The answer as it was recorded."""
        return cast(bytes, self.forms[EVENTS_AND_USAGE if self.streamed else WHOLE])

    @property
    def size(self) -> int:
        """Bytes of memory it takes, roughly."""
        return _OVERHEAD + len(self.head) + sum(len(form) for form in self.forms if form is not None)

    def form(self, wanted: int) -> bytes:
        """The answer in a form; made anew, unless it was recorded in it or that form was put into ``forms``.

        Raises:
            ValueError, TypeError, AttributeError: It does not hold what an answer holds.
        """
        made = self.forms[wanted]
        if made is not None:
            return made
        if not self.streamed:
            return as_stream(self.body, wanted == EVENTS_AND_USAGE)
        return without_usage(self.body) if wanted == EVENTS else folded(self.body)

    def packed(self) -> bytes:
        """As bytes, for a store."""
        return msgspec.msgpack.encode((_VERSION, self.streamed, self.body, self.made_ms, self.head, *self.tokens, self.estimated))

    @classmethod
    def unpacked(cls, data: bytes) -> Recording | None:
        """From the bytes of `packed`; None where they are something else."""
        try:
            version, streamed, body, made_ms, head, prompt, completion, cached, estimated = _unpack(data)
        except msgspec.DecodeError:
            return None
        return cls(streamed, body, made_ms, head, (prompt, completion, cached), estimated) if version == _VERSION else None


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_chunks = msgspec.json.Decoder(list[_Chunk]).decode
_NEXT = b"\n\ndata: "


def sound(events: bytes) -> bool:
    """Whether every event of a stream can be read, and every choice in it came to an end."""
    told = events.removesuffix(DONE).removesuffix(b"\n\n").removeprefix(b"data: ")
    try:
        chunks = _chunks(b"[%b]" % told.replace(_NEXT, b","))  # all at once: it is done for every stream that is kept
    except (msgspec.DecodeError, RecursionError):
        return False
    if len(chunks) != told.count(_NEXT) + 1:
        return False  # two that are broken made one that is not
    choices = [choice for chunk in chunks for choice in chunk.choices]
    ended = {choice.index for choice in choices if choice.finish_reason}
    return bool(ended) and ended == {choice.index for choice in choices}


def without_comments(events: bytes) -> bytes:
    """Events without the comments a server sends to keep a connection alive."""
    if events[:1] != b":" and b"\n:" not in events:
        return events
    parts = (b"\n".join(line for line in part.split(b"\n") if line[:1] != b":") for part in events.split(b"\n\n"))
    return b"\n\n".join(part for part in parts if part) + b"\n\n"


def without_usage(events: bytes) -> bytes:
    """Whole events of a stream with usage as the same stream has them where nobody asked for it.

    Raises:
        ValueError: An event that speaks of usage is not JSON.
    """
    if b'"usage"' not in events:
        return events
    events = _null_usage.sub(b"", events)
    if b'"usage"' not in events:
        return events
    kept = []
    for part in events.removesuffix(b"\n\n").split(b"\n\n"):
        payload = payload_of(part) if b'"usage"' in part else None
        if payload is not None:
            whole: dict[str, Any] = msgspec.json.decode(payload)
            if whole.pop("usage", None) is not None:
                if not whole.get("choices"):
                    continue
                kept.append(event(msgspec.json.encode(whole)))
                continue
        kept.append(part + b"\n\n")
    return b"".join(kept)


def folded(events: bytes) -> bytes:
    """The whole answer that a complete stream of a chat or completion tells piece by piece.

    Raises:
        ValueError, TypeError, AttributeError: The events are not those of a completion.
    """
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for part in events.split(b"\n\n"):
        payload = payload_of(part)
        if payload is None or payload == b"[DONE]":
            continue
        chunk: dict[str, Any] = msgspec.json.decode(payload)
        for name, value in chunk.items():
            if name == "choices":
                whole.setdefault(name, None)  # its place among the fields
            elif value is not None or name not in whole:
                whole[name] = value
        for choice in chunk.get("choices") or ():
            _fold_choice(choices.setdefault(choice.get("index") or 0, {}), choice)
    whole["choices"] = [choices[index] for index in sorted(choices)]
    if whole.get("object") == "chat.completion.chunk":
        whole["object"] = "chat.completion"
    if whole.get("usage", ...) is None:
        del whole["usage"]
    for choice in whole["choices"]:
        if "message" in choice:
            _finish_message(choice["message"])
    return msgspec.json.encode(whole)


def _fold_choice(kept: dict[str, Any], choice: dict[str, Any]) -> None:
    for name, value in choice.items():
        if name == "delta":
            _fold(kept.setdefault("message", {}), value or {})
        elif name == "text":
            kept[name] = kept.get(name, "") + (value or "")
        elif name == "logprobs" and value is not None:
            if kept.get(name) is None:
                kept[name] = {}
            _fold(kept[name], value)
        elif value is not None or name not in kept:
            kept[name] = value


def _fold(kept: dict[str, Any], delta: dict[str, Any]) -> None:
    """Texts and lists go on where they ended, calls of tools by their index; anything else is said once."""
    for name, value in delta.items():
        before = kept.get(name)
        if value is None:
            kept.setdefault(name, None)
        elif name == "tool_calls":
            calls = {call["index"]: call for call in before or ()}
            for call in value:
                index = call.get("index", len(calls))
                _fold(calls.setdefault(index, {"index": index}), call)
            kept[name] = [calls[index] for index in sorted(calls)]
        elif isinstance(value, dict) and isinstance(before, dict):
            _fold(before, value)
        elif before and isinstance(value, str | list) and name not in _SPOKEN_ONCE:
            kept[name] = before + value
        elif value != "" or before is None:
            kept[name] = value


def _finish_message(message: dict[str, Any]) -> None:
    message.setdefault("role", "assistant")
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
    if not message.get("content") and (message.get("tool_calls") or message.get("function_call")):
        message["content"] = None
    message.setdefault("content", None)
