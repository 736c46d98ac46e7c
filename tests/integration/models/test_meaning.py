"""A group that learns with embeddings of a real model: it knows what prompts mean whose words it never saw, and does without in time."""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.routing.test_learned_live import Live, until
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.routing.learned.features import Features

pytest.importorskip("scipy", reason="training needs the extra learn")
KINDS = {  # of each kind words to learn from, and others to be asked with
    True: (("loan", "mortgage", "credit", "dividend", "stock", "bond", "interest", "bank"), ("pension", "invoice", "taxes", "budget")),
    False: (("dog", "cat", "horse", "cow", "sheep", "goat", "rabbit", "pig"), ("tiger", "wolf", "elephant", "squirrel")),
}
CONFIG = """
endpoints:
  vectors: {{url: "{url}", provider: openai, api_key: "env:MASTER_KEY"}}
{more}models:
  weak: {chat}
  strong: {chat}
  minilm: {{endpoint: vectors, upstream_model: "{name}", mode: embedding}}
groups:
  g: {{models: [weak, strong], learned: {{quality: 0.55, explore: 0, artifact: {artifact}, embedding: minilm, embedding_wait_seconds: {wait_s}}}}}
storage: {{state_directory: {state}}}
"""


def sentences(hard: bool, place: int) -> list[str]:
    """Prompts of a kind; those of another place share only their form."""
    return [f"Please tell me about the {one} and the {other}." for one, other in itertools.permutations(KINDS[hard][place], 2)]


@pytest.fixture(scope="module")
def artifact(gateway: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command, with embeddings made by the gateway in front of the real model."""
    folder = tmp_path_factory.mktemp("meaning")
    chance = random.Random(1)

    def name() -> str:
        return "".join(chance.choice("bcdfghklmnprst") + chance.choice("aeiou") for _ in range(3))

    # Names that nobody has met are usual here, so words that it never saw are no reason for doubt.
    rows = [
        {
            "prompt": "".join(f"{name()} " for _ in range(chance.choice((0, 4, 10)))) + text,
            "scores": {"weak": 0 if hard else 1, "strong": 1},
        }
        for hard in KINDS
        for text in sentences(hard, 0)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", str(folder / "rows.jsonl"), "--out", str(folder / "router.hx"), "--embedding", "minilm", "--url", gateway.url]
    assert "112 prompts" in router(*words)
    return folder / "router.hx"


def router(*words: str) -> str:
    """``hx-gateway router …``; what it printed."""
    environment = {**os.environ, "HX_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-m", "hx_gateway", "router", *words], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Embedded(Live):
    """A gateway whose group reads embeddings; ``settings`` are those of `CONFIG`."""

    def __init__(self, artifact: Path, **settings: Any) -> None:
        self.process = GatewayProcess(CONFIG.format(artifact=json.dumps(str(artifact)), **settings))


def asked(live: Embedded, text: str) -> tuple[str, str, str]:
    """The model that answered, the reason, and the id of the decision."""
    body = {"model": "g", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    status, said, headers = live.call("/v1/chat/completions", body)
    assert status == 200, (said, live.process.log[-3000:])
    return headers["x-hx-model"], headers["x-hx-reason"], headers["x-hx-decision-id"]


def outcomes(live: Embedded) -> dict[str, int]:
    """Prompts by what became of their embedding."""
    found = {}
    for line in live.metrics():
        if line.startswith("hx_gateway_learned_embeddings_total{"):
            found[line.partition('outcome="')[2].partition('"')[0]] = int(float(line.rpartition(" ")[2]))
    return found


def test_it_knows_what_words_mean_that_it_never_saw(gateway: GatewayProcess, artifact: Path, tmp_path: Path) -> None:
    chat = f"{{path: {json.dumps(str(tiny.path()))}, slots: 1, threads: 1}}"
    live = Embedded(artifact, url=gateway.url, name="minilm", chat=chat, more="", state=tmp_path / "state", wait_s=10)
    with live.process:
        for hard in (True, False):
            for text in sentences(hard, 1)[:4]:
                model, reason, id = asked(live, text)
                assert (model, "by quality of weak" in reason) == ("strong" if hard else "weak", True), (text, reason)
        assert outcomes(live) == {"made": 8}
        told = live.call("/v1/route/explain", {"model": "g", "messages": [{"role": "user", "content": text}]})[1]["learned"]
        assert told["model"] == "weak" and "meaning" in [name for name, _ in told["features"]["parts"]], told
        assert asked(live, text)[0] == "weak" and outcomes(live) == {"made": 8, "known": 1}
        # What is asked of the embedding model stands in the ledger like everything else.
        until(lambda: {row["model"]: row["requests"] for row in live.call("/admin/usage?by=model")[1]["data"]}.get("minilm") == 8)
        assert live.call("/v1/feedback", {"request_id": id, "score": 1})[0] in (200, 202)
        until(lambda: live.standing()["judged"] == 1)
        with sqlite3.connect(tmp_path / "state" / "hx-gateway.db") as store:
            packed = store.execute("SELECT features FROM routed WHERE id = ?", (id,)).fetchone()[0]
        assert len(Features.unpack(packed).meaning) == 8 + 384, "what was judged is learned from with its embedding"
    shown = router("show", str(artifact), "--prompt", text, "--url", gateway.url)
    assert "with embeddings of minilm" in shown and "  meaning" in shown


@pytest.mark.parametrize(
    ("fault", "outcome"), [("hang", "late"), ("status", "failed"), ("garbage_json", "failed"), ("empty_embedding", "failed")]
)
def test_an_embedding_that_does_not_come_holds_nobody_up(artifact: Path, tmp_path: Path, fault: str, outcome: str) -> None:
    wait_s = 0.2 if outcome == "late" else 10  # what fails on a busy machine must not be late as well
    with scripted() as chat, scripted() as vectors:
        vectors.fault = fault
        one, more = '{endpoint: chat, upstream_model: "tiny:1b"}', f'  chat: {{url: "{chat.url}", provider: openai}}\n'
        live = Embedded(artifact, url=vectors.url, name="tiny:1b", chat=one, more=more, state=tmp_path / "state", wait_s=wait_s)
        with live.process:
            for text in sentences(True, 0)[:3]:
                model, reason, _ = asked(live, text)
                assert model == "strong" and "by quality of weak" in reason, reason  # by its words, which it knows
            found = outcomes(live)
            assert found.pop(outcome) >= 1 and not found.keys() - {"rests"}, found
