"""Turns Ollama's stream of JSON lines into OpenAI's server-sent events, whatever the network made of the lines."""

from __future__ import annotations

from typing import Any

import msgspec

from hx_gateway.core.context import CHAT, Exchange
from hx_gateway.core.errors import BAD_RESPONSE, STREAM_BROKEN, ErrorKind, Failure
from hx_gateway.providers.ollama_failure import from_message, shown
from hx_gateway.providers.ollama_reply import (
    FINGERPRINT,
    REPLY,
    CallNames,
    Message,
    Reply,
    arguments_text,
    chat_logprobs,
    count_tokens,
    finish_reason,
    note_load,
    text_logprobs,
    usage,
)
from hx_gateway.providers.ollama_request import prompts, speaks_functions
from hx_gateway.providers.ollama_thinking import ThinkTags
from hx_gateway.providers.ollama_values import decoded

_LONGEST_LINE = 16 * 1024 * 1024
_NOTHING = Message()
_encode = msgspec.json.Encoder().encode


class _Lines:
    """Puts lines together from bytes split anywhere.

    Raises:
        Failure: A line grows beyond all measure.
    """

    __slots__ = ("_pieces", "_size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *complete, rest = data.split(b"\n")
        if complete and self._pieces:
            complete[0] = b"".join([*self._pieces, complete[0]])
            self._pieces.clear()
            self._size = 0
        if rest:
            self._pieces.append(rest)
            self._size += len(rest)
            if self._size > _LONGEST_LINE:
                raise Failure(BAD_RESPONSE, f"a line of the model server's stream is longer than {_LONGEST_LINE} bytes")
        return complete

    def rest(self) -> bytes:
        """What stands after the last line end."""
        rest = b"".join(self._pieces)
        self._pieces.clear()
        return rest


class _Reader:
    """What both readers share: lines, failures, the end.

    Args:
        exchange: Gets the token counts.
        deployment: Named in failures.
        head: The events' common beginning, up to and with ``"choices":``.
        body: Used for the request's own wishes.
    """

    def __init__(self, exchange: Exchange, deployment: Any, kind: str, object_name: str, created: int) -> None:
        self.failure: Failure | None = None
        self._exchange = exchange
        self._deployment = deployment
        self._lines = _Lines()
        self._began = False  # something was handed on, so the answer cannot move to another server
        self._done = False
        self._characters = 0
        self._reported: tuple[int | None, int | None] = (None, None)
        self._usage_wanted = bool(exchange.facts.include_usage)
        names = {
            "id": f"{kind}-{exchange.id}",
            "object": object_name,
            "created": created,
            "model": exchange.asked,
            "system_fingerprint": FINGERPRINT,
        }
        self._head = b"data: " + _encode(names)[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if self._usage_wanted else b"}\n\n"

    @property
    def complete(self) -> bool:
        """Whether the line that says so has come."""
        return self._done

    def feed(self, data: bytes) -> bytes:
        """Events for the lines that ``data`` completes."""
        if self.failure is not None or self._done:
            return b""
        try:
            lines = self._lines.feed(data)
        except Failure as failure:
            self._fail(failure.kind, failure.message)
            return b""
        if len(lines) == 1:
            return self._line(lines[0])
        return b"".join([self._line(line) for line in lines])

    def finish(self) -> bytes:
        """The events due at the end; sets ``failure`` when Ollama never said that it was done."""
        due = b""
        if self.failure is None and not self._done and (rest := self._lines.rest()):
            due = self._line(rest)
        if self.failure is not None:
            return due
        if not self._done:
            self._fail(BAD_RESPONSE, "the model server's stream ended before the answer was complete")
            return due
        if self._usage_wanted:
            due += self._head + b'[],"usage":' + _encode(usage(self._exchange)) + b"}\n\n"
        return due + b"data: [DONE]\n\n"

    def _line(self, line: bytes) -> bytes:
        if self._done or self.failure is not None or not line.strip():
            return b""
        try:
            reply = REPLY.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            self._fail(BAD_RESPONSE, f"a line of the model server's stream is not valid: {error}")
            return b""
        if reply.error is not None:
            if self._began:
                self._fail(STREAM_BROKEN, f"the model server broke off: {shown(reply.error)}")
            else:
                self.failure = from_message(reply.error, self._exchange.route, self._deployment)
            return b""
        if reply.done:
            self._done = True
            self._reported = (reply.prompt_eval_count, reply.eval_count)
            note_load(self._exchange, reply)
        events = self._events(reply)
        if self._done:
            self._count()
        return events

    def _fail(self, kind: ErrorKind, message: str) -> None:
        """Before anything was handed on a failure is the server's answer; after that, a broken stream, and its tokens count."""
        if self._began:
            self._count()
        self.failure = Failure(STREAM_BROKEN if self._began else kind, message)

    def partial(self) -> None:
        self._count()

    def _count(self) -> None:
        count_tokens(self._exchange, *self._reported, self._characters)

    def _events(self, reply: Reply) -> bytes:
        raise NotImplementedError


class ChatReader(_Reader):
    """Reads the stream of ``/api/chat``."""

    def __init__(self, exchange: Exchange, deployment: Any, created: int) -> None:
        super().__init__(exchange, deployment, "chatcmpl", "chat.completion.chunk", created)
        self._functions = speaks_functions(exchange.body)
        self._names = CallNames(exchange.id)
        self._calls = 0
        self._tags = ThinkTags() if deployment.options.extra.get("think_tags") else None

    def _chunk(self, delta: bytes, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return b"".join(
            (self._head, b'[{"index":0,"delta":', delta, b',"logprobs":', logprobs, b',"finish_reason":', reason, b"}]", self._tail),
        )

    def _delta(self, message: Message) -> dict[str, Any]:
        content, thinking = message.content or "", message.thinking or ""
        if self._tags is not None and not thinking:
            thinking, content = self._tags.feed(content)
            if self._done:
                late_thinking, late_content = self._tags.finish()
                thinking, content = thinking + late_thinking, content + late_content
        delta: dict[str, Any] = {}
        if thinking:
            delta["reasoning_content"] = delta["reasoning"] = thinking
        if content:
            delta["content"] = content
        self._characters += len(content) + len(thinking)
        if message.tool_calls:
            self._add_calls(message, delta)
        return delta

    def _add_calls(self, message: Message, delta: dict[str, Any]) -> None:
        entries = []
        for call in message.tool_calls or ():
            arguments = arguments_text(call)
            self._characters += len(call.function.name) + len(arguments)
            function = {"name": call.function.name, "arguments": arguments}
            if self._functions:
                if not self._calls:  # the old form has room for one
                    delta["function_call"] = function
            else:
                # Ollama numbers calls per line, if at all; a client needs them numbered over the answer.
                entries.append({"index": self._calls, "id": self._names(call.id), "type": "function", "function": function})
            self._calls += 1
        if entries:
            delta["tool_calls"] = entries

    def _events(self, reply: Reply) -> bytes:
        delta = self._delta(reply.message or _NOTHING)
        if not delta and not self._done:
            return b""
        events = b""
        if not self._began:
            self._began = True
            events = self._chunk(b'{"role":"assistant","content":""}')
        if delta:
            logprobs = b"null" if reply.logprobs is None else _encode(chat_logprobs(reply.logprobs))
            events += self._chunk(_encode(delta), logprobs)
        if self._done:
            reason = finish_reason(reply.done_reason)
            if self._calls:
                reason = "function_call" if self._functions else "tool_calls"
            events += self._chunk(b"{}", reason=b'"' + reason.encode() + b'"')
        return events


class TextReader(_Reader):
    """Reads the stream of ``/api/generate``."""

    def __init__(self, exchange: Exchange, deployment: Any, created: int) -> None:
        super().__init__(exchange, deployment, "cmpl", "text_completion", created)
        self._offset = 0
        self._echo = ""
        if b'"echo"' in exchange.body:
            asked = decoded(exchange.body)
            self._echo = prompts(asked)[0] if asked.get("echo") else ""

    def _chunk(self, text: str, logprobs: bytes = b"null", reason: bytes = b"null") -> bytes:
        return b"".join(
            (self._head, b'[{"text":', _encode(text), b',"index":0,"logprobs":', logprobs, b',"finish_reason":', reason, b"}]", self._tail),
        )

    def _events(self, reply: Reply) -> bytes:
        text = reply.response or ""
        if not text and not self._done:
            return b""
        events = b""
        if not self._began:
            self._began = True
            if self._echo:
                events = self._chunk(self._echo)
        if text:
            logprobs = b"null" if reply.logprobs is None else _encode(text_logprobs(reply.logprobs, self._offset))
            events += self._chunk(text, logprobs)
            self._offset += len(text)
            self._characters += len(text)
        if self._done:
            events += self._chunk("", reason=b'"' + finish_reason(reply.done_reason).encode() + b'"')
        return events


def reader(exchange: Exchange, deployment: Any, created: int) -> ChatReader | TextReader:
    """The reader for a streamed answer; ``created`` is its time in whole seconds since the Unix epoch."""
    return ChatReader(exchange, deployment, created) if exchange.route is CHAT else TextReader(exchange, deployment, created)
