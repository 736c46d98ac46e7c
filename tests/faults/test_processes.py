"""Model servers that are killed, stopped or deaf while they answer: real processes, real signals."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest
from tests.faults.asking import chat, opened
from tests.faults.conftest import CONFIG, status_of, wait_until
from tests.faults.processes import ServerProcess
from tests.integration.protocol.wire import Client, ask, events, request, texts
from tests.support.background import scripted
from tests.support.gateway import GatewayProcess

KILLED_WAIT_S = 25.0


@contextmanager
def stage(*options: str, wait_s: float = 1.2) -> Iterator[tuple[GatewayProcess, ServerProcess]]:
    """A gateway, the server that will suffer, and another that is well; where that is killed, nothing may end for having waited too long."""
    with (
        ServerProcess(*options) as one,
        scripted("openai", models=("tiny:1b",)) as two,
        GatewayProcess(CONFIG.format(one=one.url, two=two.url, threshold=5, rest_s=60, wait_s=wait_s)) as gateway,
    ):
        yield gateway, one
        wait_until(lambda: not any(deployment["in_flight"] for deployment in status_of(gateway).values()))
        assert "Traceback" not in gateway.log and "internal error" not in gateway.log, gateway.log[-4000:]


def under_way(gateway: GatewayProcess, model: str) -> None:
    """Wait until a request is at the server."""
    wait_until(lambda: status_of(gateway)[model]["in_flight"] > 0)


def back_again(gateway: GatewayProcess, one: ServerProcess) -> None:
    """Start the server again on its port; the very next requests are answered."""
    with ServerProcess(port=one.port):
        wait_until(lambda: chat(gateway.port).status == 200)
        assert chat(gateway.port, "it is back").content == "it is back"


@pytest.mark.parametrize("stream", [False, True])
def test_killed_before_it_said_anything(stream: bool) -> None:
    with stage("--first-token-s", "30", wait_s=KILLED_WAIT_S) as (gateway, one):
        with Client(gateway.port) as client, Client(gateway.port) as lucky:
            client.send(request(ask("ping", stream=stream, model="solo")))
            lucky.send(request(ask("ping", stream=stream, model="pair")))
            under_way(gateway, "solo")
            under_way(gateway, "first")
            one.signal(SIGKILL)
            answer = client.answer()
            assert (answer.status, answer.code) == (502, "upstream_reset")
            answer = lucky.answer()
            assert answer.status == 200 and answer.header("x-hx-endpoint") == "two"
            assert (texts(answer.events) if stream else answer.content) == "pong"
        answer = chat(gateway.port)
        assert (answer.status, answer.code) == (502, "upstream_connect_failed")
        assert chat(gateway.port, "next", model="pair").content == "next"
        back_again(gateway, one)


def test_killed_in_the_middle_of_a_whole_answer() -> None:
    with stage("--fault", "black_hole", wait_s=KILLED_WAIT_S) as (gateway, one):
        with Client(gateway.port) as client, Client(gateway.port) as lucky:
            client.send(request(ask("ping", model="solo")))
            lucky.send(request(ask("ping", model="pair")))
            under_way(gateway, "solo")
            under_way(gateway, "first")
            one.signal(SIGKILL)
            answer = client.answer()
            assert (answer.status, answer.code) == (502, "upstream_reset")
            assert lucky.answer().content == "pong"
        back_again(gateway, one)


@pytest.mark.parametrize("model", ["solo", "pair"])
def test_killed_in_the_middle_of_a_stream(model: str) -> None:
    with stage("--token-s", "0.02", wait_s=KILLED_WAIT_S) as (gateway, one):
        with opened(gateway.port, "Count to 1000", model) as client:
            assert client.head()[0] == 200
            body = b"".join(client.chunk() for _ in range(6))
            one.signal(SIGKILL)
            while piece := client.chunk():
                body += piece
            *good, last = events(body)
            assert last["error"]["code"] == "stream_broken"
            assert texts(good).startswith("1 2 3") and "[DONE]" not in good
        assert chat(gateway.port, "next", model="pair").content == "next"
        back_again(gateway, one)


def test_stopped_before_it_was_asked() -> None:
    """The kernel still takes the connection; nobody reads it."""
    with stage() as (gateway, one):
        assert chat(gateway.port).status == 200
        one.signal(SIGSTOP)
        answer = chat(gateway.port)
        assert (answer.status, answer.code) == (504, "first_token_timeout")
        assert chat(gateway.port, "elsewhere", model="pair").content == "elsewhere"
        one.signal(SIGCONT)
        assert chat(gateway.port, "awake").content == "awake"


def test_stopped_in_the_middle_of_a_stream() -> None:
    with stage("--token-s", "0.02") as (gateway, one):
        with opened(gateway.port, "Count to 1000") as client:
            assert client.head()[0] == 200
            body = client.chunk()
            one.signal(SIGSTOP)
            while piece := client.chunk():
                body += piece
            *good, last = events(body)
            assert last["error"]["code"] == "stream_stalled"
            assert good and "[DONE]" not in good
        one.signal(SIGCONT)
        assert chat(gateway.port, "awake").content == "awake"


class Deaf:
    """Takes connections and never reads them."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.taken: list[socket.socket] = []
        self.thread = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        while True:
            try:
                self.taken.append(self.listener.accept()[0])
            except OSError:
                return

    def __enter__(self) -> Deaf:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.taken:
            connection.close()
        self.thread.join()


def test_a_server_that_never_reads() -> None:
    """Its socket's buffers fill with our request; the deadline ends it, and others are served meanwhile."""
    big = "x" * 16_000_000
    with Deaf() as deaf, scripted("openai", models=("tiny:1b",)) as two:
        url = f"http://127.0.0.1:{deaf.listener.getsockname()[1]}"
        with GatewayProcess(CONFIG.format(one=url, two=two.url, threshold=5, rest_s=60, wait_s=1.2)) as gateway:
            with Client(gateway.port) as client:
                client.send(request(ask(big, model="solo")))
                under_way(gateway, "solo")
                assert chat(gateway.port, "meanwhile", model="second").content == "meanwhile"
                answer = client.answer()
                assert (answer.status, answer.code) == (504, "first_token_timeout")
            assert chat(gateway.port, "elsewhere", model="pair").content == "elsewhere"
            wait_until(lambda: not any(deployment["in_flight"] for deployment in status_of(gateway).values()))
