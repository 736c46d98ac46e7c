"""Places that stay taken when a client leaves while Ollama reads its prompt."""

from __future__ import annotations

import pytest

from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.facts import LoadedModel
from hx_gateway.fleet.ghosts import MOST_S, haunt, lay


@pytest.fixture
def deployment() -> Deployment:
    """A model on an Ollama server that has it in memory."""
    endpoint = Endpoint("e", Address("http", "192.0.2.1", 11434))
    endpoint.facts.engine = "ollama"
    endpoint.facts.memory = {"m": LoadedModel("m")}
    return Deployment("m", "m", endpoint)


def load(deployment: Deployment) -> tuple[int, int, float]:
    return deployment.in_flight, deployment.endpoint.in_flight, round(deployment.endpoint.pending_s, 6)


def test_the_place_is_taken_as_long_as_the_prompt_is_likely_read(deployment: Deployment) -> None:
    haunt(deployment, sent_s=100.0, expected_s=5.0, now_s=102.0)
    assert load(deployment) == (1, 1, 3.0)
    lay(deployment.endpoint, 104.9)
    assert load(deployment) == (1, 1, 3.0)
    lay(deployment.endpoint, 105.0)
    assert load(deployment) == (0, 0, 0.0)


def test_never_longer_than_the_cap(deployment: Deployment) -> None:
    haunt(deployment, sent_s=100.0, expected_s=3600.0, now_s=102.0)
    lay(deployment.endpoint, 102.0 + MOST_S)
    assert load(deployment) == (0, 0, 0.0)


def test_a_probe_that_finds_the_model_gone_frees_it(deployment: Deployment) -> None:
    haunt(deployment, sent_s=100.0, expected_s=20.0, now_s=101.0)
    facts = deployment.endpoint.facts
    facts.memory = {}
    facts.checked_s = 100.5  # from before the client left: tells nothing
    lay(deployment.endpoint, 102.0)
    assert load(deployment)[:2] == (1, 1)
    facts.checked_s = 101.5
    lay(deployment.endpoint, 102.0)
    assert load(deployment) == (0, 0, 0.0)


def test_nothing_is_taken_where_the_server_stops_or_has_read_already(deployment: Deployment) -> None:
    haunt(deployment, sent_s=100.0, expected_s=1.0, now_s=101.0)
    assert load(deployment) == (0, 0, 0.0)
    deployment.endpoint.facts.engine = "llamacpp"
    haunt(deployment, sent_s=100.0, expected_s=9.0, now_s=101.0)
    assert load(deployment) == (0, 0, 0.0)


def test_no_more_than_the_server_reads_at_once(deployment: Deployment) -> None:
    for slots, taken in ((0, 1), (3, 3)):
        deployment.endpoint.slots = slots
        for _ in range(9):
            haunt(deployment, sent_s=100.0, expected_s=5.0, now_s=101.0)
        assert load(deployment)[:2] == (taken, taken)
        lay(deployment.endpoint, 105.0)
        assert load(deployment) == (0, 0, 0.0)
