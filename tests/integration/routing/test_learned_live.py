"""A group that learns, behind a real gateway: feedback moves the share, a challenger takes over and goes again, and nothing is lost."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.background import scripted
from tests.support.gateway import KEY, GatewayProcess

from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import extract
from hx_gateway.routing.learned.training import save

EASY = ("capital", "city", "colour", "flag", "river", "currency", "anthem", "mountain", "lake", "language")
HARD = ("prove", "theorem", "lemma", "integral", "eigenvalue", "convex", "manifold", "entropy", "topology", "bijection")
CONFIG = """
endpoints:
  one: {{url: "{weak}", provider: openai}}
  two: {{url: "{strong}", provider: openai}}
models:
  weak: {{endpoint: one, upstream_model: "tiny:1b", cost_per_request: 0.001}}
  strong: {{endpoint: two, upstream_model: "tiny:1b", cost_per_request: 0.1}}
groups:
  g: {{models: [weak, strong], learned: {{quality: 0.7, explore: 0.2, trial_answers: 40{more}}}}}
keys: {{api_keys: [{{name: alice, key: "env:ALICE"}}, {{name: bob, key: "env:BOB"}}]}}
load_balancer: {{health_check_interval: 3600}}
storage: {{state_directory: {state}}}
"""


def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Wait until something is true."""
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come to pass"
        time.sleep(0.1)


def prompt(chance: random.Random, hard: bool) -> str:
    """A prompt of one of two kinds."""
    words = HARD if hard else EASY
    return "Please tell me: " + " ".join(chance.choice(words) for _ in range(8)) + "?"


def truth(model: str, hard: bool) -> float:
    """How good an answer is: the weak model fails at what is hard."""
    return 0.0 if hard and model == "weak" else 1.0


class Live:
    """A gateway with a group of two scripted servers."""

    def __init__(self, weak: str, strong: str, state: Path, more: str = "", workers: int = 1) -> None:
        self.state = state
        self.chance = random.Random(7)
        self.process = GatewayProcess(
            CONFIG.format(weak=weak, strong=strong, state=state, more=more), {"ALICE": "alice-test-key", "BOB": "bob-test-key"}, workers
        )

    def call(self, path: str, body: Any = None, key: str = KEY) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers of an answer."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.process.url + path, data, headers), timeout=30) as answer:
                return answer.status, json.loads(answer.read()), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), dict(error.headers)

    def ask(self, hard: bool, key: str = KEY) -> dict[str, str]:
        """Send a prompt; the headers of its answer."""
        body = {"model": "g", "messages": [{"role": "user", "content": prompt(self.chance, hard)}], "max_tokens": 2}
        status, _, headers = self.call("/v1/chat/completions", body, key)
        assert status == 200
        return headers

    def decided(self, hard: bool) -> str:
        """The model for a prompt by what was learned, and not one that was drawn to learn from it."""
        while "explored" in (headers := self.ask(hard))["x-hx-reason"]:
            pass
        return headers["x-hx-model"]

    def judged_until(self, condition: Callable[[], object], flipped: bool = False) -> None:
        """Have answers judged in parts until something is true."""
        for _ in range(10):
            if condition():
                return
            self.judged(40, flipped)
        until(condition)

    def judged(self, count: int, flipped: bool = False, within_s: float = 60.0) -> Counter[tuple[bool, str]]:
        """Ask, and say of each answer how good it was; returns once all of it was learned. Answers by kind and model."""
        before = self.standing()["judged"]
        found: Counter[tuple[bool, str]] = Counter()
        for number in range(count):
            hard = number % 2 == 1
            headers = self.ask(hard)
            model = headers["x-hx-model"]
            found[hard, model] += 1
            score = truth(model, not hard if flipped else hard)
            status, said, _ = self.call("/v1/feedback", {"request_id": headers["x-hx-decision-id"], "score": score})
            assert status in (200, 202), said
        until(lambda: self.standing()["judged"] >= before + count, within_s)
        return found

    def standing(self) -> dict[str, Any]:
        """How the group stands, as the metrics tell."""
        found: dict[str, Any] = {"judged": 0, "champion": "", "challenger": None, "changes": 0}
        for line in self.metrics():
            name, _, value = line.rpartition(" ")
            for figure in ("judged", "changes"):
                if name.startswith(f"hx_gateway_learned_{figure}{{"):
                    found[figure] = int(float(value))
            for role in ("champion", "challenger"):
                if name.startswith("hx_gateway_learned_artifact_info{") and f'role="{role}"' in name:
                    found[role] = name.partition('version="')[2].partition('"')[0]
        return found

    def metrics(self) -> list[str]:
        """Every line of the metrics."""
        with urllib.request.urlopen(self.process.url + "/metrics", timeout=30) as answer:
            return answer.read().decode().splitlines()

    def router(self, *words: str, fails: bool = False) -> str:
        """``hx-gateway router …`` on its configuration; what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "hx_gateway", "router", *words, "--config", str(self.process.path)],
            capture_output=True, text=True, timeout=60, check=False, env=self.process._environment,
        )  # fmt: skip
        assert (done.returncode != 0) == fails and "Traceback" not in done.stderr, done.stderr + done.stdout
        return done.stderr if fails else done.stdout


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[str, str]]:
    with scripted() as weak, scripted() as strong:
        yield weak.url, strong.url


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two artifacts: one that knows which kind is hard, and one that has it the wrong way round."""
    pytest.importorskip("scipy", reason="training needs the extra learn")
    folder, chance = tmp_path_factory.mktemp("artifacts"), random.Random(3)
    found = []
    for name, flipped in (("right", False), ("wrong", True)):
        examples = []
        for number in range(300):
            hard = number % 2 == 1
            text = prompt(chance, hard)
            scores = {model: truth(model, not hard if flipped else hard) for model in ("weak", "strong")}
            examples.append(Example(extract(text), scores, text))
        save(folder / name, examples)
        found.append(folder / name)
    return found[0], found[1]


def test_feedback_moves_the_share_and_survives_a_kill(servers: tuple[str, str], tmp_path: Path) -> None:
    live = Live(*servers, tmp_path / "state")
    with live.process:
        first = live.ask(True)
        assert first["x-hx-model"] == "weak" or "explored" in first["x-hx-reason"]
        reasons = [live.ask(True)["x-hx-reason"] for _ in range(12)]
        assert any("stated order, a model has fewer than" in reason for reason in reasons)
        live.judged(300)
        until(lambda: "by quality of weak" in live.ask(True)["x-hx-reason"], 30)
        after = Counter((hard, live.decided(hard)) for _ in range(20) for hard in (False, True))
        assert after[True, "strong"] >= 14 and after[False, "weak"] >= 14, after
        learned = live.call("/v1/route/explain", {"model": "g", "messages": [{"role": "user", "content": prompt(live.chance, True)}]})[1]
        assert learned["learned"]["model"] == "strong" == learned["choice"]["model"]
        told = learned["learned"]
        assert told["expected"]["strong"]["quality"] > told["expected"]["weak"]["quality"]
        assert told["expected"]["weak"]["cost_more"] == pytest.approx(-0.099) and told["features"]["parts"] and told["confidence"] > 0
        told = json.loads(live.router("replay", "--policy", "always=weak", "--json"))
        assert told["would"]["share"]["weak"] == 1.0 and told["would"]["cost"] < told["was"]["cost"]
        assert told["would"]["quality"] < told["was"]["quality"] and told["moved"] > 20
        assert "expected quality" in live.router("replay", "--policy", "strong_share=0.3")
        assert "is none: strong_share=0.3" in live.router("replay", "--policy", "best", fails=True)
        before = live.standing()["judged"]
        ids = [live.ask(number % 2 == 1)["x-hx-decision-id"] for number in range(20)]
        for id in ids:
            assert live.call("/v1/feedback", {"request_id": id, "score": 1})[0] in (200, 202)
        live.process.stop(signal.SIGKILL)
        live.process.start()
        until(lambda: live.standing()["judged"] == before + 20, 60)
        until(lambda: "by quality of weak" in live.ask(True)["x-hx-reason"], 30)
        assert any('hx_gateway_learned_decisions_total{group="g",model="strong",rule="quality"}' in line for line in live.metrics())


def test_a_challenger_takes_over_and_a_drifted_one_goes_again(
    servers: tuple[str, str], artifacts: tuple[Path, Path], tmp_path: Path
) -> None:
    right, wrong = artifacts
    live = Live(*servers, tmp_path / "state", f', artifact: "{wrong}"')
    with live.process:
        until(lambda: live.standing()["champion"] != "", 30)
        before = live.standing()
        assert "runs in shadow" in live.router("promote", str(right))
        until(lambda: live.standing()["challenger"] is not None, 30)
        challenger = live.standing()["challenger"]
        assert live.standing()["champion"] == before["champion"] != challenger

        def shadowed() -> dict[str, Any] | None:
            for hard in (False, True):
                live.ask(hard)
            routed: dict[str, Any] = live.call("/admin/learning")[1]["data"][0]["routed"]
            return routed if routed["shadowed"] >= 6 else None

        until(shadowed)
        routed = live.call("/admin/learning")[1]["data"][0]["routed"]
        assert routed["agreed"] <= routed["shadowed"] / 2, f"one knows what the other has the wrong way round: {routed}"
        live.judged_until(lambda: live.standing()["champion"] == challenger)
        assert live.standing()["challenger"] == before["champion"]
        until(lambda: "by quality" in live.ask(True)["x-hx-reason"], 30)
        live.judged_until(lambda: live.standing()["champion"] == before["champion"], flipped=True)  # what was wrong is right
        listed = json.loads(live.router("list", "--json"))
        actions = [event["action"] for event in listed["events"]]
        assert actions[:4] == ["promoted", "shadow", "promoted", "demoted"] and actions.count("demoted") >= 2, listed["events"]
        told = live.call("/admin/learning")[1]["data"][0]
        assert [one["role"] for one in told["artifacts"] if one["version"].startswith(before["champion"])] == ["champion"]
        assert told["events"] == listed["events"] and told["trial"]["needed"] == 40 and told["routed"]["decisions"] >= 80
        assert "champion" in live.router("list")
        assert "is out" in live.router("demote")
        until(lambda: live.standing()["champion"] != before["champion"], 30)


def test_two_workers_keep_the_share_together(servers: tuple[str, str], artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    live = Live(*servers, tmp_path / "state", f', artifact: "{artifacts[0]}"', workers=2)
    live.process.path.write_text(live.process.path.read_text().replace("quality: 0.7, explore: 0.2", "strong_share: 0.3, explore: 0"))
    with live.process:
        found = Counter(live.ask(number % 2 == 1)["x-hx-model"] for number in range(400))
        assert found["strong"] / found.total() == pytest.approx(0.3, abs=0.03)

        def counted() -> float:
            return sum(float(line.rpartition(" ")[2]) for line in live.metrics() if line.startswith("hx_gateway_learned_decisions_total{"))

        until(lambda: counted() == 400)  # of both


def test_who_may_judge_what_and_how_often(servers: tuple[str, str], tmp_path: Path) -> None:
    live = Live(*servers, tmp_path / "state")
    with live.process:
        id = live.ask(False, "alice-test-key")["x-hx-decision-id"]
        until(lambda: live.call(f"/admin/requests/{id}")[0] == 200, 30)

        def given(score: Any, key: str, id: str = id, **more: Any) -> tuple[int, str | None]:
            status, body, _ = live.call("/v1/feedback", {"request_id": id, "score": score, **more}, key)
            return status, body.get("error", {}).get("param")

        assert given(0.5, "bob-test-key") == (404, "request_id")
        assert given(0.5, "alice-test-key", "0" * 26) == given(0.5, KEY, "nothing") == (404, "request_id")
        assert given(1.5, "alice-test-key") == (422, "score") and given("good", "alice-test-key") == (422, "score")
        assert given(0.5, "alice-test-key", what=1)[0] == 422
        assert given(0.5, "nobody's")[0] == 401
        assert given(0.5, "alice-test-key", f"chatcmpl-{id}", comment="short") == (200, None)
        assert given(0.5, "alice-test-key") == (200, None)
        assert given(0.7, "alice-test-key") == (409, "score")
        until(lambda: live.standing()["judged"] == 1, 30)
        assert given(0.5, "alice-test-key") == (200, None) == given(0.5, KEY)
        assert given(0.7, "alice-test-key") == given(0.2, KEY) == (409, "score")
        assert live.standing()["judged"] == 1


def test_a_model_judges_within_its_budget(servers: tuple[str, str], tmp_path: Path) -> None:
    judge = ", judge: {model: critic, api_key: 'env:JUDGE', share: 1, requests_per_day: 3}"
    live = Live(*servers, tmp_path / "state", judge)
    text = live.process.path.read_text().replace("groups:", '  critic: {endpoint: one, upstream_model: "tiny:1b"}\ngroups:', 1)
    text = text.replace("{name: bob,", '{name: the-judge, key: "env:JUDGE"}, {name: bob,') + "ledger: {bodies: {enabled: true}}\n"
    live.process.path.write_text(text)
    live.process._environment["JUDGE"] = "judge-test-key"
    with live.process:
        for stream in (False, True, False, False, False):
            body = {"model": "g", "stream": stream, "messages": [{"role": "user", "content": "Say 7"}]}
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            asked = urllib.request.Request(live.process.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(asked, timeout=30) as answer:
                assert answer.read()
        until(lambda: live.standing()["judged"] == 3, 60)

        def used() -> list[tuple[str, int]]:
            rows = live.call("/admin/usage?by=key,model")[1]["data"]
            return [(row["model"], row["requests"]) for row in rows if row["key"] == "the-judge"]

        until(lambda: used() == [("critic", 3)])  # what the last of them cost is shipped a moment later
        seen: set[str] = set()  # rounds of the duty in which there is no budget left

        def rounds() -> int:
            seen.update(line for line in live.metrics() if 'success_timestamp_seconds{duty="judge"}' in line)
            return len(seen)

        until(lambda: rounds() > 2)
        assert live.standing()["judged"] == 3
    found = sqlite3.connect(tmp_path / "state" / "hx-gateway.db").execute("SELECT score, key_name, comment FROM feedback").fetchall()
    assert {(score, key) for score, key, _ in found} == {(0.7, "judge")} and all("judged by critic in request 0" in one[2] for one in found)
