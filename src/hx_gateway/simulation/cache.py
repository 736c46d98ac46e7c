"""A prefix cache as inference engines keep it: blocks of tokens, the longest unused of which goes first."""

from __future__ import annotations

from collections.abc import Sequence


class BlockCache:
    """Blocks of prompts that need not be read again.

    Args:
        blocks: How many it holds.
    """

    __slots__ = ("_held", "_limit")

    def __init__(self, blocks: int) -> None:
        self._limit = blocks
        self._held: dict[int, None] = {}  # the longest unused first

    def __len__(self) -> int:
        return len(self._held)

    def leading(self, blocks: Sequence[int]) -> int:
        """How many of the leading blocks are held."""
        held = self._held
        count = 0
        for block in blocks:
            if block not in held:
                break
            count += 1
        return count

    def keep(self, blocks: Sequence[int]) -> None:
        """Hold these blocks of one prompt; a later block is of no use without those before it, so it goes before them."""
        held = self._held
        for block in reversed(blocks[: self._limit]):
            held.pop(block, None)
            held[block] = None
        for block in list(_first(held, len(held) - self._limit)):
            del held[block]


def _first(held: dict[int, None], count: int) -> list[int]:
    return [block for block, _ in zip(held, range(count), strict=False)] if count > 0 else []
