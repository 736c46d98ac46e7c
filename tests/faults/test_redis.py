"""Redis stopped, hung, out of reach and talking nonsense while gateways are under load: no chat fails, and limits are kept."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.conftest import wait_until
from tests.integration.protocol.wire import one, request
from tests.support.background import scripted
from tests.support.engines import Valkey
from tests.support.gateway import GatewayProcess
from tests.support.offering import most_in, offer

CONFIG = """
models: {{tiny: {{endpoint: "{url}", provider: openai, upstream_model: "tiny:1b"}}}}
keys:
  api_keys:
    - {{name: wide, key: env:WIDE_KEY, limits: {{requests_per_second: 100000, tokens_per_minute: 1000000000, max_concurrent: 10000}}}}
    - {{name: narrow, key: env:NARROW_KEY, limits: {{requests_per_second: 20, burst: 4}}}}
"""
PATIENT_S = 0.2
PATIENT = f"storage: {{redis_budget_seconds: {PATIENT_S}}}\n"
"""A busy build server is no outage: one gateway alone would take its part on top of the shared whole."""
RATE, BURST = 20, 4
LOAD_S = 3.2
BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}).encode()


class Between:
    """A connection through here to a Redis can be made to swallow everything, or to answer nonsense."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.mode = "pass"
        self.port = 0
        self._line: list[socket.socket] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.port = self._listener.getsockname()[1]
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener.dup(), backlog=1))
        self._ready.set()
        self._loop.run_forever()

    def deaf(self) -> None:
        """Take no connection any more: those that wait for it fill the line, and the first packet of every other one vanishes."""

        async def close() -> None:
            self._server.close()

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(10)
        for _ in range(8):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", self.port))
            self._line.append(waiting)

    def hear(self) -> None:
        """Take connections again."""
        while self._line:
            self._line.pop().close()

        async def serve() -> None:
            self._server = await asyncio.start_server(self._serve, sock=self._listener.dup(), backlog=1)

        asyncio.run_coroutine_threadsafe(serve(), self._loop).result(10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.to)
            await asyncio.gather(self._pump(reader, forth, writer), self._pump(back, writer, None))
        except OSError:
            pass
        finally:
            writer.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answer: asyncio.StreamWriter | None) -> None:
        while data := await source.read(65536):
            if self.mode == "pass":
                sink.write(data)
            elif self.mode == "nonsense" and answer is not None:
                answer.write(b"\x00\xff nonsense $5\r\n*-7\r\n" * 20)
        sink.close()

    def __enter__(self) -> Between:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._listener.close()


@contextmanager
def stopped(server: Valkey, between: Between) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def hung(server: Valkey, between: Between) -> Iterator[None]:
    server.hang()
    yield
    server.resume()


@contextmanager
def swallowed(server: Valkey, between: Between) -> Iterator[None]:
    between.mode = "swallow"
    yield
    between.mode = "pass"


@contextmanager
def nonsense(server: Valkey, between: Between) -> Iterator[None]:
    between.mode = "nonsense"
    yield
    between.mode = "pass"


def deps(gateway: GatewayProcess) -> dict[str, object]:
    found: dict[str, object] = json.loads(one(gateway.port, request(b"", method="GET", path="/healthz/deps", length=False, key="")).body)
    return found


def redis_of(gateway: GatewayProcess) -> object:
    return deps(gateway)["redis"]


@contextmanager
def black_hole(server: Valkey, between: Between) -> Iterator[None]:
    """What is sent on a connection vanishes, and so does every attempt to make another."""
    between.mode = "swallow"
    between.deaf()
    yield
    between.hear()
    between.mode = "pass"


@contextmanager
def two_gateways(own_valkey: Valkey, tmp_path: Path, more: str) -> Iterator[tuple[list[GatewayProcess], Between]]:
    """Two gateways with their own state, one Redis, and what stands between."""
    with ExitStack() as stack:
        between = stack.enter_context(Between(own_valkey.port))
        backend = stack.enter_context(scripted("openai", models=("tiny:1b",)))
        address = f"redis://127.0.0.1:{between.port}/0"
        environment = {"WIDE_KEY": "key-of-the-wide", "NARROW_KEY": "key-of-the-narrow", "REDIS_URL": address}
        gateways = [
            stack.enter_context(
                GatewayProcess(CONFIG.format(url=backend.url) + more, {**environment, "XDG_STATE_HOME": str(tmp_path / str(number))})
            )
            for number in range(2)
        ]
        wait_until(lambda: all("2 gateways" in str(deps(gateway)["details"]) for gateway in gateways), 30)
        yield gateways, between
        for gateway in gateways:
            assert "Traceback" not in gateway.log and "the gateway goes on without it" in gateway.log
            assert gateway.log.count("is away") < 30, "it is said when it changes, not again and again"


async def test_no_chat_fails_and_limits_are_kept(own_valkey: Valkey, tmp_path: Path) -> None:
    with two_gateways(own_valkey, tmp_path, PATIENT) as (gateways, between):
        await suffered(gateways, own_valkey, between)


async def suffered(gateways: list[GatewayProcess], server: Valkey, between: Between) -> None:
    ports = [gateway.port for gateway in gateways]
    for trouble in (stopped, hung, swallowed, nonsense):
        wide = asyncio.create_task(offer(ports, 100, LOAD_S, "key-of-the-wide", BODY))
        narrow = asyncio.create_task(offer(ports, 60, LOAD_S, "key-of-the-narrow", BODY))
        await asyncio.sleep(0.8)
        with trouble(server, between):
            await asyncio.sleep(1.2)
            assert await asyncio.to_thread(lambda: [redis_of(gateway) for gateway in gateways]) == [False, False], trouble.__name__
        chats, limited = await wide, await narrow
        assert {(got.status, got.code) for got in chats} == {(200, "")}, trouble.__name__
        times = [got.at_s for got in limited if got.status == 200]
        assert {got.status for got in limited} == {200, 429}, trouble.__name__
        # What came while an answer was waited for is decided later than it came. One that is back a moment before the other has the
        # whole rate again, while the other still takes its half.
        assert most_in(times) <= RATE * (1 + PATIENT_S) + BURST + RATE / 2 * (PATIENT_S + 0.5), trouble.__name__
        assert 0.8 * RATE * LOAD_S <= len(times) <= BURST + RATE * (LOAD_S + PATIENT_S) + 6, (trouble.__name__, len(times))
        await asyncio.to_thread(wait_until, lambda: all(redis_of(gateway) for gateway in gateways), 10.0)
        await asyncio.sleep(0.5)


async def test_a_black_hole_costs_no_chat_and_no_more_than_one_wait(own_valkey: Valkey, tmp_path: Path) -> None:
    """With the patience of 20 ms that it has where nobody says otherwise."""
    with two_gateways(own_valkey, tmp_path, "") as (gateways, between):

        def late() -> list[int]:
            """How often each gateway waited in vain."""
            return [gateway.log.count("no answer within 20 ms") for gateway in gateways]

        ports = [gateway.port for gateway in gateways]
        wide = asyncio.create_task(offer(ports, 200, LOAD_S, "key-of-the-wide", BODY))
        narrow = asyncio.create_task(offer(ports, 60, LOAD_S, "key-of-the-narrow", BODY))
        await asyncio.sleep(0.6)
        with black_hole(own_valkey, between):
            began_s, before = time.time(), late()
            await asyncio.sleep(1.8)
            assert await asyncio.to_thread(lambda: [redis_of(gateway) for gateway in gateways]) == [False, False]
            ended_s, after = time.time(), late()
        chats, limited = await wide, await narrow
        assert {(got.status, got.code) for got in chats} == {(200, "")}
        assert {got.status for got in limited} == {200, 429}
        # One that alone is without it, as a busy machine may well be for a moment, takes its part on top of the shared whole.
        times = [got.at_s for got in limited if got.status == 200]
        assert most_in(times) <= 1.5 * RATE + BURST + 3
        within = [at_s for at_s in times if began_s + 0.5 < at_s < ended_s]
        assert BURST <= len(within) <= RATE * (ended_s - began_s - 0.5) + BURST + 2
        assert all(last <= first + 1 for first, last in zip(before, after, strict=True)), "nobody waits again while it is away"
        slow = sorted(got.took_s for got in chats)
        print(f"median {slow[len(slow) // 2] * 1000:.1f} ms, longest {slow[-3:]} s")
        await asyncio.to_thread(wait_until, lambda: all(redis_of(gateway) for gateway in gateways), 20.0)
