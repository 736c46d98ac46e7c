"""An approximate index of which place has which prompt prefix in its cache: hashes only, bounded, aged as the caches are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from hx_gateway.fleet.facts import PromptCache

PRIOR_TOKENS = 262_144.0  # a cache of middling size, until a server's own is known or learned
_LEAST_TOKENS = 4096.0
_MOST_TOKENS = 16_777_216.0
_STEP = 0.1  # of the error of one belief in the size


class Held:
    """What one place, a model on an endpoint, is believed to hold, the longest unused first.

    Args:
        bit: Its bit in the index's masks.
        limit: Tokens its cache is believed to hold.
    """

    __slots__ = ("bit", "blocks", "known", "limit", "tokens", "told")

    def __init__(self, bit: int, limit: float) -> None:
        self.bit = bit
        self.limit = limit
        self.known = False  # told by the server or the operator, not to be learned
        self.blocks: OrderedDict[int, float] = OrderedDict()  # with the tokens of each
        self.tokens = 0.0
        self.told: PromptCache | None = None  # what the server last told of its cache

    def __repr__(self) -> str:
        return f"<Held {len(self.blocks)} blocks, {self.tokens:.0f} of {self.limit:.0f} tokens>"


class PrefixIndex:
    """Remembers where blocks of prompts were sent.

    Each block is a hash that covers the whole prefix up to its end, so that a match of the n-th block is a match of all
    before it. Of each place as much is remembered as its cache is believed to hold; what was used longest ago is
    forgotten first, as the server itself does. The size is a guess, or what the server tells (`heed`), until answers
    correct it (`verified`).

    Args:
        blocks: Most blocks remembered of one place.
        tokens: Size of a cache of which nothing is known.
    """

    __slots__ = ("_blocks", "_held", "_masks", "_prior")

    def __init__(self, blocks: int = 65536, tokens: float = PRIOR_TOKENS) -> None:
        self._blocks = blocks
        self._prior = tokens
        self._masks: dict[int, int] = {}
        self._held: dict[str, Held] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def held(self, place: str) -> Held:
        """What the place of this name is believed to hold."""
        held = self._held.get(place)
        if held is None:
            held = self._held[place] = Held(1 << len(self._held), self._prior)
        return held

    def bit(self, place: str) -> int:
        """The mask of a place, by its name."""
        return self.held(place).bit

    def heed(self, held: Held, cache: PromptCache) -> None:
        """Take into account what a server told of its cache: its size, where it tells, and whether it began anew."""
        if held.told is not None and held.told.life != cache.life:
            self.forget(held)
        if cache.tokens is not None and (held.told is None or held.told != cache):
            self.sized(held, cache.tokens)
            held.known = not cache.tokens  # blocks times their size is not always the truth, but no cache is none
        held.told = cache

    def matches(self, blocks: Sequence[int], bits: Sequence[int]) -> list[int]:
        """How many leading blocks each of the places has, in the order of ``bits``; a bit of 0 is of one that has none."""
        counts = [0] * len(bits)
        left = 0
        for bit in bits:
            left |= bit
        masks = self._masks
        depth = 0
        for block in blocks:
            here = masks.get(block, 0) & left
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

    def add(self, blocks: Sequence[int], held: Held, block_tokens: float, edges: Sequence[float] = ()) -> None:
        """A prompt was sent to a place.

        Args:
            blocks: Its leading blocks.
            held: The place's (`held`).
            block_tokens: Tokens of a block.
            edges: Tokens covered by so many leading blocks, where blocks differ in size.
        """
        masks, mine, bit = self._masks, held.blocks, held.bit
        # The last block goes in first: it is of no use without those before it, and so must be forgotten before them.
        for position in range(len(blocks) - 1, -1, -1):
            block = blocks[position]
            if block in mine:
                mine.move_to_end(block)
            else:
                tokens = edges[position + 1] - edges[position] if edges else block_tokens
                mine[block] = tokens
                held.tokens += tokens
                masks[block] = masks.get(block, 0) | bit
        while held.tokens > held.limit or len(mine) > self._blocks:
            self._drop(held)

    def _drop(self, held: Held) -> None:
        block, tokens = held.blocks.popitem(last=False)
        held.tokens -= tokens
        mask = self._masks[block] & ~held.bit
        if mask:
            self._masks[block] = mask
        else:
            del self._masks[block]

    def sized(self, held: Held, tokens: float) -> None:
        """The place's cache is known to hold ``tokens``; what is too much for it is forgotten."""
        held.known = True
        held.limit = tokens
        while held.tokens > tokens:
            self._drop(held)

    def verified(self, held: Held, prompt_tokens: float, believed_tokens: float, cached_tokens: float) -> None:
        """An answer told how much of its prompt had been cached: what was believed too large or too small is corrected."""
        if held.known or prompt_tokens <= 0.0:
            return
        error = (cached_tokens - believed_tokens) / prompt_tokens
        # A cache that is not full yet says nothing against a larger size.
        if error < 0.0 or held.tokens > 0.9 * held.limit:
            held.limit = min(max(held.limit * (1.0 + _STEP * max(-1.0, min(error, 1.0))), _LEAST_TOKENS), _MOST_TOKENS)

    def forget(self, held: Held) -> None:
        """The place lost its cache (its server was restarted, its model unloaded)."""
        while held.blocks:
            self._drop(held)
        held.tokens = 0.0
