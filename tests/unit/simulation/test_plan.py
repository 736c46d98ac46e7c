"""The fleet file: what is wrong with one, where, and what a load is."""

from __future__ import annotations

from pathlib import Path

import pytest

from hx_gateway.config.problems import ConfigError
from hx_gateway.simulation.plan import load_plan, read_plan
from hx_gateway.simulation.trace import Arrival

EXAMPLES = Path(__file__).parents[3] / "docs" / "how-to" / "fleets"
FLEET = """\
models: {chat: {gb: 9}}
servers:
  gpu: {count: 2, slots: 4, prefill_tokens_per_second: 1000, decode_tokens_per_second: 50}
"""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_loads(path: Path) -> None:
    assert load_plan(path).servers


def test_there_are_three_examples() -> None:
    assert len(list(EXAMPLES.glob("*.yaml"))) == 3


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("models: {chat: {}}\nservers:\n  gpu: {slot: 4}\n", "fleet.yaml:3:9: servers.gpu.slot:", "unknown setting; did you mean slots?"),
        ("models: {chat: {}}\nservers:\n  gpu: {slots: many}\n", "fleet.yaml:3:16: servers.gpu.slots:", "should be a valid integer"),
        ("models: {chat: {}}\nservers:\n  gpu: {slots: 0}\n", "fleet.yaml:3:16: servers.gpu.slots:", "greater than or equal to 1"),
        ("models: {chat: {}}\n", "fleet.yaml:1:1: servers:", "is missing, and needed"),
        ("", "fleet.yaml:1:1: models:", "is missing, and needed"),
        ("models: {chat: {}}\nservers:\n  gpu: {models: [chatt]}\n", "fleet.yaml:3:18:", "names no model; did you mean chat?"),
        ("models: {big: {gb: 30}}\nservers:\n  gpu: {memory_gb: 24}\n", "fleet.yaml:3:20:", "too small for big, which takes 30 GB"),
        (
            "models: {chat: {}}\nservers:\n  gpu:\n    outages: [{start: 5, end: 2}]\n",
            "fleet.yaml:4:31: servers.gpu.outages[0].end:",
            "should be after start",
        ),
        ("models: {chat: {}}\nservers: {gpu: {}\n", "fleet.yaml:", "YAML syntax"),
        ("models: {chat: {}}\ngateway: {probes: 3}\nservers: {gpu: {}}\n", "fleet.yaml:2:11:", "did you mean probe_seconds?"),
    ],
)
def test_what_is_wrong_is_told_with_line_and_column(text: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_plan(text, "fleet.yaml")
    assert any(str(problem).startswith(place) and message in str(problem) for problem in caught.value.problems), str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_plan("models: {chat: {gb: -1}}\nservers: {gpu: {slots: 0, speed: 0}}\n", "fleet.yaml")
    assert len(caught.value.problems) == 3


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_plan(tmp_path / "absent.yaml")


def test_the_load_is_the_larger_share_of_reading_and_writing() -> None:
    plan = read_plan(FLEET, "fleet.yaml")
    # Two servers read 2,000 tokens a second and write 2 x 4 x 50 = 400.
    reading = [Arrival(0.0, 5000, 1), Arrival(10.0, 5000, 1)]
    assert plan.load_of(reading) == pytest.approx(10_000 / 2000 / 10)
    writing = [Arrival(0.0, 1, 1000), Arrival(10.0, 1, 1000)]
    assert plan.load_of(writing) == pytest.approx(2000 / 400 / 10)
    assert plan.load_of([Arrival(0.0, 1, 1)]) == 0.0


def test_a_slow_server_counts_for_less() -> None:
    slow = read_plan(FLEET.replace("count: 2", "count: 2, speed: 0.5"), "fleet.yaml")
    arrivals = [Arrival(0.0, 5000, 1), Arrival(10.0, 5000, 1)]
    assert slow.load_of(arrivals) == pytest.approx(2 * read_plan(FLEET, "fleet.yaml").load_of(arrivals))
