"""The learned scorer on a small public collection, where it is at hand; all figures are printed by `make bench-router`."""

from __future__ import annotations

import gzip
import json
from statistics import fmean

import pytest
from tests.architecture.sources import ROOT

from hx_gateway.routing.learned.evaluate import apgr
from hx_gateway.routing.learned.examples import Example
from hx_gateway.routing.learned.features import extract
from hx_gateway.routing.learned.model import Scorer
from hx_gateway.routing.learned.training import save

pytest.importorskip("scipy", reason="training needs the extra learn")
DATA = ROOT.parent / "shared" / "data" / "routing"
PAIR = ("weak", "strong")
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data: {DATA} is not there")


def rows(name: str, every: int = 1) -> list[Example]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line) for line in file][::every]
    return [Example(extract(row["prompt"]), {"weak": row["weak_ok"], "strong": row["strong_ok"]}, row["prompt"]) for row in found]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return save(tmp_path_factory.mktemp("router") / "router.hx", rows("routellm_mmlu_dev", 3)[::2])


def test_half_of_the_prompts_teach_it_about_the_other_half(scorer: Scorer) -> None:
    unseen = rows("routellm_mmlu_dev", 3)[1::2]  # 1,375: of fewer, chance alone moves the figure by more than what is tested
    found = [scorer.predict(one.features, PAIR) for one in unseen]
    gaps = [strong - weak for weak, strong in (one.probabilities for one in found)]
    assert apgr(gaps, [one.scores["weak"] for one in unseen], [one.scores["strong"] for one in unseen]) > 0.6
    assert fmean(bool(one.doubt) for one in found) < 0.05


def test_questions_of_another_collection_are_doubted(scorer: Scorer) -> None:
    assert fmean(bool(scorer.predict(one.features, PAIR).doubt) for one in rows("routellm_gsm8k_dev")) > 0.9
