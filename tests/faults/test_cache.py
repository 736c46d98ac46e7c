"""The cache when things go wrong under it: servers die, clients leave, the configuration changes, Redis hangs."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator

import pytest
from tests.faults.asking import chat, opened
from tests.faults.conftest import CONFIG, Fleet, status_of, wait_until
from tests.integration.protocol.wire import Answer, Client, ask, request, texts
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess

from hx_gateway.testing.faults import Fault

LONG = " ".join(str(number) for number in range(1, 21))


@pytest.fixture(scope="module")
def cached() -> Iterator[Fleet]:
    servers = {name: Scripted("openai", models=("tiny:1b",)) for name in ("one", "two")}
    with servers["one"] as one, servers["two"] as two:
        config = (
            CONFIG.format(one=one.url, two=two.url, threshold=1000, rest_s=60, wait_s=5.0).replace("max_response_bytes: 1000000", "")
            + "cache: {enabled: true}\n"
        )
        with GatewayProcess(config) as gateway:
            yield Fleet(gateway, servers, one, two)
            assert "Traceback" not in gateway.log and "internal error" not in gateway.log, gateway.log[-4000:]


@pytest.fixture
def fleet(cached: Fleet) -> Iterator[Fleet]:
    yield cached
    for name, backend in (("one", cached.one), ("two", cached.two)):
        cached.fail(name, None)
        backend.first_token_s = backend.token_s = 0.0
    cached.until(Fleet.at_rest)


def streams(fleet: Fleet, content: str, count: int) -> list[Client]:
    """Clients that ask the same for a stream; the call for them is under way."""
    before = len(fleet.one.requests)
    clients = [opened(fleet.port, content, temperature=0) for _ in range(count)]
    fleet.until(lambda fleet: len(fleet.one.requests) > before)
    return clients


def results(clients: list[Client]) -> list[Answer]:
    """What each got; all must have got something."""
    answers = [client.answer() for client in clients]
    for client in clients:
        client.leave()
    return answers


def calls(fleet: Fleet, content: str) -> int:
    """How often the first server was asked that."""
    return sum(json.loads(one.body)["messages"][0]["content"] == content for one in fleet.one.requests if one.body)


def test_the_server_dies_before_the_first_byte(fleet: Fleet) -> None:
    fleet.fail("one", "close_head")
    fleet.one.first_token_s = 2.0  # until then all three must have come
    answers = results(streams(fleet, "Say it died", 3))
    assert {answer.status for answer in answers} == {502} and {answer.code for answer in answers} == {"upstream_reset"}
    assert len({answer.header("x-request-id") for answer in answers}) == 3 and calls(fleet, "Say it died") == 1
    fleet.fail("one", None)
    assert chat(fleet.port, "Say it died", temperature=0).header("x-hx-cache") == "miss"


def test_another_server_answers_for_all(fleet: Fleet) -> None:
    fleet.fail("one", "reset_head")
    clients = [opened(fleet.port, "Say two", "pair", temperature=0) for _ in range(3)]
    assert [texts(answer.events) for answer in results(clients)] == ["two"] * 3


def test_the_server_dies_after_the_first_byte(fleet: Fleet) -> None:
    fleet.one.token_s = 0.02
    fleet.fail("one", Fault("close_body", after=6))
    answers = results(streams(fleet, "Count to 20", 3))
    assert all(answer.status == 200 and answer.whole and answer.events[-1]["error"]["code"] == "stream_broken" for answer in answers)
    fleet.fail("one", None)
    again = chat(fleet.port, "Count to 20", temperature=0)
    assert again.header("x-hx-cache") == "miss" and again.content == LONG, "half an answer is not kept"


def test_whoever_leaves_the_others_get_it_all(fleet: Fleet) -> None:
    for leaving in (0, 2):
        content = f"Count to {30 + leaving}"
        fleet.one.token_s = 0.02
        clients = streams(fleet, content, 3)
        for client in clients:
            client.socket.recv(1, socket.MSG_PEEK)  # each has joined: a call that only one waits for ends with that one
        clients.pop(leaving).leave()
        answers = results(clients)
        assert [texts(answer.events) for answer in answers] == [" ".join(str(n) for n in range(1, 31 + leaving))] * 2
        assert calls(fleet, content) == 1
        assert chat(fleet.port, content, temperature=0).header("x-hx-cache") == "hit"


def test_when_all_have_left_the_server_is_told_at_once(fleet: Fleet) -> None:
    fleet.one.token_s = 0.05
    cancelled = fleet.one.cancelled
    clients = streams(fleet, "Count to 2000", 3)
    for client in clients:
        client.head()  # one that came when the others had left would have a call of its own
    for client in clients:
        client.leave()
    fleet.until(lambda fleet: fleet.one.cancelled == cancelled + 1)
    fleet.until(Fleet.at_rest)


def test_a_reload_disturbs_nobody(fleet: Fleet) -> None:
    fleet.one.token_s = 0.02
    first = streams(fleet, "Count to 25", 2)
    path = fleet.gateway.path
    path.write_text(path.read_text() + "\nmonitoring: {log_level: INFO}\naliases: {renewed: solo}\n")
    os.kill(fleet.gateway.pid, signal.SIGHUP)
    wait_until(lambda: chat(fleet.port, "ping", "renewed").status == 200)
    second = [opened(fleet.port, "Count to 25", temperature=0)]
    answers = results(first + second)
    assert len({texts(answer.events) for answer in answers}) == 1 and answers[0].events[-1] == "[DONE]"
    assert calls(fleet, "Count to 25") == 1, "also those who come after it share the call, or its answer"


def test_a_client_that_does_not_read_holds_up_nobody(fleet: Fleet) -> None:
    """The slow one reads nothing while the fast one gets all of an answer larger than the kernel's buffers."""
    content = "x" * 100_000
    slow = Client(fleet.port, receive_buffer=4096)
    slow.send(request(ask(content, stream=True, model="solo", temperature=0)))
    fast = opened(fleet.port, content, temperature=0)
    assert len(texts(fast.answer().events)) == 100_000
    assert len(texts(slow.answer().events)) == 100_000
    slow.leave()
    fast.leave()


def test_nothing_is_left_under_way(fleet: Fleet) -> None:
    wait_until(lambda: not any(deployment["in_flight"] for deployment in status_of(fleet.gateway).values()))
