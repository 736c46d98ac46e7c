"""`make bench-router`: how well the learned router knows which prompt needs which model, on public data it has not seen. Nothing is asserted."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bench.meaning import MODEL, meanings
from hx_gateway.routing.learned.evaluate import apgr, calls_for
from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import extract
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.targets import ShareThreshold, cheapest_good
from hx_gateway.routing.learned.training import save

DATA = Path(__file__).parents[2] / "shared" / "data" / "routing"
FOLDS = 5
PAIR = ("weak", "strong")
SHARES = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Row:
    """One prompt of a collection, with the kind it belongs to."""

    example: Example
    kind: str


def pairs_of(name: str) -> list[Row]:
    """RouteLLM's: was the weak, was the strong model right."""
    return [
        Row(Example(extract(row["prompt"]), {"weak": row["weak_ok"], "strong": row["strong_ok"]}, row["prompt"]), row.get("subject", name))
        for row in rows_of(name)
    ]


def nine() -> list[Row]:
    """LLMRouter's nine open models."""
    return [Row(Example(extract(row["prompt"]), row["scores"], row["prompt"]), row["task"]) for row in rows_of("llmrouter_9models_dev")]


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file in the folder of data."""
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def by_prompt(rows: Sequence[Row], seed: int) -> list[int]:
    """A fold for each row; equal prompts share one."""
    return dealt([hash_of(row) for row in rows], seed)


def hash_of(row: Row) -> str:
    """What makes two prompts one."""
    return " ".join(row.example.text.split())


def dealt(names: Sequence[str], seed: int) -> list[int]:
    """A fold for each name, equal names in the same."""
    different = sorted(set(names))
    random.Random(seed).shuffle(different)
    fold = {name: position % FOLDS for position, name in enumerate(different)}
    return [fold[name] for name in names]


def trained(rows: Sequence[Row], seed: int = 1) -> Scorer:
    """A scorer through a file, as an operator would have it."""
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "router", [row.example for row in rows], seed, MODEL if embedded(rows) else "")


def embedded(rows: Sequence[Row]) -> bool:
    """Whether they have embeddings."""
    return bool(rows[0].example.features.meaning)


def embed(rows: list[Row]) -> list[Row]:
    """Have a real model embed them."""
    for row, meaning in zip(rows, meanings([row.example.text for row in rows]), strict=True):
        row.example.features.meaning = meaning
    return rows


def crossed(rows: Sequence[Row], folds: Sequence[int], models: Sequence[str]) -> tuple[list[tuple[float, ...]], list[Scorer]]:
    """For each row the probabilities from a scorer that has not seen its fold; the scorers."""
    found: list[tuple[float, ...]] = [()] * len(rows)
    scorers = []
    for fold in range(FOLDS):
        scorer = trained([row for row, own in zip(rows, folds, strict=True) if own != fold])
        scorers.append(scorer)
        for position, row in enumerate(rows):
            if folds[position] == fold:
                found[position] = scorer.predict(row.example.features, models).probabilities
    return found, scorers


def scores(rows: Sequence[Row], model: str) -> list[float]:
    """What a model reached on each."""
    return [row.example.scores[model] for row in rows]


def preferred(probabilities: Sequence[Sequence[float]]) -> list[float]:
    """How much more the second model is expected to reach than the first."""
    return [second - first for first, second in probabilities]


def folded(rows: Sequence[Row], folds: Sequence[int], gaps: Sequence[float], weak: str = "weak", strong: str = "strong") -> float:
    """The mean APGR of the folds."""
    means = []
    for fold in range(FOLDS):
        inside = [position for position, own in enumerate(folds) if own == fold]
        chosen = [rows[position] for position in inside]
        means.append(apgr([gaps[position] for position in inside], scores(chosen, weak), scores(chosen, strong)))
    return fmean(means)


def quality(rows: Sequence[Row], folds: Sequence[int], title: str) -> tuple[list[float], list[Scorer]]:
    """Print the figures of a strong and a weak model."""
    probabilities, scorers = crossed(rows, folds, PAIR)
    gaps = preferred(probabilities)
    weak, strong = scores(rows, "weak"), scores(rows, "strong")
    calls = [100 * calls_for(gaps, weak, strong, part) for part in (0.5, 0.8)]
    whole = apgr(gaps, weak, strong)
    print(
        f"{title:34} APGR {folded(rows, folds, gaps):.3f} mean of folds, {whole:.3f} together; CPT50 {calls[0]:.1f} %, CPT80 {calls[1]:.1f} %"
    )
    return gaps, scorers


def shares(rows: Sequence[Row], folds: Sequence[int], gaps: Sequence[float], scorers: Sequence[Scorer]) -> None:
    """Print the share of strong calls that was given for the share that was asked for."""
    for share in SHARES:
        given = 0
        for fold, scorer in enumerate(scorers):
            limit = ShareThreshold.of(scorer, "weak", "strong", share, embedded(rows)).limit
            given += sum(gap > limit for gap, own in zip(gaps, folds, strict=True) if own == fold)
        print(f"  asked for {100 * share:.0f} % strong calls, gave {100 * given / len(rows):.1f} %")


def others(scorer: Scorer, rows: Sequence[Row], title: str, own: Sequence[Row]) -> None:
    """Print the figures on a collection that it was not trained on, and how often it said so, beside ``own`` unseen prompts."""
    found = [scorer.predict(row.example.features, PAIR) for row in rows]
    at_home = fmean(bool(scorer.predict(row.example.features, PAIR).doubt) for row in own)
    gaps = preferred([one.probabilities for one in found])
    doubts = fmean(bool(one.doubt) for one in found)
    figure = f"APGR {apgr(gaps, scores(rows, 'weak'), scores(rows, 'strong')):.3f}, " if "weak" in rows[0].example.scores else ""
    print(f"{title:34} {figure}in doubt {100 * doubts:.0f} % (of prompts like those it was trained on {100 * at_home:.1f} %)")


def online(rows: Sequence[Row], labels: int, flipped: float, seeds: int = 5) -> list[float]:
    """The APGR of an untrained scorer after so many judged answers, each of one model, by seed; on prompts it was not told of."""
    found = []
    for seed in range(seeds):
        chance = random.Random(seed)
        mixed = list(rows)
        chance.shuffle(mixed)
        scorer = Scorer.untrained({"weak": 0.0, "strong": 1.0})
        for row in mixed[:labels]:
            model = chance.choice(PAIR)
            score = row.example.scores[model]
            scorer.update(row.example.features, model, 1.0 - score if chance.random() < flipped else score)
        rest = mixed[labels : labels + 3000]
        gaps = preferred([scorer.predict(row.example.features, PAIR).probabilities for row in rest])
        found.append(apgr(gaps, scores(rest, "weak"), scores(rest, "strong")))
    return found


def bad(rows: Sequence[Row], seeds: int = 5) -> list[int]:
    """Judged answers of all three models after which the one that is bad is last and stays it, though its tier is the highest."""
    found = []
    for seed in range(seeds):
        chance = random.Random(seed)
        mixed = list(rows)
        chance.shuffle(mixed)
        scorer = Scorer.untrained({"weak": 0.0, "strong": 0.5, "bad": 1.0})
        probes = [row.example.features for row in mixed[-200:]]
        since = 0
        for number, row in enumerate(mixed[:400], 1):
            model = chance.choice((*PAIR, "bad"))
            score = row.example.scores.get(model, float(chance.random() < 0.2))
            scorer.update(row.example.features, model, score)
            if number % 10 == 0:
                means = [
                    fmean(column) for column in zip(*(scorer.predict(one, (*PAIR, "bad")).probabilities for one in probes), strict=True)
                ]
                if means[2] < min(means[:2]):
                    since = since or number
                else:
                    since = 0
        found.append(since)
    return found


def nine_models(prepare: Callable[[list[Row]], list[Row]] = list) -> None:
    """Print the figures of nine models: pairs, the best for each prompt, and quality asked for."""
    rows = prepare(nine())
    models = sorted(rows[0].example.scores)
    means = {model: fmean(scores(rows, model)) for model in models}
    folds = by_prompt(rows, 1)
    probabilities, _ = crossed(rows, folds, models)
    best = max(means, key=lambda model: means[model])
    largest = [model for model in ("llama-3.1-nemotron-51b-instruct", "llama-3.3-nemotron-super-49b-v1") if model in means]
    place = {model: number for number, model in enumerate(models)}
    for strong in dict.fromkeys((best, *largest)):
        figures = {}
        for weak in models:
            if means[weak] < means[strong] - 0.01:
                gaps = [one[place[strong]] - one[place[weak]] for one in probabilities]
                figures[weak] = folded(rows, folds, gaps, weak, strong)
        print(f"nine models, each to {strong}: APGR {fmean(figures.values()):.3f} on average")
        print("  " + ", ".join(f"{weak} {figure:.3f}" for weak, figure in figures.items()))
    taken = [rows[number].example.scores[models[max(place.values(), key=one.__getitem__)]] for number, one in enumerate(probabilities)]
    oracle = fmean(max(row.example.scores.values()) for row in rows)
    print(f"nine models, the best expected: {fmean(taken):.3f}; best single ({best}) {means[best]:.3f}, oracle {oracle:.3f}")
    cost = {model: float(number) for number, model in enumerate(sorted(models, key=means.__getitem__))}
    chosen = [models[cheapest_good(one, [cost[model] for model in models], 0.95)] for one in probabilities]
    reached = fmean(row.example.scores[model] for row, model in zip(rows, chosen, strict=True))
    print(f"  quality 0.95 of the best: {reached:.3f}, {100 * sum(model == best for model in chosen) / len(rows):.0f} % calls of {best}")


def speed(scorer: Scorer, meaning: bytes) -> None:
    """Print what one prompt of 2 kB costs."""
    text = " ".join(row["prompt"] for row in rows_of("routellm_mmlu_dev")[:20])[:2048]

    def us(call: Callable[[], object]) -> float:
        spans = []
        for _ in range(300):
            began = time.perf_counter()
            for _ in range(10):
                call()
            spans.append((time.perf_counter() - began) / 10)
        return 1e6 * sorted(spans)[len(spans) // 10]

    features = extract(text, meaning=meaning)
    models = scorer.models
    print(f"prompt of {len(text)} characters, {len(features.words)} words and pairs: extract {us(lambda: extract(text)):.0f} us, ", end="")
    print(f"predict {len(models)} models {us(lambda: scorer.predict(features, models)):.0f} us")


def main(arguments: Sequence[str]) -> int:
    """Print everything, or one part."""
    parts: Mapping[str, Callable[[], None]] = {"pairs": pairs, "online": online_figures, "nine": nine_models}
    further = {"embeddings": with_embeddings}
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("part", nargs="*", choices=[[], *parts, *further], help="what to measure; nothing means all but embeddings")
    if not DATA.is_dir():
        print(f"no data: {DATA} is not there", file=sys.stderr)
        return 1
    for part in asked.parse_args(arguments).part or parts:
        {**parts, **further}[part]()
    return 0


def with_embeddings() -> None:
    """The same with embeddings of a real model: takes minutes the first time."""
    for part in (pairs, online_figures, nine_models):
        part(embed)


def pairs(prepare: Callable[[list[Row]], list[Row]] = list) -> None:
    """A strong and a weak model: figures, shares, what is foreign, speed."""
    mmlu, gsm8k, open_models = map(prepare, (pairs_of("routellm_mmlu_dev"), pairs_of("routellm_gsm8k_dev"), nine()))
    folds = by_prompt(mmlu, 1)
    gaps, scorers = quality(mmlu, folds, "MMLU, subjects seen")
    shares(mmlu, folds, gaps, scorers)
    speed(scorers[0], mmlu[0].example.features.meaning)
    unseen = [row for row, own in zip(mmlu, folds, strict=True) if own == 0]
    others(scorers[0], gsm8k, "trained on MMLU, asked GSM8K", unseen)
    for kind in ("mbpp", "natural_qa", "commongen", "math"):
        others(scorers[0], [row for row in open_models if row.kind == kind], f"trained on MMLU, asked {kind}", unseen)
    quality(mmlu, dealt([row.kind for row in mmlu], 1), "MMLU, whole subjects left out")
    folds = by_prompt(gsm8k, 1)
    gaps, scorers = quality(gsm8k, folds, "GSM8K")
    shares(gsm8k, folds, gaps, scorers)
    others(scorers[0], mmlu, "trained on GSM8K, asked MMLU", [row for row, own in zip(gsm8k, folds, strict=True) if own == 0])
    together = [*mmlu, *gsm8k]
    folds = by_prompt(together, 1)
    gaps, scorers = quality(together, folds, "one for both")
    shares(together, folds, gaps, scorers)


def online_figures(prepare: Callable[[list[Row]], list[Row]] = list) -> None:
    """What judged answers make of an untrained scorer."""
    mmlu = prepare(pairs_of("routellm_mmlu_dev"))
    for labels, flipped in ((0, 0.0), (200, 0.0), (500, 0.0), (500, 0.2), (2000, 0.0)):
        found = online(mmlu, labels, flipped)
        print(f"MMLU, untrained, after {labels} judged answers, {100 * flipped:.0f} % of them wrong: APGR {fmean(found):.3f} ", end="")
        print(f"({min(found):.3f} to {max(found):.3f}, {len(found)} seeds)")
    found_bad = bad(mmlu)
    print(f"a bad model of the highest tier is last after {median(found_bad):.0f} judged answers of three models, at most {max(found_bad)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
