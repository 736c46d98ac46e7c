"""What a request tells a scorer that learned which prompt needs which model: its last question, as features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hx_gateway.core.context import CHAT, COMPLETIONS, Exchange
from hx_gateway.dataplane.features import ask_of
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.registry import Target
from hx_gateway.openai.requests import ChatFacts
from hx_gateway.routing.ask import Ask
from hx_gateway.routing.learned.choice import Learned
from hx_gateway.routing.learned.features import Features, extract
from hx_gateway.routing.terms import price

_MOST_TOOLS = 1000


class _Message(msgspec.Struct, gc=False):
    role: Any = ""
    content: msgspec.Raw = msgspec.Raw()


class _Prompt(msgspec.Struct, gc=False):
    prompt: msgspec.Raw = msgspec.Raw()


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder().decode


def question_of(exchange: Exchange) -> str:
    """The user's last message, or the prompt of a completion; empty where there is none that can be read."""
    try:
        if exchange.route is not CHAT:
            return _text(_decode_prompt(exchange.body).prompt)
        chat: ChatFacts = exchange.facts
        for raw in reversed(chat.messages or ()):
            message = _decode_message(raw)
            if message.role == "user":
                return _text(message.content)
    except (msgspec.DecodeError, RecursionError):
        pass  # the model server will tell its client what is wrong with it
    return ""


def _text(raw: msgspec.Raw) -> str:
    """The text of a content: a string, or a list of parts or strings."""
    data = bytes(raw)
    if data[:1] == b'"':
        return _decode_text(data)
    parts = _decode_any(data) if data else ()
    if not isinstance(parts, list):
        return ""
    found = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else "" for part in parts]
    return "\n".join(text for text in found if isinstance(text, str))


def features_of(learned: Learned, exchange: Exchange) -> Features:
    """The features of a request, with the embedding of its question where the group knows it."""
    messages = exchange.facts.messages if exchange.route is CHAT else None
    tools = min(_MOST_TOOLS, exchange.body.count(b'"parameters"')) if b'"tools"' in exchange.body else 0
    question = question_of(exchange)
    return extract(question, len(messages or ()) or 1, tools, learned.meaning(question) or b"")


def learning_ask(
    learned: Learned, exchange: Exchange, affine: bool, tried: Sequence[Deployment] = (), lasting: bool = True, target: Target | None = None
) -> Ask:
    """The exchange as the router sees it, with a choice of the group's model; another attempt of it keeps the choice.

    Args:
        learned: Of the group.
        exchange: With its facts.
        affine: Whether prefixes and conversations matter to the policy.
        tried: Deployments that already failed it.
        lasting: Whether the choice is carried out.
        target: The name it asks for now; None for that of the exchange.
    """
    target = target or exchange.candidates
    assert target is not None
    ask = ask_of(exchange, target, affine, tried)
    choice = exchange.choice
    if exchange.route is CHAT or exchange.route is COMPLETIONS:
        if choice is None or choice.group != learned.group:
            choice = exchange.choice = learned.choose(features_of(learned, exchange), costs_of(learned, ask), lasting)
        ask.choice = choice
    return ask


def costs_of(learned: Learned, ask: Ask) -> list[float]:
    """What an answer of each of the group's models would cost, in money, where it is cheapest; the prompt's length is estimated."""
    found: dict[str, float] = {}
    for deployment in ask.target.deployments:
        cost = price(ask, deployment, 0.0, 0.0) if not deployment.prices.free else 0.0
        found[deployment.model] = min(cost, found.get(deployment.model, cost))
    return [found.get(model, 0.0) + 1e-12 * place for place, model in enumerate(learned.models)]


def told(learned: Learned, exchange: Exchange, ask: Ask) -> dict[str, Any] | None:
    """The choice as the explain route answers it: expectations, confidence, what speaks for the best model, and what each would cost."""
    choice = ask.choice
    if choice is None:
        return None
    expected = dict(zip(choice.models, choice.prediction.probabilities, strict=True))
    best, worst = max(expected, key=lambda model: expected[model]), min(expected, key=lambda model: expected[model])
    costs = dict(zip(choice.models, costs_of(learned, ask), strict=True))
    why = learned.champion.explain(choice.features, best, worst, question_of(exchange)) if best != worst else []
    wanted = choice.order[0] if choice.order else None
    return {
        "model": wanted,
        "rule": choice.rule,
        "sentence": choice.words(),
        "doubt": choice.prediction.doubt or None,
        "confidence": round(choice.prediction.confidence, 4),
        "artifact": choice.version[:12] or None,
        "expected": {
            model: {
                "quality": round(expected[model], 4),
                "cost": round(costs[model], 9),
                "cost_more": round(costs[model] - costs[wanted], 9) if wanted in costs else None,
            }
            for model in choice.models
        },
        "features": {"better": best, "worse": worst, "parts": [[name, round(part, 4)] for name, part in why]},
        "challenger": {"model": choice.shadow[0], "artifact": choice.shadow[1] or None} if learned.challenger is not None else None,
    }
