"""Breakers as a client meets them: open after failures, closed by a good answer, and never against the last member."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from tests.faults.asking import chat
from tests.faults.conftest import Fleet, fleet_of
from tests.integration.protocol.wire import Answer

REST_S = 3.0  # what has to happen while a breaker is open takes a tenth of a second, and longer on a busy machine


@pytest.fixture
def fragile() -> Iterator[Fleet]:
    """A fleet whose breakers open after three failures, for so long."""
    yield from fleet_of(threshold=3, rest_s=REST_S, wait_s=5.0)


def asked(fleet: Fleet) -> int:
    """Requests that reached the first server."""
    return len([received for received in fleet.one.requests if received.method == "POST"])


def test_it_opens_is_passed_over_and_closes_again(fragile: Fleet) -> None:
    fleet = fragile
    fleet.fail("one", "status status=500")
    for _ in range(3):
        assert chat(fleet.port, model="pair").content == "pong"  # the second server answers
    assert fleet.status()["first"]["breaker"]["state"] == "open"
    before = asked(fleet)
    for _ in range(5):
        answer = chat(fleet.port, model="pair")
        assert answer.header("x-hx-endpoint") == "two" and answer.header("x-hx-attempts") is None
    assert asked(fleet) == before, "the failing server was asked while its breaker was open"
    time.sleep(REST_S)
    assert chat(fleet.port, model="pair").content == "pong"  # the trial fails, and nobody notices
    assert asked(fleet) == before + 1
    assert fleet.status()["first"]["breaker"]["state"] == "open"
    fleet.fail("one", None)
    time.sleep(REST_S)
    answer = chat(fleet.port, model="pair")
    assert answer.header("x-hx-endpoint") == "one"
    breaker = fleet.status()["first"]["breaker"]
    assert (breaker["state"], breaker["failures"]) == ("closed", 0)


def test_the_last_member_is_never_shut_out(fragile: Fleet) -> None:
    """Each request is its trial, at once; what comes while one is under way is told when to come again."""
    fleet = fragile
    fleet.fail("one", "status status=500")
    for number in range(6):
        answer = chat(fleet.port)
        assert (answer.status, answer.code) == (500, "upstream_error")
        assert asked(fleet) == number + 1
    assert fleet.status()["solo"]["breaker"]["state"] == "open"
    fleet.fail("one", None)
    fleet.one.first_token_s = 2.0
    got: list[Answer] = []
    threads = [threading.Thread(target=lambda: got.append(chat(fleet.port))) for _ in range(6)]
    before = asked(fleet)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(fleet) == before + 1, "more than one trial at a time"
    statuses = sorted(answer.status for answer in got)
    assert statuses == [200] + [503] * 5
    for answer in got:
        if answer.status == 503:
            assert answer.code == "no_healthy_deployment"
            assert 1 <= int(answer.header("retry-after") or 0) <= REST_S
    assert fleet.status()["solo"]["breaker"]["state"] == "closed"
    assert chat(fleet.port).status == 200


def test_a_trial_whose_client_leaves_does_not_shut_it_out(fragile: Fleet) -> None:
    fleet = fragile
    fleet.fail("one", "status status=500")
    for _ in range(3):
        chat(fleet.port)
    fleet.fail("one", None)
    fleet.one.first_token_s = 20.0
    from tests.faults.asking import opened

    with opened(fleet.port, "ping"):
        fleet.servers["one"].until(lambda backend: backend.in_flight > 0)
    fleet.until(Fleet.at_rest)
    fleet.one.first_token_s = 0.0
    assert chat(fleet.port).status == 200
    assert fleet.status()["solo"]["breaker"]["state"] == "closed"


def test_refusals_open_nothing(fragile: Fleet) -> None:
    fleet = fragile
    for fault in ("status status=400", "status status=422", "too_long"):
        fleet.fail("one", fault)
        for _ in range(4):
            assert chat(fleet.port).status in (400, 422)
    assert fleet.status()["solo"]["breaker"] == {"state": "closed", "failures": 0, "retry_after_s": 0.0}


def test_streams_that_break_count(fragile: Fleet) -> None:
    fleet = fragile
    fleet.one.token_s = 0.01
    fleet.fail("one", "reset_body")
    for _ in range(3):
        assert chat(fleet.port, "Count to 9", stream=True).events[-1]["error"]["code"] == "stream_broken"
    assert fleet.status()["solo"]["breaker"]["state"] == "open"


def test_a_server_that_dies_and_comes_back_between_two_rounds_serves_again_long_before_the_next() -> None:
    """Rounds are an hour apart here and breakers rest for ten minutes: only a probe out of turn can let it back."""
    for fleet in fleet_of(threshold=3, rest_s=600.0, wait_s=5.0):
        for fault, breaker in (("refuse", "endpoint_breaker"), ("status status=500", "breaker")):
            fleet.until(lambda it: chat(it.port, model="pair").header("x-hx-endpoint") == "one")
            fleet.fail("one", fault)
            fleet.until(lambda it, state=breaker: not_closed(it, state))
            assert chat(fleet.port, model="pair").header("x-hx-endpoint") == "two"
            fleet.fail("one", None)
            fleet.until(lambda it: chat(it.port, model="pair").header("x-hx-endpoint") == "one", within_s=60.0)
            assert fleet.status()["first"][breaker]["state"] == "closed"


def not_closed(fleet: Fleet, breaker: str) -> bool:
    """Ask, and see whether the breaker has opened."""
    assert chat(fleet.port, model="pair").content == "pong"
    return bool(fleet.status()["first"][breaker]["state"] != "closed")


def test_a_server_that_is_gone_is_left_alone_until_it_is_back(fragile: Fleet) -> None:
    fleet = fragile
    fleet.fail("one", "refuse")
    for _ in range(3):
        assert chat(fleet.port, model="pair").content == "pong"
    assert fleet.status()["first"]["endpoint_breaker"]["state"] == "open"
    answer = chat(fleet.port, model="pair")
    assert answer.header("x-hx-attempts") is None and answer.header("x-hx-endpoint") == "two"
    fleet.fail("one", None)
    time.sleep(REST_S)
    fleet.until(lambda it: chat(it.port, model="pair").header("x-hx-endpoint") == "one")
    assert fleet.status()["first"]["endpoint_breaker"]["state"] == "closed"
