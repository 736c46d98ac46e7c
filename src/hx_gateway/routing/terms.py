"""What speaks for and against a candidate, each as seconds, so that a choice reads as a sentence."""

from __future__ import annotations

from typing import Protocol

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.routing.ask import Ask

BUILT_IN = {
    "wait": "hx_gateway.routing.terms:wait",
    "load": "hx_gateway.routing.terms:load",
    "prefill": "hx_gateway.routing.terms:prefill",
    "decode": "hx_gateway.routing.terms:decode",
    "price": "hx_gateway.routing.terms:price",
    "risk": "hx_gateway.routing.terms:risk",
    "busy": "hx_gateway.routing.terms:busy",
    "first_byte": "hx_gateway.routing.terms:first_byte",
    "quality": "hx_gateway.routing.terms:quality",
    "tokens": "hx_gateway.routing.terms:tokens",
}
EXCHANGED = ("price", "busy", "tokens")
"""Terms that are no seconds: their weight says how many seconds one of them is worth."""
PACED = ("wait", "prefill", "decode", "first_byte")
"""Terms that go by what was learned of a deployment's speed."""
_RETRY_S = 2.0  # what a failed call costs the client: noticing it and asking again


class Term(Protocol):
    """Seconds that a candidate costs a request.

    ``cached_tokens`` of the prompt are believed to be in the candidate's prefix cache; ``now_s`` is monotonic.
    """

    def __call__(self, ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float, /) -> float: ...


def wait(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Until its turn comes: the prompts ahead of it that are still being read, and a slot if all are taken."""
    endpoint = deployment.endpoint
    seconds: float = endpoint.pending_s
    slots = endpoint.slots or deployment.pace.slots
    if slots:
        # A server that loads models on demand has its slots for each model, any other for all it does.
        busy = deployment.in_flight if endpoint.residency.managed else endpoint.in_flight
        if busy >= slots:
            seconds += (busy - slots + 1) * deployment.pace.service_s / slots
    return seconds


def load(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Until the model is in memory, and what pushing another out for it will cost whoever wants that one next."""
    return deployment.endpoint.residency.load_s(deployment, now_s)


def prefill(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Reading the part of the prompt that is not cached."""
    return (ask.prompt_tokens - cached_tokens) / deployment.pace.prefill_rate


def decode(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Writing the answer, at its usual length or the most the request allows."""
    pace = deployment.pace
    tokens = ask.usual_tokens or pace.output_tokens
    if 0.0 < ask.output_tokens < tokens:
        tokens = ask.output_tokens
    return tokens / pace.decode_rate


def price(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """The money it costs; the policy's weight says how many seconds one unit of money is worth."""
    prices = deployment.prices
    tokens = ask.usual_tokens or deployment.pace.output_tokens
    if 0.0 < ask.output_tokens < tokens:
        tokens = ask.output_tokens
    return prices.per_request + ask.prompt_tokens * prices.per_prompt_token + tokens * prices.per_completion_token


def risk(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """What its recent failures make a failure of this call likely to cost, and the care due after a recovery."""
    return deployment.pace.risk(now_s) * _RETRY_S


def busy(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Requests under way at the endpoint, for its weight; not seconds, and meant to stand alone."""
    return deployment.endpoint.in_flight / deployment.weight


def first_byte(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """The recent wait for a first byte, for each request that would share the endpoint."""
    return deployment.pace.first_byte_s * (deployment.endpoint.in_flight + 1)


def tokens(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """Tokens of the last minute, and as many as this request's for each under way, for its weight; not seconds, and meant to stand alone."""
    under_way = deployment.in_flight * (ask.prompt_tokens + ask.usual_tokens)
    return (deployment.pace.recent_tokens(now_s) + under_way) / deployment.weight


def quality(ask: Ask, deployment: Deployment, cached_tokens: float, now_s: float) -> float:
    """What a less than surely good answer is worth in seconds, in groups that learn; nothing elsewhere."""
    return ask.choice.regret_s(deployment.model) if ask.choice is not None else 0.0
