"""The gateway's own end: a drain in order, and a worker that dies under load."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path

import psutil
from tests.faults.asking import chat, opened
from tests.faults.conftest import wait_until
from tests.integration.protocol.conftest import PLAIN
from tests.integration.protocol.wire import Client, Closed, ask, events, request, texts
from tests.support.background import Scripted
from tests.support.gateway import GatewayProcess


def test_drain() -> None:
    """Streams and answers under way are finished, new connections are refused, and the exit status is 0."""
    with Scripted("openai", models=("tiny:1b",), token_s=0.03, first_token_s=0.05) as backend:
        gateway = GatewayProcess(PLAIN.format(url=backend.url))
        gateway.start()
        with (
            opened(gateway.port, "Count to 50", "tiny") as stream,
            Client(gateway.port) as whole,
            Client(gateway.port) as idle,
            Client(gateway.port) as half,
        ):
            idle.send(request())
            assert idle.answer().content == "pong"
            assert stream.head()[0] == 200
            first = stream.chunk()
            whole.send(request(ask("Count to 30")))
            late = request(ask("was under way"))
            half.send(late[:-10])
            wait_until(lambda: backend.in_flight == 2)
            os.kill(gateway.pid, signal.SIGTERM)
            assert idle.end() == b""
            wait_until(lambda: refused(gateway.port))
            half.send(late[-10:])
            answer = half.answer()
            assert answer.content == "was under way" and answer.header("connection") == "close"
            answer = whole.answer()
            assert answer.content.endswith(" 30")
            assert whole.end() == b""
            body = first
            while piece := stream.chunk():
                body += piece
            assert events(body)[-1] == "[DONE]"
            assert texts(events(body)).endswith(" 50")
            assert stream.end() == b""
        assert gateway.process is not None
        assert gateway.process.wait(20) == 0
        assert "Traceback" not in gateway.log
        assert backend.cancelled == 0


def refused(port: int) -> bool:
    """Whether nobody takes a new connection."""
    try:
        Client(port).leave()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_has_an_end() -> None:
    with Scripted("openai", models=("tiny:1b",), token_s=0.05) as backend:
        gateway = GatewayProcess(PLAIN.format(url=backend.url) + "http: {drain_timeout_seconds: 1}\n")
        gateway.start()
        with opened(gateway.port, "Count to 5000", "tiny") as client:
            assert client.head()[0] == 200
            assert gateway.stop() == 0
            try:
                while client.chunk():
                    pass
                raise AssertionError("a stream that was broken off looks complete")
            except Closed:
                pass
        wait_until(lambda: backend.in_flight == 0)


def children(pid: int) -> set[int]:
    """Process ids of a process's children."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_a_worker_killed_under_load() -> None:
    """The other one serves on, a new one takes its place, and clients lose only what was on the dead one."""
    with Scripted("openai", models=("tiny:1b",)) as backend, GatewayProcess(PLAIN.format(url=backend.url), workers=2) as gateway:
        wait_until(lambda: gateway.log.count("listening on") == 2)
        over = threading.Event()
        got: Counter[str] = Counter()

        def load() -> None:
            while not over.is_set():
                try:
                    got[str(chat(gateway.port, "ping", "tiny").status)] += 1
                except (Closed, OSError):
                    got["lost"] += 1

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: got["200"] > 50)
            before = children(gateway.pid)
            victim = min(before)
            os.kill(victim, signal.SIGKILL)
            served = got["200"]
            wait_until(lambda: got["200"] > served + 50)
            wait_until(lambda: len(children(gateway.pid)) == 2 and victim not in children(gateway.pid), 20)
            served = got["200"]
            wait_until(lambda: got["200"] > served + 50)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert set(got) <= {"200", "lost"}, got
        assert got["lost"] <= 8, got
        assert "another takes its place" in gateway.log
        os.kill(gateway.pid, signal.SIGTERM)
        assert gateway.process is not None and gateway.process.wait(20) == 0


def test_answers_under_way_on_the_other_worker_go_on() -> None:
    with (
        Scripted("openai", models=("tiny:1b",), token_s=0.05) as backend,
        GatewayProcess(PLAIN.format(url=backend.url), workers=2) as gateway,
    ):
        wait_until(lambda: gateway.log.count("listening on") == 2)
        clients = [opened(gateway.port, "Count to 40", "tiny") for _ in range(12)]
        for client in clients:
            assert client.head()[0] == 200
        os.kill(min(children(gateway.pid)), signal.SIGKILL)
        ends = []
        for client in clients:
            body = b""
            try:
                while piece := client.chunk():
                    body += piece
                ends.append(texts(events(body)).endswith(" 40"))
            except Closed:
                ends.append(False)
            client.leave()
        assert any(ends), "both workers' answers were lost"
        assert chat(gateway.port, "ping", "tiny").status == 200


def test_a_worker_whose_successor_cannot_start_does_not_take_the_others_along(tmp_path: Path) -> None:
    """As when a package is replaced under a running gateway: it is tried again until it can start."""
    plugin = tmp_path / "hx_half_replaced.py"
    plugin.write_text("def build(gateway):\n    return lambda exchange: None\n")
    stages = 'pipeline: {stages: [authenticate, "hx_half_replaced:build", inspect, resolve, limits, admission]}\n'
    paths = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with (
        Scripted("openai", models=("tiny:1b",)) as backend,
        GatewayProcess(PLAIN.format(url=backend.url) + stages, {"PYTHONPATH": paths}, workers=2) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(request())
        assert client.answer().content == "pong"
        (worker,) = (
            child.pid
            for child in psutil.Process(gateway.pid).children()
            if any(one.status == "ESTABLISHED" and one.laddr.port == gateway.port for one in child.net_connections())
        )
        whole = plugin.read_text()
        plugin.write_text("raise OSError('half of it is there')\n")
        other = next(child.pid for child in psutil.Process(gateway.pid).children() if child.pid != worker)
        os.kill(other, signal.SIGKILL)
        wait_until(lambda: gateway.log.count("another takes its place") >= 2, 30)
        client.send(request())
        assert client.answer().content == "pong"
        plugin.write_text(whole)
        wait_until(lambda: gateway.log.count("listening on") == 3, 60)
        assert all(chat(gateway.port, model="tiny").content == "pong" for _ in range(8))
