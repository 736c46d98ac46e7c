"""Traces: published formats as they are, generated ones, and what is said of a broken one."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from hx_gateway.simulation.synthetic import generate
from hx_gateway.simulation.trace import TraceError, chained, read, stretched, with_shared_first_block

MOONCAKE = """\
{"timestamp": 3000, "input_length": 1000, "output_length": 6, "hash_ids": [7, 9]}
{"timestamp": 500, "input_length": 600, "output_length": 0, "hash_ids": [7, 8]}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:18:04.4799600,3180,8
"""


def written(tmp_path: Path, text: str, name: str = "trace") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_json_lines_with_hash_ids_count_milliseconds_and_are_sorted_by_time(tmp_path: Path) -> None:
    first, second = read(written(tmp_path, MOONCAKE))
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0.0, 600, 1)  # every answer has a token
    assert (second.at_s, second.prompt_tokens, second.output_tokens) == (2.5, 1000, 6)
    assert first.blocks[0] == second.blocks[0] and first.blocks[1] != second.blocks[1]


def test_a_block_stands_for_all_before_it() -> None:
    one, other = chained([1, 2, 3]), chained([4, 2, 3])
    assert not set(one) & set(other)
    assert chained([1, 2]) == one[:2]


def test_dates_with_seven_digits_of_a_second_are_read(tmp_path: Path) -> None:
    found = read(written(tmp_path, AZURE))
    assert [(one.at_s, one.prompt_tokens, one.output_tokens) for one in found] == [(0.0, 4808, 10), (pytest.approx(60.5), 3180, 8)]


def test_csv_with_plain_names_counts_seconds_and_may_name_models_and_blocks(tmp_path: Path) -> None:
    text = 'timestamp,input_length,output_length,hash_ids,model\n0.5,10,2,1 2,small\n2,20,4,"[1, 3]",\n'
    first, second = read(written(tmp_path, text))
    assert (first.model, second.model, second.at_s) == ("small", "", 1.5)
    assert len(first.blocks) == 2 and first.blocks[0] == second.blocks[0]


def test_the_unit_can_be_told(tmp_path: Path) -> None:
    path = written(tmp_path, "timestamp,input_length,output_length\n0,1,1\n1500,1,1\n")
    assert read(path)[1].at_s == 1500.0
    assert read(path, unit="ms")[1].at_s == 1.5


def test_packed_files_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode()))
    assert len(read(path)) == 2
    assert [one.prompt_tokens for one in read(path, limit=1)] == [1000]


@pytest.mark.parametrize(
    ("text", "where", "remedy"),
    [
        ('{"timestamp": 1, "input_length": 5}\n', ":1:", "output_length is missing"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 1}\n{"timestamp"\n', ":2:", "one object a line"),
        ("timestamp,input_length,output_length\n1,2,3\nyesterday,2,3\n", ":3:", "date with time"),
        ("timestamp,input_length,output_length\n1,-2,3\n", ":2:", "input_length should be a whole number of tokens"),
        ("timestamp,input_length,output_length\ninf,2,3\n", ":2:", "finite number of seconds"),
        ("timestamp,input_length,output_length,hash_ids\n1,2,3,a b\n", ":2:", "hash_ids should be whole numbers"),
        ("timestamp,input_length,output_length\n", "trace:", "has no requests"),
    ],
)
def test_a_broken_trace_says_where_and_what_to_do(tmp_path: Path, text: str, where: str, remedy: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(written(tmp_path, text))
    assert where in str(caught.value) and remedy in str(caught.value)


def test_a_file_that_cannot_be_unpacked_or_found_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gz").write_bytes(b"not gzip")
    for name in ("broken.gz", "absent"):
        with pytest.raises(TraceError, match=name):
            read(tmp_path / name)


def test_a_shared_first_block_leaves_the_rest_apart(tmp_path: Path) -> None:
    arrivals = read(written(tmp_path, MOONCAKE.replace("[7, 8]", "[5, 8]")))
    assert arrivals[0].blocks[0] != arrivals[1].blocks[0]
    shared = with_shared_first_block(arrivals)
    assert shared[0].blocks[0] == shared[1].blocks[0]
    assert [one.blocks[1:] for one in shared] == [one.blocks[1:] for one in arrivals]
    with pytest.raises(TraceError, match="hash_ids"):
        with_shared_first_block(read(written(tmp_path, AZURE)))


def test_stretching_keeps_everything_but_the_times(tmp_path: Path) -> None:
    arrivals = read(written(tmp_path, MOONCAKE))
    assert [one.at_s for one in stretched(arrivals, 2.0)] == [0.0, 5.0]
    assert stretched(arrivals, 1.0) == arrivals


def test_a_generated_trace_has_the_asked_shape_and_is_the_same_for_a_seed() -> None:
    text = "zipf:models=3,rate=2,requests=4000,input=500,output=100"
    found = generate(text, ["a", "b", "c", "d"], 7)
    assert found == generate(text, ["a", "b", "c", "d"], 7) != generate(text, ["a", "b", "c", "d"], 8)
    counts = Counter(one.model for one in found)
    assert set(counts) == {"a", "b", "c"}
    assert counts["a"] / counts["b"] == pytest.approx(2.0, rel=0.15)
    assert found[-1].at_s == pytest.approx(2000.0, rel=0.1)
    assert sum(one.prompt_tokens for one in found) / 4000 == pytest.approx(500, rel=0.1)
    assert len(generate(text, ["a", "b", "c"], 7, limit=5)) == 5


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("zipf:speed=1", "'speed' is unknown"), ("zipf:rate=0", "rate should be a number more than 0"), ("zipf:models=3", "serves 2")],
)
def test_a_generated_trace_that_cannot_be_says_why(text: str, remedy: str) -> None:
    with pytest.raises(TraceError, match=remedy):
        generate(text, ["a", "b"], 1)
