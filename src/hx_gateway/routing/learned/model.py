"""The scorer itself: for each model the probability that its answer to a prompt is good enough, in plain Python.

All models share a few columns of weights, one weight for each hash; a column says one thing about prompts (the first, how hard they are
for all; the others, what sets models apart). Each model has a head: where it stands without having read anything, and how much each column
means for it. A model without data starts from the head of its tier, and what is learned from one model's answers helps all.

The way through it::

    scorer = Scorer.load(path)                       # or Scorer.untrained({"small": 0.0, "large": 1.0})
    features = extract(text, turns, tools)           # once a request, see `features`
    prediction = scorer.predict(features, models)    # .probabilities in that order, .confidence, .doubt
    if prediction.doubt: ...                         # out of its depth: take the group's stated order instead, and say so
    scorer.update(features, model, score)            # one answer was judged; the same log gives the same scorer
    scorer.explain(features, better, worse, text)    # what speaks for one model over another
    scorer.state(), scorer.restore(state)            # what was learned since it was loaded
"""

from __future__ import annotations

import json
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from operator import itemgetter, mul
from pathlib import Path
from typing import Any

from hx_gateway.routing.learned import artifact
from hx_gateway.routing.learned.features import BITS, SHAPES, STEPS, Features, named, shape_name
from hx_gateway.routing.learned.meaning import Meaning, tag_of

LEAST, MOST = 0.01, 0.99  # no probability is ever certain
_FARTHEST = log(LEAST / (1.0 - LEAST)), log(MOST / (1.0 - MOST))
LOW = 0.01  # a prompt so far out that of those it was trained on less than this share were as far: not to be relied on
ENOUGH = 20  # judged answers of a model before its own figures mean anything
_RATE, _SLOWEST = 0.5, 0.02  # of what the columns learn from one answer
_CALM = 100.0  # answers after which that is half
_HEAVIEST = 8.0  # no weight grows beyond it
_UNKNOWN_MOST = 0.6  # share of unknown words that is too much where nothing tells what is usual


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the scorer expects.

    Args:
        probabilities: For each model asked about, in that order, that its answer is good enough.
        confidence: Share of the prompts it was trained on that were as far from the rest as this one, 0 to 1.
        doubt: Why it should not be relied on; empty where it may be.
    """

    probabilities: tuple[float, ...]
    confidence: float
    doubt: str = ""


@dataclass(slots=True)
class Head:
    """One model: its usual score (a logit), how much each column means for it, and from how many judged answers that is known."""

    bias: float
    mix: tuple[float, ...]
    labels: int = 0


def probability(logit: float) -> float:
    """The probability of a logit, never certain."""
    return LEAST if logit < _FARTHEST[0] else MOST if logit > _FARTHEST[1] else 1.0 / (1.0 + exp(-logit))


class Scorer:
    """A scorer, trained or not.

    Args:
        heads: By model.
        columns: For each column one weight for each hash; the first entry of each is 0 and stays it.
        norms: For each hash the square of how telling it is; 0 for one that was never seen.
        shapes: For each column one weight for each position of `Features.shape`.
        facts: What training knows beside: ``usual`` (for each measure of distance what was usual), ``rarity`` (for each position of
            a shape), ``names`` (hashes in words), ``prompts`` (how many), ``reference`` (logits of some prompts, by model), and
            where it was trained with embeddings ``meaning``.
        version: Checksum of the artifact, in hex; empty for an untrained one.
    """

    def __init__(
        self,
        heads: dict[str, Head],
        columns: list[list[float]],
        norms: list[float],
        shapes: list[list[float]],
        facts: Mapping[str, Any],
        version: str = "",
    ) -> None:
        self._heads = heads
        self._columns = columns
        self._norms = norms
        self._shapes = shapes
        self._usual: dict[str, list[float]] = facts.get("usual", {})
        self._rarity: list[float] = facts.get("rarity", [0.0] * (len(SHAPES) * STEPS))
        self._names: dict[str, str] = facts.get("names", {})
        self._prompts: int = facts.get("prompts", 0)
        self._meaning = _meaning_of(facts.get("meaning"), len(columns))
        self.facts = facts
        self.version = version
        self._counts: dict[int, int] = {}  # of words first met in answers judged since
        self._touched: set[int] = set()
        self.labels = 0  # answers judged since it was loaded

    @classmethod
    def load(cls, path: Path) -> Scorer:
        """The scorer in a file.

        Raises:
            ArtifactError: It is none, or damaged.
        """
        facts, packed, version = artifact.read(path)
        try:
            heads = {name: Head(head["bias"], tuple(head["mix"]), head["labels"]) for name, head in facts["heads"].items()}
            columns = [_unpacked(column, scale) for column, scale in zip(packed, facts["scales"], strict=True)]
            *weights, norms = columns
            if any(len(column) != 1 << BITS for column in columns) or any(len(head.mix) != len(weights) for head in heads.values()):
                raise ValueError
            return cls(heads, weights, norms, facts["shapes"], facts, version)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise artifact.ArtifactError(f"{path}: its parts do not fit together; train it again") from None

    @classmethod
    def untrained(cls, tiers: Mapping[str, float]) -> Scorer:
        """A scorer that knows of each model only its tier, from 0 (the weakest) to 1 (the strongest)."""
        size = 1 << BITS
        middle = sum(tiers.values()) / len(tiers)
        heads = {name: Head(1.5 * (tier - 0.5), (1.0, tier - middle)) for name, tier in tiers.items()}
        return cls(heads, [[0.0] * size, [0.0] * size], [0.0] * size, [[0.0] * (len(SHAPES) * STEPS) for _ in range(2)], {})

    @property
    def models(self) -> tuple[str, ...]:
        """Every model it has a head for."""
        return tuple(self._heads)

    def reads(self, embeddings: str) -> bool:
        """Whether embeddings of that model tell it something; one that was not trained learns them."""
        return not self.version or (self._meaning is not None and self._meaning.tag == tag_of(embeddings))

    def reference(self, meant: bool) -> Mapping[str, Sequence[float]]:
        """By model the logits of some prompts that training had not seen, with their embeddings or without."""
        facts = self.facts.get("meaning", self.facts) if meant else self.facts
        found: Mapping[str, Sequence[float]] = facts.get("reference", {})
        return found

    def add(self, model: str, like: Sequence[str] = ()) -> None:
        """Make a head for a model without data: the mean of the heads of ``like`` (its tier), else of all. One that is there stays."""
        if model not in self._heads:
            known = [self._heads[name] for name in like if name in self._heads] or list(self._heads.values())
            mix = tuple(sum(column) / len(known) for column in zip(*(head.mix for head in known), strict=True))
            self._heads[model] = Head(sum(head.bias for head in known) / len(known), mix)

    def predict(self, features: Features, models: Sequence[str]) -> Prediction:
        """What to expect of each model.

        Raises:
            KeyError: A model has no head; `add` makes one.
        """
        place = self._place(features.words, features.shape, features.meaning)
        heads = [self._heads[model] for model in models]
        return Prediction(tuple([_probability(head, place[0]) for head in heads]), *self._trust(heads, place[1], place[2]))

    def update(self, features: Features, model: str, score: float) -> None:
        """Learn from one judged answer; what changes is bounded, and the same answers in the same order give the same scorer.

        Args:
            features: Of the prompt.
            model: Who answered.
            score: How good it was, 0 to 1.

        Raises:
            KeyError: The model has no head.
        """
        head = self._heads[model]
        words = sorted(features.words)  # sums of floats depend on their order
        self._meet(words)
        meaning = self._meant(features.meaning)
        place, _, _ = self._place(words, features.shape, features.meaning)
        error = min(1.0, max(0.0, score)) - _probability(head, place)
        head.labels += 1
        self.labels += 1
        head.bias = min(5.0, max(-5.0, head.bias + error * max(0.02, 6.0 / (head.labels + 8.0))))
        rate = max(_SLOWEST, _RATE / (1.0 + (self.labels + self._prompts / 4.0) / _CALM))
        total = sum([weight * weight for weight in head.mix]) or 1.0
        if meaning is not None:
            meaning.learn(features.meaning, [rate * error * weight / total for weight in head.mix])
        norms = self._norms
        length = sqrt(sum([norms[word] for word in words])) or 1.0
        for column, shape, weight in zip(self._columns, self._shapes, head.mix, strict=True):
            step = rate * error * weight / total
            for word in words:
                column[word] = min(_HEAVIEST, max(-_HEAVIEST, column[word] + step * norms[word] / length))
            for position in features.shape:
                shape[position] += 0.1 * step / len(SHAPES)
        self._touched.update(words)

    def explain(self, features: Features, better: str, worse: str, text: str = "", most: int = 8) -> list[tuple[str, float]]:
        """What speaks for one model over another in a prompt, heaviest first.

        Args:
            features: Of the prompt.
            better: A model.
            worse: Another.
            text: The prompt, to name every word; without it those are named whose weight is heavy, others by their number.
            most: How many at most.

        Returns:
            Names of words, pairs and shapes, each with its part of the difference between the two logits; `usual` is the
            part that holds for every prompt, `meaning` that of the embedding.
        """
        first, second = self._heads[better], self._heads[worse]
        mix = [one - other for one, other in zip(first.mix, second.mix, strict=True)]
        names = {**{int(number): name for number, name in self._names.items()}, **(named(text) if text else {})}
        length = sqrt(sum([self._norms[word] for word in features.words])) or 1.0
        parts = [("usual", first.bias - second.bias)]
        added = self._meaning.place(features.meaning) if self._meaning is not None else None
        if added is not None and self._meaning is not None:
            parts.append(("meaning", sum(map(mul, mix, added))))
            mix = [self._meaning.share * one for one in mix]
        for word in features.words:
            share = sum(weight * column[word] for weight, column in zip(mix, self._columns, strict=True)) / length
            parts.append((names.get(word, f"#{word}"), share))
        for position in features.shape:
            share = sum(weight * shape[position] for weight, shape in zip(mix, self._shapes, strict=True))
            parts.append((shape_name(position), share))
        return sorted([part for part in parts if part[1]], key=lambda part: (-abs(part[1]), part[0]))[:most]

    def state(self) -> bytes:
        """What was learned since it was loaded; with the same artifact `restore` goes on from there exactly."""
        words = sorted(self._touched)
        heads = {name: (head.bias, head.mix, head.labels) for name, head in self._heads.items()}
        counts = [self._counts.get(word, 0) for word in words]
        head = {"version": self.version, "labels": self.labels, "heads": heads, "words": words, "counts": counts, "shapes": self._shapes}
        values = array("d", [column[word] for column in (*self._columns, self._norms) for word in words])
        if self._meaning is not None:
            head["meaning"], numbers = self._meaning.state()
            values.extend(numbers)
        return zlib.compress(json.dumps(head).encode() + b"\n" + values.tobytes(), 1)

    def restore(self, state: bytes) -> None:
        """Go on from what `state` returned.

        Raises:
            ValueError: It belongs to another artifact or is damaged.
        """
        try:
            line, _, rest = zlib.decompress(state).partition(b"\n")
            head = json.loads(line)
            values = array("d", rest)
            words: list[int] = head["words"]
            if head["version"] != self.version:
                raise ValueError(
                    f"it was learned on top of artifact {head['version'][:12] or 'none'}, this is {self.version[:12] or 'none'}"
                )
            heads = {name: Head(bias, tuple(mix), labels) for name, (bias, mix, labels) in head["heads"].items()}
            shapes, labels = head["shapes"], head["labels"]
            counts = {word: count for word, count in zip(words, head["counts"], strict=True) if count}  # the others training had met
            width = len(self._columns)
            values, numbers = values[: len(words) * (width + 1)], values[len(words) * (width + 1) :]
            meaning = Meaning.restored(head["meaning"], numbers, width) if "meaning" in head else self._meaning
            height = len(values)
            fits = all(0 <= word < 1 << BITS for word in words) and all(len(one.mix) == width for one in heads.values())
            if not fits or height != len(words) * (width + 1) or [len(shape) for shape in shapes] != [len(SHAPES) * STEPS] * width:
                raise ValueError("its parts do not fit together")
        except (zlib.error, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state of the scorer cannot be taken: {error}") from None
        for number, column in enumerate((*self._columns, self._norms)):
            for word, value in zip(words, values[number * len(words) : (number + 1) * len(words)], strict=True):
                column[word] = value
        self._heads, self._shapes, self._counts, self._touched, self.labels = heads, shapes, counts, set(words), labels
        self._meaning = meaning

    def _meant(self, meaning: bytes) -> Meaning | None:
        """What learns from an embedding: what was trained on such, or where nothing was trained what was begun for such."""
        found = self._meaning
        if meaning and not self.version and (found is None or not found.takes(meaning)):
            found = self._meaning = Meaning.empty(meaning, len(self._columns))
        return found if found is not None and found.takes(meaning) else None

    def _place(self, words: Sequence[int], shape: Sequence[int], meaning: bytes) -> tuple[list[float], float, float]:
        """Where a prompt stands in each column; the share of its words that were never seen; how rare its shape is."""
        taken = itemgetter(0, 0, *words)
        norms = taken(self._norms)
        length = sqrt(sum(norms)) or 1.0
        bits = itemgetter(*shape)
        place = [sum(taken(column)) / length + sum(bits(outward)) for column, outward in zip(self._columns, self._shapes, strict=True)]
        if meaning and self._meaning is not None and (added := self._meaning.place(meaning)) is not None:
            share = self._meaning.share
            place = [share * one + more for one, more in zip(place, added, strict=True)]
        return place, (norms.count(0.0) - 2) / (len(words) or 1), sum(bits(self._rarity))

    def _trust(self, heads: Sequence[Head], unknown: float, rarity: float) -> tuple[float, str]:
        """The confidence in a prediction, and why it is low."""
        if any(head.labels < ENOUGH for head in heads):
            return 0.0, f"a model has fewer than {ENOUGH} judged answers"
        if not self._usual:
            return 1.0 - unknown, "most of its words were never seen" if unknown > _UNKNOWN_MOST else ""
        strange, odd = _tail(self._usual["unknown"], unknown), _tail(self._usual["rarity"], rarity)
        if strange <= odd:
            return strange, "more of its words were never seen than is usual" if strange < LOW else ""
        return odd, "its shape is unlike those it was trained on" if odd < LOW else ""

    def _meet(self, words: Sequence[int]) -> None:
        """Count words, and reckon how telling those are that training did not see."""
        counts = self._counts
        for word in words:
            if word and (word in counts or not self._norms[word]):
                counts[word] = counts.get(word, 0) + 1
                self._norms[word] = (log((2.0 + self.labels) / (1.0 + counts[word])) + 1.0) ** 2


def _meaning_of(facts: Mapping[str, Any] | None, columns: int) -> Meaning | None:
    if facts is None:
        return None
    weights: list[list[float]] = [list(column) for column in facts["weights"]]
    if len(weights) != columns or any(len(column) != len(facts["center"]) for column in weights):
        raise ValueError
    return Meaning(tag_of(facts["model"]), list(facts["center"]), weights, facts["share"], facts["seen"])


def _unpacked(column: bytes, scale: float) -> list[float]:
    values = [scale * (number - 128) for number in range(256)]  # equal weights are one object: a column takes 2 MB, not 8
    return list(map(values.__getitem__, column))


def _probability(head: Head, place: Sequence[float]) -> float:
    return probability(head.bias + sum(map(mul, head.mix, place)))


def _tail(usual: Sequence[float], value: float) -> float:
    """Which share of what was usual (in rising order) is at least so large."""
    return 1.0 - bisect_right(usual, value - 1e-9) / len(usual)
