"""`python -m bench.learned [ARTIFACT]`: processor time that a learned choice of the model adds to a request of 2 kB; bounded at 160 µs by the project."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

from hx_gateway.config.routing import LearnedSettings
from hx_gateway.core.context import CHAT, NOBODY, Exchange
from hx_gateway.dataplane.learned import learning_ask, question_of
from hx_gateway.dataplane.proxy import Proxy
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.openai.requests import look
from hx_gateway.providers.openai import OpenAIProvider
from hx_gateway.routing.learned.choice import Learned
from hx_gateway.routing.learned.meaning import packed
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Router

ROUNDS, CHOICES = 40, 200  # the fastest round counts: the others were disturbed
LONG = [f"{first}{second}" for first in ("con", "pro", "in", "re", "sub") for second in ("tract", "fer", "ject", "duce", "vert", "sist")]


SHORT = "the of a is in to and which that for by are it with as not on was from at or an be this can who one if".split()


def exchange_of(words: int = 330) -> Exchange:
    """A chat request of about 2 kB, with as many words, signs and pairs as an English text has."""
    chance = random.Random(1)
    text = ""
    for _ in range(words):
        long = chance.choice(LONG) + chance.choice(("s", "ed", "ing", "or", "ion"))
        text += (chance.choice(SHORT) if chance.random() < 0.6 else long) + chance.choice((" ",) * 8 + (", ", ".\n"))
    body = json.dumps({"model": "g", "messages": [{"role": "user", "content": text}]}).encode()
    exchange = Exchange("0" * 26, CHAT, b"POST", b"/", {}, [], body, NOBODY, 0.0)
    exchange.facts = look(CHAT, body)
    return exchange


def group(name: str = "round_robin") -> Target:
    """A group of two models, each on two servers."""
    places = [
        Deployment(model, model, Endpoint(f"{model}{number}", Address("http", "host", number)))
        for model in ("weak", "strong")
        for number in (1, 2)
    ]
    return Target("g", "group", tuple(places), policy=name, group="g")


def cost_us(learned: Learned | None, challenger: bool = False) -> float:
    """Microseconds for what a request asks of the router."""
    proxy, target, exchange = Proxy(Router(policy), lambda _: OpenAIProvider()), group(), exchange_of()
    exchange.candidates = target
    if learned is not None:
        proxy.learned = {"g": learned}
        if challenger:
            learned.take(learned.champion, learned.champion)
    best_s = float("inf")
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(CHOICES):
            exchange.choice = None
            proxy.router.choose(proxy.ask(exchange), 1000.0)
            if exchange.choice is not None:
                exchange.choice.words()
                exchange.choice.record()
        best_s = min(best_s, time.process_time() - began_s)
    return best_s / CHOICES * 1e6


def main() -> None:
    """Print a line for each."""
    scorer = Scorer.load(Path(sys.argv[1])) if len(sys.argv) > 1 else None
    meant = scorer.facts.get("meaning", {}) if scorer is not None else {}
    learned = Learned("g", ("weak", "strong"), LearnedSettings(strong_share=0.3, embedding=meant.get("model")))
    if scorer is not None:
        learned.take(scorer, None)
    if meant:
        print(f"its embedding of {len(meant['center'])} dimensions is known")
        learned.mean(question_of(exchange_of()), packed(meant["model"], meant["weights"][0]))
    print(f"a prompt of {len(exchange_of().body)} bytes, {len(learning_features(learned))} different words and pairs")
    print(f"{'no group learns':40} {cost_us(None):6.1f} µs")
    print(f"{'the group learns':40} {cost_us(learned):6.1f} µs")
    print(f"{'with a challenger in shadow':40} {cost_us(learned, True):6.1f} µs")


def learning_features(learned: Learned) -> tuple[int, ...]:
    """The hashes of the prompt that is measured with."""
    exchange = exchange_of()
    exchange.candidates = group()
    learning_ask(learned, exchange, False)
    words: tuple[int, ...] = exchange.choice.features.words
    return words


if __name__ == "__main__":
    main()
