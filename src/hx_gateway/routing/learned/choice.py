"""Which model of a group a prompt goes to: by what each answer is expected to be worth, or in the stated order where that is not known."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from hx_gateway.routing.learned.features import Features
from hx_gateway.routing.learned.model import Prediction, Scorer
from hx_gateway.routing.learned.targets import ShareThreshold, cheapest_good

if TYPE_CHECKING:
    from hx_gateway.config.routing import LearnedSettings

SHARE, QUALITY, TERM, ORDER, EXPLORE = "share", "quality", "term", "order", "explore"
"""What decided: a share of calls for the strong model, the cheapest that is good enough, a term of the policy, the stated order
because of a doubt, or a draw so that every model goes on being judged."""
_ASKED = (
    0.25  # of requests: the challenger's wish is for comparison only, a trial goes by judged answers that the housekeeper has it foretell
)
_KNOWN = 2048  # embeddings of prompts that are kept, in each worker
_SHORT = 12  # digits of a version that are enough to tell artifacts apart


class Choice:
    """What was made of one prompt.

    Args:
        group: The group it was made for.
        models: The group's models, in their stated order.
        order: Models in the order to take them, as far as they can take the request; empty where a term of the policy decides.
        rule: What decided, as above.
        prediction: What the scorer expects of each of ``models``.
        features: Of the prompt.
        version: Of the scorer; empty for one that was not trained.
        seconds: What a surely good answer is worth over a surely bad one.
        shadow: What the challenger would have taken, and its version; both empty where there is none, and where it was not asked.
    """

    __slots__ = ("features", "group", "models", "order", "prediction", "rule", "seconds", "shadow", "version")

    def __init__(
        self, group: str, models: tuple[str, ...], order: tuple[str, ...], rule: str, prediction: Prediction, features: Features,
        version: str, seconds: float, shadow: tuple[str, str],
    ) -> None:  # fmt: skip
        self.group = group
        self.models = models
        self.order = order
        self.rule = rule
        self.prediction = prediction
        self.features = features
        self.version = version
        self.seconds = seconds
        self.shadow = shadow

    def regret_s(self, model: str) -> float:
        """Seconds that an answer of a model costs in quality, for the term ``quality``; 0 where the term does not decide."""
        if self.rule != TERM or model not in self.models:
            return 0.0
        return (1.0 - self.prediction.probabilities[self.models.index(model)]) * self.seconds

    def words(self) -> str:
        """The choice in a few words, for ``x-hx-reason``."""
        if self.rule == EXPLORE:
            return f"learned: {self.order[0]}, explored"
        if self.rule == ORDER:
            return f"learned: stated order, {self.prediction.doubt}"
        expected = ", ".join(f"{model} {value:.2f}" for model, value in zip(self.models, self.prediction.probabilities, strict=True))
        return f"learned: {f'{self.order[0]} by {self.rule}' if self.order else 'by the policy'} of {expected}"

    def record(self) -> tuple[Any, ...]:
        """What the ledger keeps of it: numbers and names, no text; see `unpacked`."""
        prediction, features = self.prediction, self.features
        return (
            self.version[:_SHORT], self.rule, *self.shadow, prediction.confidence, self.models, prediction.probabilities,
            array("H", features.shape).tobytes(), array("I", features.words).tobytes(), features.meaning,
        )  # fmt: skip


def unpacked(record: Sequence[Any]) -> tuple[dict[str, Any], Features]:
    """What `Choice.record` made: the facts of the decision, and the features.

    Raises:
        ValueError, TypeError: It is none.
    """
    version, rule, shadow, shadow_version, confidence, models, expected, shape, words, *meaning = record
    detail = {
        "version": version,
        "rule": rule,
        "shadow": shadow,
        "shadow_version": shadow_version,
        "confidence": round(confidence, 4),
        "expected": {model: round(value, 4) for model, value in zip(models, expected, strict=True)},
    }
    return detail, Features(tuple(array("I", words)), tuple(array("H", shape)), *meaning)


class Learned:
    """Chooses a model of one group for each prompt.

    The scorers come from elsewhere (`take`): the champion decides, the challenger is asked in some requests what it would have done.

    Args:
        group: The group's name.
        models: Its models: the weakest and cheapest first, the strongest last.
        settings: Of the group.
        chance: Random numbers from 0 to 1.
    """

    def __init__(self, group: str, models: Sequence[str], settings: LearnedSettings, chance: Callable[[], float] = random.random) -> None:
        self.group = group
        self.models = tuple(models)
        self.settings = settings
        self.champion = untrained(self.models)
        self.challenger: Scorer | None = None
        self.counts: dict[tuple[str, str], int] = {}  # decisions by model and rule; a term's model is not known here
        self.embedding = settings.embedding  # the model whose embeddings the scorers read; None where they read none
        self.embedded: dict[str, int] = {}  # prompts by what became of their embedding
        self._meanings: dict[bytes, bytes] = {}
        self._chance = chance
        self._share = ShareThreshold(settings.strong_share or 0.0)
        self._shadow_share = ShareThreshold(settings.strong_share or 0.0)

    def take(self, champion: Scorer, challenger: Scorer | None) -> None:
        """Decide by other scorers from here on; where only what they learned is newer, shares go on as they were."""
        scorers = [scorer for scorer in (champion, challenger) if scorer is not None]
        wanted = self.settings.embedding
        self.embedding = wanted if wanted is not None and any(scorer.reads(wanted) for scorer in scorers) else None
        for scorer in scorers:
            ready(scorer, self.models)
        if champion.version != self.champion.version:
            self._share = self._shares(champion)
        if challenger is not None and (self.challenger is None or challenger.version != self.challenger.version):
            self._shadow_share = self._shares(challenger)
        self.champion, self.challenger = champion, challenger

    def _shares(self, scorer: Scorer) -> ShareThreshold:
        return ShareThreshold.of(scorer, self.models[0], self.models[-1], self.settings.strong_share or 0.0, self.embedding is not None)

    def meaning(self, text: str) -> bytes | None:
        """The embedding of a prompt, empty where its model cannot make one; None where it is not known, or nothing reads it."""
        return self._meanings.get(_digest(text)) if self.embedding is not None else None

    def mean(self, text: str, meaning: bytes) -> None:
        """Keep the embedding of a prompt, and forget the oldest."""
        while len(self._meanings) >= _KNOWN:
            del self._meanings[next(iter(self._meanings))]
        self._meanings[_digest(text)] = meaning

    def choose(self, features: Features, costs: Sequence[float], lasting: bool = True) -> Choice:
        """The choice for one prompt.

        Args:
            features: Of it.
            costs: What each model's answer would cost, in money; equal ones are taken in the stated order.
            lasting: Whether it is carried out; else it leaves no trace and is never a draw.
        """
        models, settings = self.models, self.settings
        rule, order, prediction = _judged(self.champion, features, models, settings, costs, self._share, lasting)
        challenger = self.challenger
        shadow = ("", "")
        if challenger is not None and (not lasting or self._chance() < _ASKED):
            _, wanted, other = _judged(challenger, features, models, settings, costs, self._shadow_share, lasting)
            first = wanted[0] if wanted else models[max(range(len(models)), key=other.probabilities.__getitem__)]
            shadow = (first, challenger.version[:_SHORT])
        if lasting:
            if settings.explore and self._chance() < settings.explore:
                drawn = models[int(self._chance() * len(models))]
                rule, order = EXPLORE, (drawn, *(model for model in models if model != drawn))
            key = (order[0] if order else "", rule)
            self.counts[key] = self.counts.get(key, 0) + 1
        return Choice(self.group, models, order, rule, prediction, features, self.champion.version, settings.seconds_per_quality, shadow)


def _judged(
    scorer: Scorer, features: Features, models: tuple[str, ...], settings: LearnedSettings, costs: Sequence[float], share: ShareThreshold,
    lasting: bool,
) -> tuple[str, tuple[str, ...], Prediction]:  # fmt: skip
    """What decides, in which order models are taken, and what the scorer expects."""
    try:
        prediction = scorer.predict(features, models)
    except KeyError:  # the moment between what was learned elsewhere and its models here
        prediction = Prediction((0.5,) * len(models), 0.0, "a model is not known yet")
    if prediction.doubt:
        return ORDER, models, prediction
    expected = prediction.probabilities
    if settings.strong_share is not None:
        gain = expected[-1] - expected[0]
        strong = share.takes(gain) if lasting else gain > share.limit
        return SHARE, models[::-1] if strong else models, prediction
    if settings.quality is not None:
        first = models[cheapest_good(expected, costs, settings.quality)]
        return QUALITY, (first, *(model for model in models if model != first)), prediction
    return TERM, (), prediction


def _digest(text: str) -> bytes:
    return blake2b(text.encode(errors="replace"), digest_size=16).digest()


def untrained(models: Sequence[str]) -> Scorer:
    """A scorer that knows of each model only its place in the stated order."""
    last = max(1, len(models) - 1)
    return Scorer.untrained({model: place / last for place, model in enumerate(models)})


def ready(scorer: Scorer, models: Sequence[str]) -> Scorer:
    """The scorer, with a head for every model; one it was not trained on starts from its neighbours in the stated order."""
    for place, model in enumerate(models):
        scorer.add(model, models[max(0, place - 1) : place + 2])
    return scorer
