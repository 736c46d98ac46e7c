"""What two requests must have in common to get the same answer: their fields, apart from those that change only how it is given."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

Fields = dict[str, msgspec.Raw]
"""The fields of a body, each value as its bytes."""

_ASIDE = frozenset(("model", "stream", "stream_options", "user", "metadata", "safety_identifier", "prompt_cache_key"))
_decode = msgspec.json.Decoder(Fields).decode
_zero_follows = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*-?0(?:\.0+)?(?:[eE][+-]?\d+)?[ \t\r\n]*[,}]")
_zero = re.compile(rb"-?0(?:\.0+)?(?:[eE][+-]?\d+)?\Z")


def fields_of(body: bytes) -> Fields | None:
    """The fields of a body that was looked into before; None where it cannot be read, which whoever sends it on will say."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def usual(fields: Fields, body: bytes) -> bool:
    """Whether a body is written in one of the two usual ways: without blanks between its fields, or with one after each sign.

    Then no field stands in it twice, which different readers would read differently, and its fields are all there is of it.
    """
    names = "".join(fields)
    # Only just these fields, unescaped, fit into so many bytes.
    if len(body) == len(b"".join(fields.values())) + len(names) + 4 * len(fields) + 1:
        return True
    if len(body) != len(b"".join(fields.values())) + len(names) + 6 * len(fields):
        return False
    return body == b"{%b}" % b", ".join([b'"%b": %b' % (name.encode(), value) for name, value in fields.items()])


def perhaps_deterministic(body: bytes) -> bool:
    """Whether it is worth reading the fields of a body to learn whether it is `deterministic`."""
    at = body.find(b'"temperature"')
    return at >= 0 and (_zero_follows.match(body, at + 13) is not None or body.find(b'"temperature"', at + 13) > 0)


def deterministic(fields: Fields) -> bool:
    """Whether a completion is asked for at temperature 0, and only one."""
    temperature, number = fields.get("temperature"), fields.get("n")
    if temperature is None or not _zero.match(bytes(temperature)):
        return False
    return number is None or bytes(number) in (b"1", b"null")


def key_of(prefix: bytes, fields: Fields, body: bytes, aside: frozenset[str] = _ASIDE) -> bytes:
    """A digest that two requests share if they ask for the same; 32 bytes.

    Args:
        prefix: What else must be the same.
        fields: Of the body. Their order does not matter, nor do those that change only how the answer is given.
        body: The body; as it stands where it is written in an unusual way.
        aside: Names of fields that do not matter.
    """
    if not usual(fields, body):
        return sha256(b"%b\0\0%b" % (prefix, body)).digest()
    names = sorted(fields)
    kept = [name for name in names if name not in aside]
    return sha256(b"%b\0%b\0%b" % (prefix, "\0".join(kept).encode(), b"\0".join([fields[name] for name in kept]))).digest()
