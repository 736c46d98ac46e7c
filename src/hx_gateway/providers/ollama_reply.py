"""Turns Ollama's whole answers into OpenAI bodies, and holds what whole and streamed answers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hx_gateway.core.context import CHAT, Exchange, Route
from hx_gateway.core.errors import BAD_RESPONSE, Failure
from hx_gateway.providers.ollama_failure import from_message
from hx_gateway.providers.ollama_request import prompts, speaks_functions
from hx_gateway.providers.ollama_thinking import ThinkTags
from hx_gateway.providers.ollama_values import decoded

FINGERPRINT = "fp_ollama"
_CHARACTERS_PER_TOKEN = 4


class Function(msgspec.Struct):
    """The function a model wants called."""

    name: str = ""
    arguments: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class ToolCall(msgspec.Struct):
    """One call in a message of Ollama's."""

    function: Function
    id: str | None = None


class Message(msgspec.Struct):
    """A message of Ollama's, whole or a piece of one."""

    content: str | None = None
    thinking: str | None = None
    tool_calls: list[ToolCall] | None = None


class Reply(msgspec.Struct):
    """One object of Ollama's: a whole answer, or one line of a stream. Counts are left out when zero."""

    message: Message | None = None
    response: str | None = None
    thinking: str | None = None
    done: bool | None = None
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None
    logprobs: list[dict[str, Any]] | None = None
    error: Any = None


_LOADED_S = 1.0  # a model in memory can report most of a second, too
REPLY = msgspec.json.Decoder(Reply)


def note_load(exchange: Exchange, reply: Reply) -> None:
    """How long loading the model and working on the answer took, as Ollama gives it in nanoseconds.

    What a model in memory takes to load is left out of the loading time.
    """
    loading_s = (reply.load_duration or 0) / 1e9
    if loading_s >= _LOADED_S:
        exchange.load_s = loading_s
    worked = (reply.prompt_eval_duration or 0) + (reply.eval_duration or 0)
    if worked:
        exchange.engine_s += loading_s + worked / 1e9


def estimated_tokens(characters: int) -> int:
    """Tokens that so many characters are worth, for when nobody counted them."""
    return -(-characters // _CHARACTERS_PER_TOKEN)


def _prompt_characters(exchange: Exchange) -> int:
    body = decoded(exchange.body)
    if exchange.route is not CHAT:
        return sum(map(len, prompts(body)))
    total = 0
    for message in body["messages"]:
        content = message.get("content")
        if isinstance(content, str):
            total += len(content)
        elif isinstance(content, list):
            texts = [part.get("text") for part in content]
            total += sum(len(text) for text in texts if isinstance(text, str))
    return total


def count_tokens(exchange: Exchange, prompt: int | None, completion: int | None, characters: int) -> None:
    """Fill the exchange's token counts, by estimate where Ollama left them out.

    Args:
        exchange: Gets the counts.
        prompt: Tokens of the prompt as reported.
        completion: Tokens of the answer as reported.
        characters: Length of the answer.
    """
    exchange.estimated = prompt is None or (completion is None and characters > 0)
    exchange.prompt_tokens = estimated_tokens(_prompt_characters(exchange)) if prompt is None else prompt
    exchange.completion_tokens = estimated_tokens(characters) if completion is None else completion


def usage(exchange: Exchange) -> dict[str, int]:
    """OpenAI's usage object for the counts of the exchange."""
    prompt, completion = exchange.prompt_tokens, exchange.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finish_reason(done_reason: str | None) -> str:
    """OpenAI's reason for Ollama's; answers to load and unload are empty and simply stop."""
    return "length" if done_reason == "length" else "stop"


class CallNames:
    """Gives tool calls an id that is unique within the answer: Ollama's own where it is one, else ours.

    Args:
        exchange_id: Makes our ids unique over all answers.
    """

    __slots__ = ("_given", "_prefix")

    def __init__(self, exchange_id: str) -> None:
        self._prefix = f"call_{exchange_id}"
        self._given: set[str] = set()

    def __call__(self, offered: str | None) -> str:
        """The id for the next call, of which the server says ``offered``."""
        chosen = offered if offered and offered not in self._given else f"{self._prefix}_{len(self._given)}"
        self._given.add(chosen)
        return chosen


def arguments_text(call: ToolCall) -> str:
    """A call's arguments as JSON text, which is how OpenAI carries them."""
    raw = call.function.arguments
    if raw is msgspec.UNSET:
        return "{}"
    value = msgspec.json.decode(raw)
    if isinstance(value, str):  # some templates hand the text through
        return value or "{}"
    return msgspec.json.encode(value if value is not None else {}).decode()


def _token(entry: dict[str, Any]) -> dict[str, Any]:
    text = entry.get("token", "")
    octets = entry.get("bytes")
    return {"token": text, "logprob": entry.get("logprob", 0.0), "bytes": octets if octets is not None else list(text.encode())}


def chat_logprobs(entries: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    """Chat's ``logprobs`` for Ollama's list; None when it gave none."""
    if not entries:
        return None
    content = [{**_token(entry), "top_logprobs": [_token(top) for top in entry.get("top_logprobs") or ()]} for entry in entries]
    return {"content": content, "refusal": None}


def text_logprobs(entries: list[dict[str, Any]] | None, offset: int) -> dict[str, Any] | None:
    """Text completion's ``logprobs`` for Ollama's list, whose first token starts at character ``offset``; None when it gave none."""
    if not entries:
        return None
    tokens = [entry.get("token", "") for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [entry.get("logprob", 0.0) for entry in entries],
        "top_logprobs": [{top.get("token", ""): top.get("logprob", 0.0) for top in entry.get("top_logprobs") or ()} for entry in entries],
        "text_offset": offsets,
    }


def read_reply(body: bytes, route: Route, deployment: Any) -> Reply:
    """A whole answer, known to be complete.

    Raises:
        Failure: It is not valid, not complete, or an error in the clothes of a 200.
    """
    try:
        reply = REPLY.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Failure(BAD_RESPONSE, f"the model server's answer is not valid: {error}") from error
    if reply.error is not None:
        raise from_message(reply.error, route, deployment)
    if reply.done is not True:
        raise Failure(BAD_RESPONSE, "the model server's answer is not complete (done is not true)")
    return reply


def _chat_choice(index: int, reply: Reply, names: CallNames, functions: bool, tags: bool) -> tuple[dict[str, Any], int]:
    message = reply.message
    if message is None:
        raise Failure(BAD_RESPONSE, "the model server's answer holds no message")
    content, thinking = message.content or "", message.thinking or ""
    if tags and not thinking:
        splitter = ThinkTags()
        pieces = (splitter.feed(content), splitter.finish())
        thinking, content = "".join(piece[0] for piece in pieces), "".join(piece[1] for piece in pieces)
    shown: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if thinking:
        shown["reasoning_content"] = shown["reasoning"] = thinking
    reason = finish_reason(reply.done_reason)
    characters = len(content) + len(thinking)
    if message.tool_calls:
        calls = [(names(call.id), call.function.name, arguments_text(call)) for call in message.tool_calls]
        characters += sum(len(name) + len(arguments) for _, name, arguments in calls)
        shown["content"] = content or None
        if functions:
            shown["function_call"] = {"name": calls[0][1], "arguments": calls[0][2]}
            reason = "function_call"
        else:
            shown["tool_calls"] = [
                {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}
                for identifier, name, arguments in calls
            ]
            reason = "tool_calls"
    return {"index": index, "message": shown, "logprobs": chat_logprobs(reply.logprobs), "finish_reason": reason}, characters


def _total(counts: Sequence[int | None], characters: Sequence[int]) -> int | None:
    """The sum of the counts; None when one is missing where there was something to count."""
    if any(count is None and length for count, length in zip(counts, characters, strict=True)):
        return None
    return sum(count or 0 for count in counts)


def chat_completion(exchange: Exchange, deployment: Any, bodies: Sequence[bytes], created: int) -> bytes:
    """Answers of ``/api/chat``, one per choice, as one chat completion; fills the exchange's token counts.

    Raises:
        Failure: An answer is not valid.
    """
    names = CallNames(exchange.id)
    functions = speaks_functions(exchange.body)
    tags = bool(deployment.options.extra.get("think_tags"))
    replies = [read_reply(body, exchange.route, deployment) for body in bodies]
    choices = [_chat_choice(index, reply, names, functions, tags) for index, reply in enumerate(replies)]
    characters = [length for _, length in choices]
    for reply in replies:
        note_load(exchange, reply)
    # The choices share one prompt, so it is counted once.
    count_tokens(exchange, replies[0].prompt_eval_count, _total([reply.eval_count for reply in replies], characters), sum(characters))
    return msgspec.json.encode(
        {
            "id": f"chatcmpl-{exchange.id}",
            "object": "chat.completion",
            "created": created,
            "model": exchange.asked,
            "system_fingerprint": FINGERPRINT,
            "choices": [choice for choice, _ in choices],
            "usage": usage(exchange),
        }
    )


def text_completion(exchange: Exchange, deployment: Any, bodies: Sequence[bytes], created: int) -> bytes:
    """Answers of ``/api/generate``, choices of one prompt side by side, as one text completion; fills the token counts.

    Raises:
        Failure: An answer is not valid.
    """
    asked = decoded(exchange.body)
    texts = prompts(asked)
    per_prompt = max(1, len(bodies) // len(texts))
    replies = [read_reply(body, exchange.route, deployment) for body in bodies]
    choices, characters = [], []
    for index, reply in enumerate(replies):
        if reply.response is None:
            raise Failure(BAD_RESPONSE, "the model server's answer holds no response")
        prefix = texts[index // per_prompt] if asked.get("echo") else ""
        characters.append(len(reply.response))
        choices.append(
            {
                "text": prefix + reply.response,
                "index": index,
                "logprobs": text_logprobs(reply.logprobs, 0),
                "finish_reason": finish_reason(reply.done_reason),
            }
        )
    for reply in replies:
        note_load(exchange, reply)
    firsts = replies[::per_prompt]
    prompt = _total([reply.prompt_eval_count for reply in firsts], [len(text) for text in texts])
    count_tokens(exchange, prompt, _total([reply.eval_count for reply in replies], characters), sum(characters))
    return msgspec.json.encode(
        {
            "id": f"cmpl-{exchange.id}",
            "object": "text_completion",
            "created": created,
            "model": exchange.asked,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": usage(exchange),
        }
    )
