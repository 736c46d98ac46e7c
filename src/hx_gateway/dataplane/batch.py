"""A batch of texts to embed, item by item: which of them are known, what to ask for the others, and the answer to all of it."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING

import msgspec

from hx_gateway.core import errors
from hx_gateway.core.context import Exchange
from hx_gateway.core.errors import Failure
from hx_gateway.openai.canon import Fields, key_of, usual
from hx_gateway.openai.replay import Recording
from hx_gateway.openai.requests import EmbeddingsFacts

if TYPE_CHECKING:
    from hx_gateway.dataplane.flight import Flight
    from hx_gateway.dataplane.shelf import Shelf

_ASIDE = frozenset(("model", "input", "prompt", "user", "encoding_format"))
_BLANKS = b" \t\r\n"


class _Vector(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | None = None


class _Vectors(msgspec.Struct):
    data: list[_Vector]


_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_vectors = msgspec.json.Decoder(_Vectors).decode


class Batch:
    """One embeddings request.

    Args:
        name: The field that holds the items: ``input`` or ``prompt``.
        items: Each as JSON: a text, or a list of token ids.
        keys: What each is kept by.
        fields: Of the request.
    """

    __slots__ = ("fields", "found", "head", "items", "keys", "name")

    def __init__(self, name: str, items: Sequence[bytes], keys: Sequence[bytes], fields: Fields) -> None:
        self.name = name
        self.items = items
        self.keys = keys
        self.fields = fields
        self.found: dict[bytes, Recording] = {}
        self.head = b""

    @classmethod
    def read(cls, exchange: Exchange, fields: Fields, prefix: bytes) -> Batch | None:
        """The batch of a request; None for one that is written so that it might be read in several ways.

        Args:
            exchange: An embeddings request.
            fields: Of its body.
            prefix: What else must be the same for an item to be the same.
        """
        facts: EmbeddingsFacts = exchange.facts
        name = "input" if bytes(facts.input) else "prompt"
        raw = bytes(fields.get(name, b""))
        if not usual(fields, exchange.body) or ("input" in fields and "prompt" in fields):
            return None
        items: list[bytes] = [raw]
        if raw[:1] == b"[":
            items = [bytes(item) for item in _items(raw)]
            if items[0][:1] in b"-0123456789":
                items = [raw]
        if any(item[:1] not in b'"[' for item in items):
            return None
        shape = key_of(b"%b\0%b" % (prefix, b"base64" if facts.encoding_format == "base64" else b"float"), fields, exchange.body, _ASIDE)
        keys = [sha256(shape + (item if item[:1] == b'"' else item.translate(None, _BLANKS))).digest() for item in items]
        return cls(name, items, keys, fields)

    def find(self, shelf: Shelf, now_ms: int) -> None:
        """Look for every item in memory."""
        for key in self.keys:
            recording = shelf.get(key, now_ms)
            if recording is not None:
                self.found[key] = recording
                self.head = recording.head

    @property
    def missing(self) -> list[bytes]:
        """Keys of the items that are not known, each once, in order."""
        return list(dict.fromkeys(key for key in self.keys if key not in self.found))

    def request(self, exchange: Exchange, missing: Sequence[bytes]) -> tuple[bytes, EmbeddingsFacts]:
        """Body and facts of a request for the missing items; the client's own where all are."""
        facts: EmbeddingsFacts = exchange.facts
        if len(missing) == len(self.keys):
            return exchange.body, facts
        items = dict(zip(self.keys, self.items, strict=True))
        given = msgspec.Raw(b"[%b]" % b",".join([items[key] for key in missing]))
        fields = {**self.fields, self.name: given}
        body = b"{%b}" % b",".join([b'"%b":%b' % (name.encode(), value) for name, value in fields.items()])
        return body, msgspec.structs.replace(facts, **{self.name: given})

    def record(self, flight: Flight, answer: bytes, missing: Sequence[bytes], shelf: Shelf) -> Recording:
        """Keep the vectors of an answer to `request`, and make the answer to the whole batch.

        Raises:
            Failure: There are not as many vectors as were asked for.
        """
        exchange = flight.exchange
        vectors = _vectors(answer).data
        if len(vectors) != len(missing):
            if len(missing) == len(self.keys):
                return Recording(False, answer, 0)  # as it came: the client can count
            raise Failure(errors.BAD_RESPONSE, f"the model server gave {len(vectors)} embeddings where {len(missing)} were asked for")
        if all(vector.index is not None for vector in vectors):
            vectors.sort(key=lambda vector: vector.index or 0)
        now_ms = int(time() * 1000)
        for key, vector in zip(missing, vectors, strict=True):
            self.found[key] = recording = Recording(False, bytes(vector.embedding), now_ms, exchange.deployment.response_head)
            if flight.keepable and len(recording.body) <= flight.flights.max_entry_bytes:
                shelf.put(key, recording)
        if len(missing) == len(self.keys):
            return Recording(False, answer, now_ms)
        return Recording(False, self.answer(exchange.asked, max(0, exchange.prompt_tokens)), now_ms)

    def answer(self, model: str, prompt_tokens: int) -> bytes:
        """The answer to the whole batch, all of whose items are known.

        Args:
            model: The name that was asked for.
            prompt_tokens: Tokens that were read for it now.
        """
        data = [b'{"object":"embedding","index":%d,"embedding":%b}' % (at, self.found[key].body) for at, key in enumerate(self.keys)]
        usage = b'{"prompt_tokens":%d,"total_tokens":%d}' % (prompt_tokens, prompt_tokens)
        return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(data), msgspec.json.encode(model), usage)
