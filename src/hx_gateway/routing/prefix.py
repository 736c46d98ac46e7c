"""An approximate index of which endpoint has which prompt prefix in its cache: hashes only, bounded, aged."""

from __future__ import annotations

from collections.abc import Sequence


class PrefixIndex:
    """Remembers where blocks of prompts were sent.

    Each block is a hash that covers the whole prefix up to its end, so that a match of the n-th block is a match of all
    before it. Endpoints are bits of a mask. Two generations of bounded size age what is not used: a block not seen
    while one generation fills is forgotten.

    Args:
        blocks: Blocks in a generation, over all endpoints.
    """

    __slots__ = ("_bits", "_limit", "_old", "_young")

    def __init__(self, blocks: int = 65536) -> None:
        self._limit = blocks
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def bit(self, endpoint: str) -> int:
        """The mask of an endpoint, by its name."""
        bit = self._bits.get(endpoint)
        if bit is None:
            bit = self._bits[endpoint] = 1 << len(self._bits)
        return bit

    def matches(self, blocks: Sequence[int], bits: Sequence[int]) -> list[int]:
        """How many leading blocks each of the endpoints has, in the order of ``bits``."""
        counts = [0] * len(bits)
        left = 0
        for bit in bits:
            left |= bit
        young, old = self._young, self._old
        depth = 0
        for block in blocks:
            here = (young.get(block, 0) | old.get(block, 0)) & left
            if here != left:
                lost = left & ~here
                for position, bit in enumerate(bits):
                    if bit & lost:
                        counts[position] = depth
                left = here
                if not left:
                    return counts
            depth += 1
        for position, bit in enumerate(bits):
            if bit & left:
                counts[position] = depth
        return counts

    def add(self, blocks: Sequence[int], bit: int) -> None:
        """A prompt with these blocks was sent to the endpoint."""
        young, old = self._young, self._old
        for block in blocks:
            young[block] = young.get(block, 0) | old.get(block, 0) | bit
        if len(young) > self._limit:
            self._old = young
            self._young = {}

    def forget(self, bit: int) -> None:
        """The endpoint lost its cache (it was restarted)."""
        for generation in (self._young, self._old):
            for block, mask in list(generation.items()):
                if mask & bit:
                    generation[block] = mask & ~bit
