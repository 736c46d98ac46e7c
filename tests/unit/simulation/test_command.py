"""`hx-gateway simulate`: a table for people, JSON for programs, and plain words where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hx_gateway.cli.main import application

FLEET = """\
models: {chat: {}}
servers:
  gpu: {count: 2, prefill_tokens_per_second: 4000, cache_tokens: 50000}
"""
TRACE = "timestamp,input_length,output_length,hash_ids\n" + "".join(f"{at},{900 + at},20,{at % 3} {at}\n" for at in range(60))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    (tmp_path / "trace.csv").write_text(TRACE)
    return ["simulate", "--fleet", str(tmp_path / "fleet.yaml"), "--trace", str(tmp_path / "trace.csv")]


def test_json_holds_each_policy_at_the_load_asked_for(files: list[str]) -> None:
    done = CliRunner().invoke(application(), [*files, "--load", "0.5", "--policy", "round_robin", "--policy", "intelligent", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["requests"] == 60 and found["load"] == pytest.approx(0.5)
    assert [one["policy"] for one in found["policies"]] == ["round_robin", "intelligent"]
    assert all(one["failed"] == 0 and one["choose_us"] > 0.0 for one in found["policies"])


def test_the_table_has_a_column_for_each_of_the_main_policies(files: list[str]) -> None:
    done = CliRunner().invoke(application(), [*files, "--limit", "20", "--share-first-block"], env={"COLUMNS": "120"})
    assert done.exit_code == 0, done.output
    for words in ("20 requests", "round_robin", "least_busy", "intelligent", "first token p90, s", "cold loads", "imbalance (busy seconds"):
        assert words in done.output


def test_a_generated_trace_needs_no_file(files: list[str]) -> None:
    done = CliRunner().invoke(application(), [*files[:4], "zipf:requests=30", "--policy", "least_busy", "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["requests"] == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "fastest"], "no picker is called 'fastest'"),
        (["--unit", "h"], "should be s or ms"),
        (["--limit", "1", "--load", "0.5"], "leave out --load"),
        (["--trace", "zipf:rate=x"], "rate should be a number"),
        (["--trace", "absent.csv"], "absent.csv: cannot be read"),
        (["--fleet", "absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_said_without_a_trace_of_calls(files: list[str], arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(application(), [*files, *arguments], env={"COLUMNS": "200"})
    assert done.exit_code in (1, 2)
    assert words in done.output and "Traceback" not in done.output
