"""Groups that learn: which model comes first, what falls back to the stated order, and when a challenger takes over."""

from __future__ import annotations

import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hx_gateway.config.routing import LearnedSettings
from hx_gateway.core.context import CHAT, COMPLETIONS, NOBODY, Exchange, Route
from hx_gateway.dataplane.learned import features_of, learning_ask, question_of, told
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint, Prices
from hx_gateway.fleet.registry import Target
from hx_gateway.ledger.feedback import Feedback, Full, note, waiting
from hx_gateway.openai.requests import look
from hx_gateway.routing.learned import replaying
from hx_gateway.routing.learned.choice import EXPLORE, ORDER, QUALITY, SHARE, TERM, Learned, unpacked
from hx_gateway.routing.learned.features import extract
from hx_gateway.routing.learned.meaning import packed
from hx_gateway.routing.learned.trial import verdict
from hx_gateway.routing.policies import policy
from hx_gateway.routing.router import Decision, Router

MODELS = ("weak", "strong")
CHOICES = 1_000_000 if os.environ.get("HX_LONG") else 3000


def taught(settings: LearnedSettings, chance: float = 1.0) -> Learned:
    """A group whose weak model fails at theorems."""
    learned = Learned("g", MODELS, settings, lambda: chance)
    dice = random.Random(1)
    for number in range(400):
        hard = number % 2 == 1
        words = ("theorem", "lemma", "proof", "integral") if hard else ("city", "flag", "river", "colour")
        text = " ".join(dice.choice(words) for _ in range(6))
        model = MODELS[number // 2 % 2]
        learned.champion.update(extract(text), model, 0.0 if hard and model == "weak" else 1.0)
    return learned


HARD, EASY = extract("theorem proof lemma integral"), extract("city river flag colour")


def exchange(body: dict[str, Any], route: Route = CHAT) -> Exchange:
    """A request."""
    data = json.dumps(body).encode()
    made = Exchange("0" * 26, route, b"POST", b"/", {}, [], data, NOBODY, 0.0)
    made.facts = look(route, data)
    made.candidates = group()
    return made


def group(name: str = "round_robin") -> Target:
    """Each model on two servers; the strong one has a price."""
    places = [
        Deployment(model, model, Endpoint(f"{model}{n}", Address("http", "h", n)), prices=Prices(0.1 if model == "strong" else 0.0))
        for model in MODELS
        for n in (1, 2)
    ]
    return Target("g", "group", tuple(places), policy=name, group="g")


def test_a_group_without_judged_answers_goes_in_its_stated_order_and_says_so() -> None:
    choice = Learned("g", MODELS, LearnedSettings(strong_share=0.5, explore=0.0)).choose(HARD, (0.0, 1.0))
    assert (choice.rule, choice.order) == (ORDER, MODELS)
    assert "fewer than 20 judged answers" in choice.words()


def test_a_prompt_unlike_all_others_falls_back() -> None:
    learned = taught(LearnedSettings(quality=0.8, explore=0.0))
    assert learned.choose(extract("zyx wvu tsr qpo nml"), (0.0, 1.0)).rule == ORDER


def test_the_cheapest_that_is_good_enough_comes_first() -> None:
    learned = taught(LearnedSettings(quality=0.8, explore=0.0))
    hard, easy = learned.choose(HARD, (0.0, 1.0)), learned.choose(EASY, (0.0, 1.0))
    assert (hard.rule, hard.order) == (QUALITY, ("strong", "weak"))
    assert easy.order == ("weak", "strong")
    assert "strong by quality of weak" in hard.words()


def test_a_share_holds_and_an_explanation_does_not_move_it() -> None:
    learned = taught(LearnedSettings(strong_share=0.3, explore=0.0))
    dice = random.Random(2)
    prompts = [extract(" ".join(dice.choice(("theorem", "city", "lemma", "flag", "river")) for _ in range(6))) for _ in range(300)]
    before = [learned.choose(one, (0.0, 0.0), lasting=False).order[0] for one in prompts]
    assert before == [learned.choose(one, (0.0, 0.0), lasting=False).order[0] for one in prompts]
    assert not learned.counts
    for _ in range(20):
        for one in prompts:
            learned.choose(one, (0.0, 0.0))
    given = [learned.choose(one, (0.0, 0.0)).order[0] for one in prompts].count("strong") / len(prompts)
    assert given == pytest.approx(0.3, abs=0.06)
    assert {rule for _, rule in learned.counts} == {SHARE}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.7])
def test_workers_that_each_keep_their_share_keep_it_together_from_the_start(share: float) -> None:
    settings, dice = LearnedSettings(strong_share=share, explore=0.0), random.Random(2)
    workers = [Learned("g", MODELS, settings) for _ in range(4)]
    scorer = taught(settings).champion
    for worker in workers:
        worker.take(scorer, None)  # nothing tells them where the limit lies
    words = ("theorem", "city", "lemma", "flag", "river")
    first = [dice.choice(workers).choose(extract(" ".join(dice.choice(words) for _ in range(6))), (0.0, 0.0)).order[0] for _ in range(2000)]
    assert first.count("strong") / len(first) == pytest.approx(share, abs=0.05)
    assert first[400:].count("strong") / 1600 == pytest.approx(share, abs=0.03)


def test_a_draw_is_marked_and_never_made_for_an_explanation() -> None:
    learned = taught(LearnedSettings(quality=0.8, explore=0.2), chance=0.1)
    assert learned.choose(HARD, (0.0, 0.0)).rule == EXPLORE
    assert learned.choose(HARD, (0.0, 0.0)).words() == "learned: weak, explored"
    assert learned.choose(HARD, (0.0, 0.0), lasting=False).rule == QUALITY


def test_the_term_counts_what_a_bad_answer_is_worth() -> None:
    learned = taught(LearnedSettings(seconds_per_quality=60.0, explore=0.0))
    choice = learned.choose(HARD, (0.0, 0.0))
    assert (choice.rule, choice.order) == (TERM, ())
    assert choice.regret_s("weak") > choice.regret_s("strong") + 15.0
    assert choice.regret_s("another") == 0.0
    target = group("worth")
    worth = policy("worth", {"worth": type("Own", (), {"terms": {"quality": 1.0}, "picker": None})()})
    for features, model in ((HARD, "strong"), (EASY, None)):
        asked = exchange({"model": "g", "messages": [{"role": "user", "content": "x"}]})
        asked.choice = learned.choose(features, (0.0, 0.0))
        ask = learning_ask(learned, asked, False, target=target)
        chosen = Router(lambda _: worth).choose(ask, 0.0)
        assert chosen is not None and model in (None, chosen.model)


def test_the_first_model_that_can_is_taken_and_attempts_keep_the_choice() -> None:
    learned, router = taught(LearnedSettings(quality=0.8, explore=0.0)), Router(policy)
    asked = exchange({"model": "g", "messages": [{"role": "user", "content": "theorem proof lemma integral"}]})
    ask = learning_ask(learned, asked, False)
    decision = router.explain(ask, 0.0)
    assert decision.chosen is not None and decision.chosen.model == "strong"
    assert sum(one.removed == "for this prompt strong comes first" for one in decision.candidates) == 2
    for deployment in asked.candidates.deployments[2:]:
        deployment.cool_until_s = 10.0
    instead = router.choose(ask, 0.0, Decision("x"))
    assert instead is not None and instead.model == "weak"
    count = sum(learned.counts.values())
    assert learning_ask(learned, asked, False, (instead,)).choice is ask.choice
    assert sum(learned.counts.values()) == count
    shown = told(learned, asked, ask)
    assert shown is not None and shown["expected"]["weak"]["cost_more"] == pytest.approx(-0.1)
    assert shown["features"]["better"] == "strong" and shown["features"]["parts"]


def test_the_last_question_is_read_however_it_is_written() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": "old"}, {"role": "user", "content": parts}, {"role": "assistant", "content": None}]
    assert question_of(exchange({"messages": messages})) == "a\nb"
    assert question_of(exchange({"messages": [{"role": "system", "content": "x"}]})) == ""
    assert question_of(exchange({"messages": [{"role": "user", "content": 7}]})) == ""
    assert question_of(exchange({"prompt": "go on"}, COMPLETIONS)) == "go on"
    assert question_of(exchange({"prompt": ["one", "two"]}, COMPLETIONS)) == "one\ntwo"
    learned = Learned("g", MODELS, LearnedSettings())
    assert features_of(learned, exchange({"messages": messages})).shape != features_of(learned, exchange({"messages": messages[1:2]})).shape


def test_the_embedding_of_the_last_question_is_taken_where_the_group_knows_it() -> None:
    asked = exchange({"messages": [{"role": "user", "content": "what is it?"}]})
    learned = Learned("g", MODELS, LearnedSettings(embedding="minilm"))
    assert learned.meaning("what is it?") is None and features_of(learned, asked).meaning == b""
    learned.mean("what is it?", packed("minilm", [1.0, 0.5]))
    assert features_of(learned, asked).meaning == packed("minilm", [1.0, 0.5])
    for number in range(3000):
        learned.mean(f"question {number}", b"")
    assert learned.meaning("what is it?") is None and learned.meaning("question 2999") == b"", "only the latest are kept"
    nobody_reads = Learned("g", MODELS, LearnedSettings())
    nobody_reads.mean("what is it?", packed("minilm", [1.0, 0.5]))
    assert features_of(nobody_reads, asked).meaning == b""


def test_a_record_tells_what_was_decided_and_no_text() -> None:
    learned = taught(LearnedSettings(quality=0.8, explore=0.0), chance=0.1)
    learned.take(learned.champion, taught(LearnedSettings(quality=0.8)).champion)
    choice = learned.choose(HARD, (0.0, 1.0))
    detail, features = unpacked(msgspec.msgpack.decode(msgspec.msgpack.encode(choice.record())))
    assert (set(features.words), features.shape) == (set(HARD.words), HARD.shape)
    assert detail["rule"] == QUALITY and detail["shadow"] == "strong" and detail["expected"].keys() == set(MODELS)
    assert b"theorem" not in msgspec.msgpack.encode(choice.record())
    embedded = learned.choose(extract("theorem", meaning=packed("minilm", [1.0, 0.5])), (0.0, 1.0)).record()
    assert unpacked(embedded)[1].meaning == packed("minilm", [1.0, 0.5])
    assert unpacked(embedded[:-1])[1].meaning == b"", "what an older gateway wrote has none"


def test_a_challenger_is_asked_in_a_quarter_of_the_requests_and_for_every_explanation() -> None:
    settings = LearnedSettings(quality=0.8, explore=0.0)
    learned = Learned("g", MODELS, settings, random.Random(1).random)
    learned.take(taught(settings).champion, taught(settings).champion)
    asked = [bool(learned.choose(HARD, (0.0, 1.0)).shadow[0]) for _ in range(1000)]
    assert sum(asked) / len(asked) == pytest.approx(0.25, abs=0.05)
    assert all(learned.choose(HARD, (0.0, 1.0), lasting=False).shadow[0] == "strong" for _ in range(20))


@pytest.mark.parametrize(
    ("worse", "became"),
    [([0.1] * 19, 0), ([0.1] * 20, -1), ([-0.1] * 20, 1), ([0.1, -0.1] * 10, 0), ([0.0] * 40, 0), ([0.5, -0.4] * 20, 0)],
)
def test_only_a_clear_lead_decides(worse: list[float], became: int) -> None:
    assert verdict(worse, 20, 2.5) == became


def test_a_replay_tells_both_sides() -> None:
    scorer = taught(LearnedSettings()).champion
    rows = [
        {"features": one.pack(), "model": "strong", "duration_ms": 100.0, "cost": 1.0, "prompt_tokens": 5, "completion_tokens": None}
        for one in (HARD, EASY)
    ]
    found = replaying.replayed(rows, "quality=0.8", MODELS, scorer, {"strong": (1.0, 0.0, 0.0)})
    assert found["moved"] == 1 and found["was"]["cost"] == 2.0 and found["would"]["cost"] == 1.0
    assert found["would"]["share"] == {"weak": 0.5, "strong": 0.5}
    assert "1 would go elsewhere" in replaying.shown(found)
    for wrong in ("quality=2", "always=other", "strong_share=x", ""):
        with pytest.raises(replaying.PolicyError, match="strong_share=0.3, quality=0.95, order, or always= with one of weak, strong"):
            replaying.replayed(rows, wrong, MODELS, scorer, {})


def test_feedback_is_written_once_a_key_and_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Feedback("A" * 26, 1, 0.5, "alice", False)
    assert note(tmp_path, first) == first
    assert note(tmp_path, Feedback("A" * 26, 2, 0.9, "alice", False)) == first
    assert note(tmp_path, Feedback("A" * 26, 2, 0.9, "bob", False)).key_name == "bob"
    assert len(waiting(tmp_path)) == 2 and len(list((tmp_path / "feedback").iterdir())) == 2
    monkeypatch.setattr("hx_gateway.ledger.feedback.MOST", 2)
    assert note(tmp_path, first) == first
    with pytest.raises(Full):
        note(tmp_path, Feedback("B" * 26, 1, 0.5, "alice", False))


@pytest.mark.timeout(900)
def test_choices_take_no_more_memory_the_more_there_are() -> None:
    learned = taught(LearnedSettings(strong_share=0.3, explore=0.1), chance=0.2)
    learned.take(learned.champion, taught(LearnedSettings()).champion)
    for _ in range(500):
        learned.choose(HARD, (0.0, 0.0))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(CHOICES):
            learned.choose(HARD, (0.0, 0.0)).record()
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()
