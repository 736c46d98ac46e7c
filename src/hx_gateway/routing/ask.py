"""What the router needs to know of a request; a simulation can make one as well as the data plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target

if TYPE_CHECKING:
    from hx_gateway.routing.learned.choice import Choice

NOTHING: tuple[int, ...] = ()


class Ask:
    """One request to be routed.

    Args:
        target: The name that was asked for.
        prompt_tokens: Length of the prompt, counted or estimated.
        output_tokens: Most tokens it may produce; 0 for not stated.
        blocks: Keyed hashes of the prompt's leading blocks, each covering all before it; equal leading hashes mean an
            equal prefix.
        block_tokens: Tokens in a block.
        session: Key of the conversation it belongs to; 0 for none.
        tried: Deployments that already failed it.
    """

    __slots__ = (
        "among", "believed_tokens", "block_tokens", "blocks", "choice", "edges", "output_tokens", "place", "prompt_tokens", "scored", "session",
        "target", "tried", "usual_tokens",
    )  # fmt: skip

    def __init__(
        self,
        target: Target,
        prompt_tokens: float = 0.0,
        output_tokens: float = 0.0,
        blocks: Sequence[int] = NOTHING,
        block_tokens: float = 512.0,
        session: int = 0,
        tried: Sequence[Deployment] = (),
    ) -> None:
        self.target = target
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.edges: Sequence[float] = NOTHING  # tokens covered by so many leading blocks, where blocks differ in size
        self.among = 0  # requests under way at the deployment it was sent to, itself included; set by the router
        self.believed_tokens = 0.0  # of the prompt, cached where it was sent; set by the router
        self.place = ""  # where it was sent, by `Deployment.place`; set by the router
        self.usual_tokens = 0.0  # usual length of an answer, one figure for all candidates; set by the router
        self.choice: Choice | None = None  # which model of the group it should be, where that is learned
        self.scored: Deployment | None = None  # whom a score was just made for, with these believed tokens
        self.session = session
        self.tried = tried
