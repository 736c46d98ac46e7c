"""A look into the body of a request: only the fields the gateway decides by, the rest left as the bytes that came."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import CHAT, EMBEDDINGS, Route
from hx_gateway.core.errors import Failure


class StreamOptions(msgspec.Struct, gc=False):
    """The client's ``stream_options``."""

    include_usage: bool | None = None


class Facts(msgspec.Struct, gc=False):
    """What a request asks for, as far as the data plane cares; decoded straight from its body.

    ``plain`` says whether each key read here stands in the body once and unescaped, so that its bytes may be spliced.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | msgspec.UnsetType | None = msgspec.UNSET
    user: str | None = None
    prompt_cache_key: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    plain: bool = msgspec.field(default=False, name=" plain")  # never the client's to say: always set by `look`

    @property
    def include_usage(self) -> bool:
        """Whether the client asked for the usage chunk."""
        options = self.stream_options
        return isinstance(options, StreamOptions) and options.include_usage is True


class ChatFacts(Facts):
    """Facts of a chat completion request."""

    messages: list[msgspec.Raw] | None = None


class EmbeddingsFacts(Facts):
    """Facts of an embeddings request; ``prompt`` is what some old clients send for ``input``."""

    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    encoding_format: str | None = None
    dimensions: int | None = None


_decode_chat = msgspec.json.Decoder(ChatFacts).decode
_decode_text = msgspec.json.Decoder(Facts).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingsFacts).decode
_keys = re.compile(rb'"[mse](?:odel|tream|ncoding_format)"')  # finds some that are none, at half the time
_escaped = re.compile(rb"\\u")
_BACKSLASH = 0x5C  # a number is found sooner than a string of one byte
_path = re.compile(r" - at `\$\.?([^`]*)`$")


def _invalid(error: msgspec.DecodeError) -> Failure:
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        found = _path.search(text)
        param = found.group(1) if found else None
        message = _path.sub("", text)
        if not param:
            return Failure(errors.INVALID_VALUE, f"the body must be a JSON object: {message}")
        return Failure(errors.INVALID_VALUE, f"{param}: {message}", param=param)
    return Failure(errors.INVALID_JSON, f"the body is not valid JSON: {text}")


def look(route: Route, body: bytes) -> Facts:
    """Read the facts of a body.

    Args:
        route: What the request is for.
        body: The whole body.

    Raises:
        Failure: ``invalid_json``, or ``invalid_value`` with the field's name.
    """
    try:
        if not body.isascii():
            body.decode()  # the decoder skips over strings it does not need, valid or not
        if route is EMBEDDINGS:
            return _look_embeddings(body)
        facts: Facts
        if route is CHAT:
            facts = chat = _decode_chat(body)
            if chat.messages is None:
                raise Failure(errors.INVALID_VALUE, "messages: a list of messages is required", param="messages")
        else:
            facts = _decode_text(body)
    except msgspec.DecodeError as error:
        raise _invalid(error) from None
    except (RecursionError, UnicodeDecodeError) as error:
        raise Failure(errors.INVALID_JSON, f"the body cannot be read as JSON: {error}") from None
    facts.plain = _plain(body)
    return facts


def _plain(body: bytes) -> bool:
    """Whether no key that is read here stands in the body twice, or may be spelt with escapes.

    Such a body reads differently in different parsers, and is never passed on as it is.
    """
    # One search by an expression takes a third of what `bytes.count` takes for one key, and most prompts are long.
    if _BACKSLASH in body and _escaped.search(body) is not None:
        return False
    found = _keys.findall(body)
    return len(found) < 2 or len(set(found)) == len(found)


def _look_embeddings(body: bytes) -> EmbeddingsFacts:
    facts = _decode_embeddings(body)
    given = bytes(facts.input) or bytes(facts.prompt)
    if not given or given == b"null":
        raise Failure(errors.INVALID_VALUE, "input: a string, or a list of strings or token ids, is required", param="input")
    if given[:1] not in (b'"', b"["):
        raise Failure(errors.INVALID_VALUE, "input: must be a string, or a list of strings or token ids", param="input")
    if given == b'""' or (given[:1] == b"[" and not given[1:-1].strip()):
        raise Failure(errors.INVALID_VALUE, "input: must not be empty", param="input")
    if facts.encoding_format not in (None, "float", "base64"):
        raise Failure(errors.INVALID_VALUE, "encoding_format: must be 'float' or 'base64'", param="encoding_format")
    if facts.dimensions is not None and facts.dimensions < 1:
        raise Failure(errors.INVALID_VALUE, "dimensions: must be at least 1", param="dimensions")
    facts.stream = None
    facts.plain = _plain(body)
    return facts


_model_value = re.compile(rb'("model"[ \t\r\n]*:[ \t\r\n]*)("[^"\\]*"|null)')
_first_brace = re.compile(rb"^[ \t\r\n]*\{[ \t\r\n]*")


def with_model(body: bytes, facts: Facts, model: str) -> bytes:
    """The body with another model name: spliced where that is safe, else decoded and encoded again."""
    if facts.plain:
        encoded = msgspec.json.encode(model)
        if not facts.model and b'"model"' not in body:
            return with_field(body, b'"model":' + encoded)
        spliced, count = _model_value.subn(lambda found: found.group(1) + encoded, body, count=1)
        # The one "model" must be the key that was read, not a nested one beside an absent top-level key.
        if count and facts.model and msgspec.json.encode(facts.model) in body:
            return spliced
    return rewritten(body, {"model": model})


def with_field(body: bytes, field: bytes) -> bytes:
    """The body with ``field`` (``"name":value`` as JSON) put in front of its other fields."""
    found = _first_brace.match(body)
    if found is None:
        return body
    rest = body[found.end() :]
    return b"{" + field + (rest if rest[:1] == b"}" else b"," + rest)


def asking_usage(body: bytes, facts: Facts) -> bytes:
    """The body of a request for a stream, with usage asked for.

    Raises:
        Failure: As `rewritten`.
    """
    if facts.stream_options is msgspec.UNSET:
        return with_field(body, b'"stream_options":{"include_usage":true}')
    options = decoded(body).get("stream_options")
    return rewritten(body, {"stream_options": {**(options if isinstance(options, dict) else {}), "include_usage": True}})


def rewritten(body: bytes, changes: dict[str, Any], drop: tuple[str, ...] = ()) -> bytes:
    """The body decoded, changed and encoded again; duplicate keys collapse to the one that was read.

    Raises:
        Failure: ``invalid_json`` for what `look` did not need to read and cannot be read.
    """
    whole = decoded(body)
    for name in drop:
        whole.pop(name, None)
    whole.update(changes)
    return msgspec.json.encode(whole)


def with_defaults(body: bytes, defaults: dict[str, Any]) -> bytes:
    """The body with the fields of ``defaults`` that it does not have; one of ``max_tokens`` and ``max_completion_tokens`` is enough."""
    whole = decoded(body)
    missing = {name: value for name, value in defaults.items() if whole.get(name) is None}
    for name, other in (("max_tokens", "max_completion_tokens"), ("max_completion_tokens", "max_tokens")):
        if whole.get(other) is not None:
            missing.pop(name, None)
    return rewritten(body, missing) if missing else body


def decoded(body: bytes) -> dict[str, Any]:
    """The whole body, of which `look` has read only what it needs.

    Raises:
        Failure: ``invalid_json``.
    """
    try:
        whole: dict[str, Any] = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Failure(errors.INVALID_JSON, f"the body cannot be read as JSON: {error}") from None
    return whole
