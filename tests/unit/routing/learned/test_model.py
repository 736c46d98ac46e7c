"""The scorer without training: learning from judged answers, its state, its doubts."""

from __future__ import annotations

import zlib
from statistics import fmean

import pytest
from tests.unit.routing.learned.planted import planted

from hx_gateway.routing.learned.evaluate import apgr
from hx_gateway.routing.learned.features import Features, extract
from hx_gateway.routing.learned.model import ENOUGH, LEAST, MOST, Scorer
from hx_gateway.routing.learned.targets import ShareThreshold, cheapest_good

PAIR = ("weak", "strong")


def untrained() -> Scorer:
    return Scorer.untrained({"weak": 0.0, "strong": 1.0})


def taught(labels: int) -> Scorer:
    scorer = untrained()
    for number, example in enumerate(planted(labels, seed=1)):
        model = PAIR[number % 2]
        scorer.update(example.features, model, example.scores[model])
    return scorer


def judged(scorer: Scorer) -> float:
    rest = planted(600, seed=2)
    gaps = [strong - weak for weak, strong in (scorer.predict(one.features, PAIR).probabilities for one in rest)]
    return apgr(gaps, [one.scores["weak"] for one in rest], [one.scores["strong"] for one in rest])


def test_before_any_answer_the_tier_is_all_there_is_and_it_says_so() -> None:
    weak, strong = untrained().predict(extract("hello there"), PAIR).probabilities
    assert weak < strong
    assert "fewer than" in untrained().predict(extract("hello there"), PAIR).doubt


def test_it_learns_what_sets_the_models_apart_from_answers_of_one_model_each() -> None:
    assert judged(untrained()) < 0.55
    assert judged(taught(400)) > 0.65


def test_a_model_that_is_bad_is_found_whatever_its_tier() -> None:
    scorer = untrained()
    for number, example in enumerate(planted(200)):
        scorer.update(example.features, PAIR[number % 2], float(number % 2 == 0))
    weak, strong = (
        fmean(column) for column in zip(*(scorer.predict(one.features, PAIR).probabilities for one in planted(50, 5)), strict=True)
    )
    assert strong < 0.3 and weak > 0.7


def test_the_same_answers_in_the_same_order_give_the_same_scorer() -> None:
    first, second = taught(60), untrained()
    for number, example in enumerate(planted(60, seed=1)):  # as a log has them
        second.update(Features.unpack(example.features.pack()), PAIR[number % 2], example.scores[PAIR[number % 2]])
    assert first.state() == second.state()


def test_a_restored_scorer_goes_on_as_if_nothing_had_been() -> None:
    first, second = taught(60), untrained()
    second.restore(first.state())
    for one in (first, second):
        for example in planted(20, seed=3):
            one.update(example.features, "strong", example.scores["strong"])
    assert first.state() == second.state()
    assert second.labels == 80


@pytest.mark.parametrize(
    "damage",
    [lambda state: b"", lambda state: state[:-9], lambda state: b"x" + state, lambda _: zlib.compress(b'{"version": "", "words": []}\n')],
)
def test_a_damaged_state_is_refused_and_nothing_of_it_is_taken(damage: object) -> None:
    scorer = untrained()
    with pytest.raises(ValueError, match="cannot be taken"):
        scorer.restore(damage(taught(10).state()))  # type: ignore[operator]
    assert scorer.state() == untrained().state()


def test_what_one_prompt_can_move_is_bounded() -> None:
    scorer = untrained()
    features = extract("again and again the same")
    for _ in range(3000):
        scorer.update(features, "weak", 1e9)  # scores are taken between 0 and 1
    assert LEAST <= scorer.predict(features, ["weak"]).probabilities[0] <= MOST
    for _ in range(600):
        scorer.update(features, "weak", 0.0)
    assert scorer.predict(features, ["weak"]).probabilities[0] < 0.3


def test_a_model_without_data_starts_where_its_tier_stands() -> None:
    scorer = taught(400)
    scorer.add("new", like=["strong"])
    features = planted(1, seed=9)[0].features
    expected = scorer.predict(features, ("strong", "new"))
    assert expected.probabilities[0] == expected.probabilities[1]
    assert expected.doubt and not scorer.predict(features, PAIR).doubt
    for example in planted(ENOUGH, seed=4):
        scorer.update(example.features, "new", 0.0)
    expected = scorer.predict(features, ("strong", "new"))
    assert expected.probabilities[1] < expected.probabilities[0] and not expected.doubt
    scorer.add("new", like=["weak"])
    assert scorer.predict(features, ("strong", "new")) == expected
    with pytest.raises(KeyError):
        scorer.predict(features, ["nobody"])


def test_words_that_were_never_seen_are_doubted() -> None:
    assert "never seen" in taught(400).predict(extract("zweiundvierzig unbekannte wörter stehen hier"), PAIR).doubt


@pytest.mark.parametrize("text", ["", " ", "a", "?", "\ud800", "\0"])
def test_hardly_any_text_is_no_failure(text: str) -> None:
    scorer = taught(50)
    scorer.update(extract(text), "weak", 1.0)
    assert len(scorer.predict(extract(text), PAIR).probabilities) == 2
    assert scorer.explain(extract(text), "strong", "weak", text)


def test_reasons_are_words_of_the_prompt() -> None:
    text = "plaintiff court statute tort"
    reasons = dict(taught(400).explain(extract(text), "strong", "weak", text, most=40))
    assert reasons["court"] > 0.0 and {"usual", "plaintiff", "court statute"} <= set(reasons)
    assert all(name.startswith(("#", "usual")) or " step " in name for name, _ in taught(100).explain(extract(text), "strong", "weak"))


def test_the_cheapest_model_that_is_good_enough() -> None:
    assert cheapest_good([0.5, 0.9, 0.88], [1.0, 9.0, 3.0], 0.95) == 2
    assert cheapest_good([0.5, 0.9, 0.88], [1.0, 9.0, 3.0], 1.0) == 1
    assert cheapest_good([0.5, 0.9, 0.88], [1.0, 1.0, 1.0], 0.1) == 1
    assert cheapest_good([0.5, 0.9, 0.88], [1.0, 9.0, 3.0], 0.0) == 0


def test_a_share_holds_for_prompts_that_nobody_foresaw() -> None:
    threshold = ShareThreshold.of(untrained(), "weak", "strong", 0.3)
    gains = [0.001 * (number * 37 % 1000) - 0.4 for number in range(6_000)]
    taken = [threshold.takes(gain) for gain in gains][3_000:]
    assert sum(taken) / len(taken) == pytest.approx(0.3, abs=0.03)
    assert not any(ShareThreshold(0.0, 1.0).takes(gain) for gain in [0.9] * 100)
