"""What a prompt means, as far as the embedding of a model tells: kept in a byte a dimension, and what it adds to a scorer's columns."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Sequence
from itertools import islice
from math import isfinite, sqrt
from operator import mul
from typing import Any
from zlib import crc32

_PIECE = re.compile(r"[A-Za-z]{1,4}|\S")  # about a token, rather less than one
_PIECES = 400  # that are embedded of a prompt: small models read 512 tokens
_HEAD = struct.Struct("<If")  # which model, and what one step is worth
_STEPS = 127
_FEW = 20  # prompts whose mean is not yet the middle of all


def bounded(text: str) -> str:
    """The beginning of a prompt, as much of it as is embedded."""
    pieces = islice(_PIECE.finditer(text), _PIECES, None)
    return text[: piece.start()] if (piece := next(pieces, None)) is not None else text


def tag_of(model: str) -> int:
    """A number for an embedding model: what one model says is not mixed with what another does."""
    return crc32(model.encode())


def packed(model: str, vector: Sequence[float]) -> bytes:
    """An embedding as `Features.meaning` keeps it: brought to length 1, a byte a dimension.

    Raises:
        ValueError: It has no direction.
    """
    length = sqrt(sum(map(mul, vector, vector)))
    if not isfinite(length) or not length:
        raise ValueError("an embedding of numbers that have no direction")
    step = max(map(abs, vector)) / _STEPS
    return _HEAD.pack(tag_of(model), step / length) + array("b", [round(value / step) for value in vector]).tobytes()


def unpacked(meaning: bytes) -> tuple[int, list[float]]:
    """The tag of the model, and the embedding, of about length 1."""
    tag, step = _HEAD.unpack_from(meaning)
    return tag, [step * value for value in array("b", meaning[_HEAD.size :])]


class Meaning:
    """The part of a scorer that reads embeddings of one model, beside its words.

    Args:
        tag: Of the model.
        center: The mean of all embeddings: what is common to them says nothing.
        weights: For each column one weight for each dimension.
        share: What the columns of the words count for beside it; alone they count 1.
        seen: Prompts that the center is the mean of.
    """

    __slots__ = ("_constants", "center", "seen", "share", "tag", "weights")

    def __init__(self, tag: int, center: list[float], weights: list[list[float]], share: float = 1.0, seen: int = 0) -> None:
        self.tag = tag
        self.center = center
        self.weights = weights
        self.share = share
        self.seen = seen
        self._constants = self._centered()

    @classmethod
    def empty(cls, meaning: bytes, columns: int) -> Meaning:
        """One that knows nothing, for embeddings like this."""
        tag, vector = unpacked(meaning)
        return cls(tag, [0.0] * len(vector), [[0.0] * len(vector) for _ in range(columns)])

    def takes(self, meaning: bytes) -> bool:
        """Whether an embedding is there, and of its model."""
        return len(meaning) == _HEAD.size + len(self.center) and _HEAD.unpack_from(meaning)[0] == self.tag

    def place(self, meaning: bytes) -> list[float] | None:
        """What an embedding adds to each column; None where it is none that it `takes`."""
        if not self.takes(meaning):
            return None
        _, step = _HEAD.unpack_from(meaning)
        values = array("b", meaning[_HEAD.size :])
        return [step * sum(map(mul, values, column)) - constant for column, constant in zip(self.weights, self._constants, strict=True)]

    def learn(self, meaning: bytes, steps: Sequence[float]) -> None:
        """Move each column by so much along an embedding that it `takes`."""
        _, vector = unpacked(meaning)
        self.seen += 1
        part = 1.0 / self.seen
        self.center = [middle + (value - middle) * part for middle, value in zip(self.center, vector, strict=True)]
        if self.seen > _FEW:
            apart = [value - middle for middle, value in zip(self.center, vector, strict=True)]
            for column, step in zip(self.weights, steps, strict=True):
                column[:] = [weight + step * value for weight, value in zip(column, apart, strict=True)]
        self._constants = self._centered()

    def state(self) -> tuple[dict[str, Any], array[float]]:
        """What `restored` makes it of again: facts, and numbers."""
        numbers = array("d", self.center)
        for column in self.weights:
            numbers.extend(column)
        return {"tag": self.tag, "share": self.share, "seen": self.seen, "dimensions": len(self.center)}, numbers

    @classmethod
    def restored(cls, facts: dict[str, Any], numbers: Sequence[float], columns: int) -> Meaning:
        """What `state` told.

        Raises:
            KeyError, TypeError, ValueError: It does not fit together.
        """
        size = facts["dimensions"]
        if len(numbers) != size * (columns + 1):
            raise ValueError("its embeddings do not fit the columns")
        center, *weights = (list(numbers[size * place : size * (place + 1)]) for place in range(columns + 1))
        return cls(facts["tag"], center, weights, facts["share"], facts["seen"])

    def _centered(self) -> list[float]:
        return [sum(map(mul, self.center, column)) for column in self.weights]
