"""Training from planted truths, the artifact it makes, and the commands around it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
from tests.unit.routing.learned.planted import planted
from typer.testing import CliRunner

from hx_gateway.cli.main import application
from hx_gateway.routing.learned import artifact
from hx_gateway.routing.learned.evaluate import apgr
from hx_gateway.routing.learned.examples import Example, ExampleError, read
from hx_gateway.routing.learned.features import extract
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.targets import ShareThreshold
from hx_gateway.routing.learned.training import TrainingError, save

pytest.importorskip("scipy", reason="training needs the extra learn")
PAIR = ("weak", "strong")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("router") / "router.hx"
    save(path, planted(600))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl.gz"
    with gzip.open(path, "wt") as out:
        for one in planted(300, seed=7):
            out.write(json.dumps({"prompt": one.text, "scores": dict(one.scores), "source": "planted"}) + "\n")
    return path


def gaps_of(scorer: Scorer, examples: list[Example]) -> list[float]:
    return [strong - weak for weak, strong in (scorer.predict(one.features, PAIR).probabilities for one in examples)]


def test_it_finds_which_prompts_need_the_strong_model(file: Path) -> None:
    rest = planted(800, seed=2)
    figure = apgr(gaps_of(Scorer.load(file), rest), [one.scores["weak"] for one in rest], [one.scores["strong"] for one in rest])
    assert figure > 0.7  # the best that can be known is .75


def test_probabilities_are_what_happens(file: Path) -> None:
    scorer, rest = Scorer.load(file), planted(1500, seed=3)
    for place, model in enumerate(PAIR):
        expected = [(scorer.predict(one.features, PAIR).probabilities[place], one.scores[model]) for one in rest]
        for low, high in ((0.0, 0.5), (0.5, 1.01)):
            inside = [pair for pair in expected if low <= pair[0] < high]
            if len(inside) > 200:
                assert sum(one for one, _ in inside) / len(inside) == pytest.approx(sum(two for _, two in inside) / len(inside), abs=0.08)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7])
def test_a_share_of_strong_calls_is_kept_on_other_prompts(file: Path, share: float) -> None:
    scorer = Scorer.load(file)
    limit = ShareThreshold.of(scorer, "weak", "strong", share).limit
    given = sum(gap > limit for gap in gaps_of(scorer, planted(2000, seed=4))) / 2000
    assert given == pytest.approx(share, abs=0.06)


def test_it_knows_what_it_knows(file: Path) -> None:
    scorer = Scorer.load(file)
    doubts = [bool(scorer.predict(one.features, PAIR).doubt) for one in planted(500, seed=5)]
    assert sum(doubts) / len(doubts) < 0.06
    for text in ("def quicksort(items):\n    return sorted(items)\n" * 5, "Вопрос о погоде", "12 * 7 + 3 = {x};\n\n1. 2. 3."):
        assert scorer.predict(extract(text), PAIR).doubt


def test_it_learns_on_after_training(file: Path) -> None:
    scorer = Scorer.load(file)
    for one in planted(300, seed=6):
        scorer.update(one.features, "strong", 0.0)
    assert fmean(gaps_of(scorer, planted(100, seed=8))) < 0.0 < fmean(gaps_of(Scorer.load(file), planted(100, seed=8)))
    other = Scorer.load(file)
    other.restore(scorer.state())
    assert other.state() == scorer.state()
    with pytest.raises(ValueError, match="on top of artifact"):
        Scorer.untrained({"weak": 0.0, "strong": 1.0}).restore(scorer.state())


def test_the_same_data_give_the_same_artifact(file: Path, tmp_path: Path) -> None:
    save(tmp_path / "again", planted(600))
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_models_that_did_not_answer_everything_are_learned_too(tmp_path: Path) -> None:
    examples = [
        Example(one.features, {name: one.scores[name] for name in PAIR[number % 3 :]} or {"other": 1.0})
        for number, one in enumerate(planted(300))
    ]
    scorer = save(tmp_path / "router", examples)
    assert {name: head["labels"] for name, head in scorer.facts["heads"].items()} == {"other": 100, "strong": 200, "weak": 100}


def test_using_it_needs_neither_numpy_nor_scipy(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hx_gateway.routing.learned.model import Scorer; import hx_gateway.routing.learned.training;"
        "from hx_gateway.routing.learned.features import extract;"
        f"s = Scorer.load(Path({str(file)!r})); s.update(extract('a court'), 'weak', 1.0); print(s.predict(extract('a court'), s.models));"
        "assert not {'numpy', 'scipy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_damaged_is_refused(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    damaged = tmp_path / "damaged"
    for bytes_, words in (
        (whole[:-1], "damaged"),
        (whole[:-50] + b"x" + whole[-49:], "damaged"),
        (whole.replace(b'"prompts": 600', b'"prompts": 601'), "damaged"),
        (whole.replace(f'"format": {artifact.FORMAT}'.encode(), b'"format": 9'), "format 9"),
        (b"", "no router artifact"),
        (b"[" * 100_000, "no router artifact"),
        (b"null\n", "no router artifact"),
    ):
        damaged.write_bytes(bytes_)
        with pytest.raises(artifact.ArtifactError, match=words):
            Scorer.load(damaged)
    artifact.write(damaged, {"heads": {}, "scales": [1.0]}, [b"12"])
    with pytest.raises(artifact.ArtifactError, match="do not fit"):
        Scorer.load(damaged)
    with pytest.raises(artifact.ArtifactError, match="No such file"):
        Scorer.load(tmp_path / "nowhere")


def test_too_little_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="at least 50"):
        save(tmp_path / "router", planted(10))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2"),
        ("[1]", "prompt is no text"),
        ('{"prompt": "a"}', "scores is no object"),
        ('{"prompt": "a", "scores": {"m": 2}}', "scores.m is no number from 0 to 1"),
        ('{"prompt": "a", "scores": {"m": NaN}}', "scores.m is no number"),
        ('{"prompt": "a", "scores": {"m": true}}', "scores.m is no number"),
        ('{"prompt": "a", "scores": {"m": 1}, "turns": "x"}', "whole numbers"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "scores": {"m": 1}}\n' + line + "\n")
    with pytest.raises(ExampleError, match=words) as caught:
        read([path])
    assert "rows.jsonl, line 2" in str(caught.value)


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(application(), ["router", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_commands_train_measure_and_show(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "router.hx"
    assert run("train", rows, "--out", out)[0] == 0
    code, text = run("evaluate", out, rows)
    assert code == 0 and "weak to strong: APGR" in text
    code, text = run("evaluate", out, rows, "--json")
    report = json.loads(text)
    assert report["prompts"] == 300 and report["pairs"][0]["apgr"] > 0.6 and set(report["models"]) == set(PAIR)
    code, text = run("show", out, "--prompt", "which court is liable for the tort?")
    assert code == 0 and "court" in text and "confidence" in text
    assert json.loads(run("show", out, "--json")[1])["models"]["weak"]["judged"] == 300


def test_the_commands_say_what_is_wrong(rows: Path, tmp_path: Path) -> None:
    code, text = run("train", tmp_path / "nothing.jsonl", "--out", tmp_path / "router.hx")
    assert code == 1 and "nothing.jsonl: cannot be read" in text
    code, text = run("show", rows)
    assert code == 1 and "no router artifact" in text
