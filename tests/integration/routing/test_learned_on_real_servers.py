"""A group over two llama.cpp servers, judged by public labels: an artifact proves itself, routes what it never saw, and goes when the world drifts."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.routing.test_learned_live import Live, until
from tests.integration.routing.test_learned_on_public_data import DATA, rows
from tests.support import required
from tests.support.gateway import GatewayProcess

from hx_gateway.local import tiny
from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.training import save

pytest.importorskip("scipy", reason="training needs the extra learn")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data: {DATA} is not there")
LONG = bool(os.environ.get("HX_LONG"))
TRAINED, ASKED, TRIAL, MOST = (4000, 200, 200, 600) if LONG else (3000, 80, 40, 300)  # prompts
LONGEST = 600 if LONG else 350  # bytes of a prompt: the tiny model reads each as a token, and 1024 at most
CONFIG = """
models:
  weak: {{path: {path}, slots: 4, threads: 1, cost_per_request: 0.001}}
  strong: {{path: {path}, slots: 4, threads: 1, cost_per_request: 0.1}}
groups:
  g: {{models: [weak, strong], learned: {{quality: 0.9, explore: 0.1, artifact: {artifact}, trial_answers: {trial}}}}}
storage: {{state_directory: {state}}}
"""


class Real(Live):
    """A gateway with two llama.cpp servers, whose answers are judged by the labels of a collection."""

    def __init__(self, state: Path, artifact: Path) -> None:
        path = json.dumps(str(tiny.path()))
        self.process = GatewayProcess(CONFIG.format(path=path, state=state, artifact=json.dumps(str(artifact)), trial=TRIAL))

    def sent(self, one: Example) -> dict[str, str]:
        """Send a prompt; the headers of its answer."""
        body = {"model": "g", "messages": [{"role": "user", "content": one.text}], "max_tokens": 1}
        status, said, headers = self.call("/v1/chat/completions", body)
        assert status == 200, said
        return headers

    def sees(self, version: str) -> bool:
        """Whether the worker that answers decides by an artifact."""
        said = self.call("/v1/route/explain", {"model": "g", "messages": [{"role": "user", "content": "Which is it?"}]})[1]
        return bool(said["learned"]["artifact"] == version)

    def shares(self, examples: Sequence[Example]) -> float:
        """The part of prompts for which the scorer chose the strong model."""
        with ThreadPoolExecutor(4) as threads:
            found = [one for one in threads.map(self.sent, examples) if "explored" not in one["x-hx-reason"]]
        assert sum("by quality of weak" in one["x-hx-reason"] for one in found) > 0.9 * len(found)
        return sum(one["x-hx-model"] == "strong" for one in found) / len(found)

    def judged_by(self, examples: Sequence[Example], flipped: bool = False) -> None:
        """Send prompts, and give each answer the label of the model that was asked; returns once all of it was learned."""

        def one(example: Example) -> None:
            headers = self.sent(example)
            score = abs(flipped - example.scores[headers["x-hx-model"]])
            status, said, _ = self.call("/v1/feedback", {"request_id": headers["x-hx-decision-id"], "score": score})
            assert status in (200, 202), said

        before = self.standing()["judged"]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(one, examples))
        until(lambda: self.standing()["judged"] >= before + len(examples), 60)

    def until_judged(self, examples: Sequence[Example], condition: Callable[[], object], flipped: bool = False) -> int:
        """Have prompts judged in parts until something is true; how many it took."""
        for number in range(0, len(examples), 40):
            if condition():
                return number
            self.judged_by(examples[number : number + 40], flipped)
        until(condition, 5)
        return len(examples)


@pytest.mark.timeout(1200 if LONG else 300)
def test_an_artifact_proves_itself_on_real_servers_routes_both_kinds_and_goes_when_it_drifts(tmp_path: Path) -> None:
    required.llamacpp()
    examples = [one for one in rows("routellm_mmlu_dev") if len(one.text.encode()) <= LONGEST]
    random.Random(1).shuffle(examples)
    version = save(tmp_path / "artifact", examples[:TRAINED]).version[:12]
    was = [Example(one.features, {model: 1.0 - score for model, score in one.scores.items()}) for one in examples[:150]]
    other = save(tmp_path / "other", was).version[:12]  # of a world in which what is right was wrong
    unseen, before, after = examples[TRAINED : -2 * MOST], examples[-2 * MOST : -MOST], examples[-MOST:]
    hard = [one for one in unseen if one.scores["strong"] > one.scores["weak"]][:ASKED]
    easy = [one for one in unseen if one.scores["weak"] == 1.0][:ASKED]
    live = Real(tmp_path / "state", tmp_path / "other")
    with live.process:
        until(lambda: live.standing()["champion"] == other)
        assert "runs in shadow" in live.router("promote", str(tmp_path / "artifact"))
        until(lambda: live.standing()["challenger"] == version)
        assert live.standing()["champion"] == other
        took = [live.until_judged(before, lambda: live.standing()["champion"] == version)]
        until(lambda: live.sees(version))
        shares = live.shares(hard), live.shares(easy)
        assert shares[0] > shares[1] + 0.05, shares  # of prompts it had not seen
        took.append(live.until_judged(after, lambda: live.standing()["champion"] == other, flipped=True))  # the world has changed
        print(
            f"promoted after {took[0]} judged answers, demoted after {took[1]} others; strong for hard prompts {shares[0]}, easy {shares[1]}"
        )
        events = [(one["action"], one["version"][:12] == version) for one in json.loads(live.router("list", "--json"))["events"]]
        assert events[-4:] == [("promoted", True), ("demoted", False), ("promoted", False), ("demoted", True)], events
        assert live.standing()["changes"] >= 4
