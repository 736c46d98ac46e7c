"""Prompts with a planted truth: what they are about decides which model is good at them."""

from __future__ import annotations

import random

from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import extract

SUBJECTS = {
    "law": ("statute tort plaintiff court appeal liable contract verdict".split(), 0.1, 0.9),
    "sums": ("apples pears dozen price twice half total coins".split(), 0.9, 0.9),
    "stars": ("galaxy redshift orbit planet dwarf comet nebula moon".split(), 0.2, 0.8),
    "cooking": ("flour oven butter simmer recipe dough salt whisk".split(), 0.8, 0.8),
}
FILLERS = "the a of which is what when how many that and with for please tell me".split()


def planted(count: int, seed: int = 0) -> list[Example]:
    """So many prompts; the strong model is much better at law and stars, and no better at the others."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        words, weak, strong = SUBJECTS[chance.choice(sorted(SUBJECTS))]
        text = " ".join(chance.choice(words if chance.random() < 0.4 else FILLERS) for _ in range(chance.randint(12, 40))) + "?"
        scores = {"weak": float(chance.random() < weak), "strong": float(chance.random() < strong)}
        found.append(Example(extract(text), scores, text))
    return found
