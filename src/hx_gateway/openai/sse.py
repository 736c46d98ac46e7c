"""Server-sent events of OpenAI's dialect: passed on in whole events, looked into only where something may have to change."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.openai.usage import Usage, estimate, note_usage

DONE = b"data: [DONE]\n\n"
MAX_EVENT = 1 << 24  # bytes of one event that may be held back waiting for its end

_line_end = re.compile(rb"\r\n|\r|\n")
_finish = re.compile(rb'"finish_reason" ?: ?"')
_null_usage = re.compile(rb', ?"usage" ?: ?null')


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    text: msgspec.Raw = msgspec.Raw()
    delta: msgspec.Raw = msgspec.Raw()


class _Chunk(msgspec.Struct):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Chunk).decode


def event(data: bytes) -> bytes:
    """One event with ``data`` (a single line)."""
    return b"data: " + data + b"\n\n"


def error_event(failure: Failure) -> bytes:
    """The event that tells of a failure in the middle of a stream."""
    return event(failure.body())


def said_error(raw: bytes, default: str) -> str:
    """The message inside an error value, whatever its shape."""
    try:
        value: Any = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return default
    if isinstance(value, dict):
        value = value.get("message") or value.get("error") or value
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()[:500]


class Relay:
    """Passes an OpenAI stream on, whole events at a time.

    It reads the usage (and strips it if the client did not ask, or else gives it a chunk of its own without choices),
    gives the answer the name the client asked for, finds errors, and knows whether the stream came to its end: by
    ``[DONE]``, or at least by a finish reason.
    The first event is held until it proves to be no error, so that an early failure still has a proper status.

    Args:
        exchange: Filled with token counts.
        keep_usage: Whether the client asked for usage.
    """

    __slots__ = (
        "_before", "_cr", "_exchange", "_finished", "_held", "_keep_usage", "_last", "_lines", "_owed", "_rename", "_started", "complete", "failure",
    )  # fmt: skip

    def __init__(self, exchange: Exchange, keep_usage: bool) -> None:
        self._exchange = exchange
        self._keep_usage = keep_usage
        self._held = b""
        self._before = self._last = b""  # the last two blocks passed on: a finish reason is in one of them
        self._cr = False
        self._lines = 0  # passed on: two an event, and about one event a token
        self._started = False
        self.complete = False  # [DONE] came and was passed on
        self._finished = False
        self._owed = b""  # a usage chunk to send at the end
        self._rename: tuple[bytes, bytes] | None = None
        self.failure: Failure | None = None

    def feed(self, data: bytes) -> bytes:
        if self.complete:
            return b""  # nothing belongs after [DONE]
        if self._cr or b"\r" in data:
            data = self._normalised(data)
        if self._held:
            data = self._held + data
            self._held = b""
        if data[-2:] != b"\n\n":
            cut = data.rfind(b"\n\n") + 2
            if cut == 1:
                return self._hold(data)
            self._held = data[cut:]
            data = data[:cut]
        if not self._started:
            data = self._first(data)
            if not data:
                return b""
        self._lines += data.count(b"\n")  # several times as fast as to count the events
        if b'"usage"' in data or b'"error"' in data or b"[DONE]" in data:
            data = self._inspected(data)
            if self.complete:  # said at once: the client need not wait for the server to close
                self._count()
                return (data if self._rename is None else data.replace(*self._rename)) + self._owed + DONE
            if not data:
                return b""
        if self._rename is not None:
            data = data.replace(*self._rename)
        self._before = self._last
        self._last = data
        return data

    def finish(self) -> bytes:
        if self.complete:
            return b""
        rest = b""
        if self._held:
            # An engine may leave out the last blank line.
            held, self._held, self._cr = self._held.rstrip(b"\n"), b"", False
            if held:
                rest = self.feed(held + b"\n\n")
        if self.failure is not None or self.complete:
            return rest
        if not self._started:
            self.failure = Failure(errors.BAD_RESPONSE, "the model server's stream ended before its first event")
        elif not self._finished and not _finish.search(self._last) and not _finish.search(self._before):
            self.failure = Failure(errors.STREAM_BROKEN, "the model server ended its stream before the answer was complete")
        else:
            self._count()
            rest += self._owed + DONE
        return rest

    def partial(self) -> None:
        if self._started:
            self._count()

    def _count(self) -> None:
        """Where the server told no usage: of the events, the first names the role and the last the reason to finish."""
        if self._exchange.completion_tokens < 0:
            estimate(self._exchange, max(0, self._lines // 2 - 2))

    def _hold(self, data: bytes) -> bytes:
        if len(data) > MAX_EVENT:
            self.failure = Failure(errors.BAD_RESPONSE, "the model server sent an event without end")
            return b""
        self._held = data
        return b""

    def _normalised(self, data: bytes) -> bytes:
        """Line ends as line feeds; a carriage return at the very end waits for what follows it."""
        if self._cr:
            data = b"\r" + data
        self._cr = data[-1:] == b"\r"
        return _line_end.sub(b"\n", data[:-1] if self._cr else data)

    def _first(self, data: bytes) -> bytes:
        """Look into the first event with data; returns b"" while there is none."""
        if data[:3] == b"\xef\xbb\xbf":
            data = data[3:]
        data = data.lstrip(b"\n")
        if not data:
            return b""
        for part in data.split(b"\n\n"):
            payload = payload_of(part)
            if payload is None:
                continue
            if payload == b"[DONE]":
                self._started = True
                return data
            try:
                chunk = _decode(payload)
            except (msgspec.DecodeError, RecursionError):
                self.failure = Failure(errors.BAD_RESPONSE, "the model server's stream does not hold JSON")
                return b""
            if bytes(chunk.error) not in (b"", b"null"):
                self.failure = self._reported(bytes(chunk.error), errors.UPSTREAM_ERROR)
                return b""
            self._started = True
            asked = self._exchange.asked
            if chunk.model is not None and chunk.model != asked:
                found = re.search(rb'"model" ?: ?' + re.escape(msgspec.json.encode(chunk.model)), payload)
                if found is not None:
                    self._rename = (found.group(0), b'"model":' + msgspec.json.encode(asked))
            return data
        if len(data) > MAX_EVENT:
            return self._hold(data)
        self._held = data + self._held  # comments only: proof of nothing
        return b""

    def _inspected(self, data: bytes) -> bytes:
        """Go through the events one by one: read usage, strip it, find errors and the end."""
        if not self._keep_usage and b'"usage"' in data:
            data = _null_usage.sub(b"", data)
            if b'"usage"' not in data and b'"error"' not in data and b"[DONE]" not in data:
                return data
        kept: list[bytes] = []
        for part in data[:-2].split(b"\n\n"):
            if b'"usage"' not in part and b'"error"' not in part and b"[DONE]" not in part:
                kept.append(part)
                continue
            payload = payload_of(part)
            if payload == b"[DONE]":
                self.complete = True
                break
            if payload is None:
                kept.append(part)
                continue
            try:
                chunk = _decode(payload)
            except (msgspec.DecodeError, RecursionError):
                self.failure = Failure(errors.STREAM_BROKEN, "the model server sent an event that is not JSON")
                break
            if bytes(chunk.error) not in (b"", b"null"):
                self.failure = self._reported(bytes(chunk.error), errors.STREAM_BROKEN)
                break
            if chunk.usage is not None:
                note_usage(self._exchange, chunk.usage)
                if any(choice.finish_reason for choice in chunk.choices or ()):
                    self._finished = True
                if not chunk.choices:
                    self._owed = b""
                    if not self._keep_usage:
                        continue
                elif not self._keep_usage or self._finished or _is_empty(chunk):
                    whole = msgspec.json.decode(payload)
                    counted = whole.pop("usage")
                    if self._rename is not None and "model" in whole:
                        whole["model"] = self._exchange.asked  # encoded anew, it may be spelt otherwise than `_rename` looks for
                    if self._keep_usage:
                        self._owed = event(msgspec.json.encode({**whole, "choices": [], "usage": counted}))
                    if _is_empty(chunk):
                        continue
                    part = b"data: " + msgspec.json.encode(whole)
            kept.append(part)
        return b"\n\n".join(kept) + b"\n\n" if kept else b""

    def _reported(self, raw: bytes, kind: errors.ErrorKind) -> Failure:
        return Failure(kind, f"the model server reported: {said_error(raw, 'an error')}")


def payload_of(part: bytes) -> bytes | None:
    """The data of one event; several data lines are joined, as the standard says. None for a comment."""
    if part.startswith(b"data: ") and b"\n" not in part:
        return part[6:]
    lines = [line[5:].removeprefix(b" ") for line in part.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def _is_empty(chunk: _Chunk) -> bool:
    """Whether the only choice is an empty one, made to carry the usage."""
    if chunk.choices is None or len(chunk.choices) != 1:
        return False
    (choice,) = chunk.choices
    return not choice.finish_reason and bytes(choice.text) in (b"", b'""', b"null") and bytes(choice.delta) in (b"", b"{}", b"null")
