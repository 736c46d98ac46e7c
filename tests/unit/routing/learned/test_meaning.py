"""Embeddings of prompts: how they are kept, what a scorer learns from them, and what it makes of others or of none."""

from __future__ import annotations

import random
from math import sqrt
from pathlib import Path

import pytest

from hx_gateway.routing.learned.artifact import ArtifactError
from hx_gateway.routing.learned.evaluate import apgr
from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import Features, extract
from hx_gateway.routing.learned.meaning import bounded, packed, unpacked
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.targets import ShareThreshold

PAIR = ("weak", "strong")
WORDS = "the a of which is what when how many that and with for please tell me".split()
SIZE = 16


def planted(count: int, seed: int, model: str = "minilm") -> list[Example]:
    """Prompts whose words say nothing; by the embedding they are of two kinds, and the strong model is better at one of them."""
    chance, found = random.Random(seed), []
    for _ in range(count):
        hard = chance.random() < 0.5
        vector = [3.0 + (1.0 if hard else -1.0) * (place < 4) + chance.gauss(0.0, 0.7) for place in range(SIZE)]
        text = " ".join(chance.choice(WORDS) for _ in range(12))
        scores = {"weak": float(chance.random() < (0.2 if hard else 0.8)), "strong": float(chance.random() < 0.8)}
        found.append(Example(extract(text, meaning=packed(model, vector)), scores, text))
    return found


def told(scorer: Scorer, rows: list[Example]) -> float:
    gaps = [strong - weak for weak, strong in (scorer.predict(one.features, PAIR).probabilities for one in rows)]
    return apgr(gaps, [one.scores["weak"] for one in rows], [one.scores["strong"] for one in rows])


def without(rows: list[Example]) -> list[Example]:
    return [Example(Features(one.features.words, one.features.shape), one.scores, one.text) for one in rows]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scipy", reason="training needs the extra learn")
    from hx_gateway.routing.learned.training import save

    path = tmp_path_factory.mktemp("router") / "router.hx"
    save(path, planted(600, 1), embeddings="minilm")
    return path


def test_an_embedding_keeps_its_direction_in_a_byte_a_dimension() -> None:
    chance = random.Random(1)
    vector = [chance.gauss(0.0, 5.0) for _ in range(384)]
    meaning = packed("minilm", vector)
    assert len(meaning) == 8 + 384
    found, length = unpacked(meaning)[1], sqrt(sum(value * value for value in vector))
    assert sum(one * other / length for one, other in zip(found, vector, strict=True)) == pytest.approx(1.0, abs=0.001)
    for bad in ([0.0, 0.0], [float("nan"), 1.0], [float("inf")], []):
        with pytest.raises(ValueError, match="no direction"):
            packed("minilm", bad)


def test_what_is_embedded_fits_into_small_models() -> None:
    assert bounded("short enough") == "short enough" and bounded("") == ""
    assert bounded("字" * 3000) == "字" * 400
    assert len(bounded("word " * 3000)) == 2000 and len(bounded("1" * 3000)) == 400


def test_features_with_an_embedding_are_logged_and_read_again_and_old_ones_still_are() -> None:
    features = extract("What is a tort?", meaning=packed("minilm", [0.1, -0.2, 0.3]))
    found = Features.unpack(features.pack())
    assert (found.meaning, found.shape, set(found.words)) == (features.meaning, features.shape, set(features.words))
    assert Features.unpack(extract("What is a tort?").pack()).meaning == b""
    with pytest.raises(ValueError, match="no packed features"):
        Features.unpack(b"\xff\xff\xff" + features.pack()[3:])


def test_what_only_the_embedding_tells_is_found(file: Path) -> None:
    scorer, rest = Scorer.load(file), planted(600, 2)
    assert told(scorer, rest) > 0.7
    assert abs(told(scorer, without(rest)) - 0.5) < 0.06, "the words say nothing"
    assert told(scorer, planted(600, 2, "another model")) == told(scorer, without(rest)), "embeddings of another model are not read"
    assert scorer.reads("minilm") and not scorer.reads("another model")
    parts = dict(scorer.explain(rest[0].features, "strong", "weak", most=99))
    assert abs(parts["meaning"]) > 0.2 and "meaning" not in dict(scorer.explain(without(rest)[0].features, "strong", "weak", most=99))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_a_share_holds_for_prompts_with_embeddings(file: Path, share: float) -> None:
    scorer, threshold = Scorer.load(file), ShareThreshold.of(Scorer.load(file), *PAIR, share, meant=True)
    found = [scorer.predict(one.features, PAIR).probabilities for one in planted(1500, 3)]
    assert sum(strong - weak > threshold.limit for weak, strong in found) / len(found) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("trained", [True, False])
def test_judged_answers_teach_it_and_its_state_is_taken_up_again(file: Path, trained: bool) -> None:
    def fresh() -> Scorer:
        return Scorer.load(file) if trained else Scorer.untrained({"weak": 0.0, "strong": 1.0})

    scorer, rest = fresh(), planted(600, 4)
    for number, one in enumerate(planted(500, 5)):
        scorer.update(one.features, PAIR[number % 2], one.scores[PAIR[number % 2]])
    assert told(scorer, rest) > 0.7
    other = fresh()
    other.restore(scorer.state())
    assert [other.predict(one.features, PAIR) for one in rest] == [scorer.predict(one.features, PAIR) for one in rest]
    one = rest[0]
    scorer.update(one.features, "weak", 1.0)
    other.update(one.features, "weak", 1.0)
    assert other.state() == scorer.state()


def test_a_group_that_changes_its_embedding_model_begins_anew_with_the_new_one() -> None:
    scorer = Scorer.untrained({"weak": 0.0, "strong": 1.0})
    for model, seed in (("minilm", 6), ("another model", 7)):
        for number, one in enumerate(planted(500, seed, model)):
            scorer.update(one.features, PAIR[number % 2], one.scores[PAIR[number % 2]])
        assert told(scorer, planted(600, 8, model)) > 0.65 and scorer.reads("minilm") and scorer.reads("another model")
    assert told(scorer, planted(600, 8, "minilm")) < 0.6


def test_training_wants_one_embedding_for_each_prompt(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="training needs the extra learn")
    from hx_gateway.routing.learned.training import TrainingError, save

    with pytest.raises(TrainingError, match="embed all of them"):
        save(tmp_path / "a", [*planted(60, 1), *without(planted(1, 2))], embeddings="minilm")
    with pytest.raises(TrainingError, match="of several models"):
        save(tmp_path / "a", [*planted(60, 1), *planted(1, 2, "another model")], embeddings="minilm")


def test_an_artifact_whose_embeddings_do_not_fit_is_refused(file: Path, tmp_path: Path) -> None:
    from hx_gateway.routing.learned import artifact

    facts, columns, _ = artifact.read(file)
    facts["meaning"]["center"] = facts["meaning"]["center"][:-1]
    artifact.write(tmp_path / "bad", facts, columns)
    with pytest.raises(ArtifactError, match="do not fit together"):
        Scorer.load(tmp_path / "bad")
