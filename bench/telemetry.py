"""`python -m bench.telemetry`: what counting, recording, logging and tracing one chat costs, in µs of the CPU, each by itself.

Each figure is the least of many short rounds: what others do on the machine only adds.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hx_gateway.core.clock import SystemClock
from hx_gateway.core.context import CHAT, Exchange, Identity
from hx_gateway.fleet.deployment import Deployment
from hx_gateway.fleet.endpoint import Address, Endpoint
from hx_gateway.fleet.registry import Target
from hx_gateway.ledger.journal import Journal
from hx_gateway.ledger.observer import Ledger
from hx_gateway.openai.requests import look
from hx_gateway.telemetry.lines import Lines
from hx_gateway.telemetry.logs import configure_logs
from hx_gateway.telemetry.metrics import Metrics
from hx_gateway.telemetry.otlp import Exporter
from hx_gateway.telemetry.tracing import Tracing
from hx_gateway.testing.factories import DeafClient

ROUNDS, COUNT = 400, 250
_COLLECTOR = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def a_chat(stream: bool = False) -> Exchange:
    """An exchange that was answered."""
    now_s = time.monotonic()
    body = b'{"model": "mock", "stream": %b, "messages": [{"role": "user", "content": "hi"}]}' % (b"true" if stream else b"false")
    exchange = Exchange(
        "01K" + "0" * 23, CHAT, b"POST", b"/", {}, [b"accept: */*\r\nuser-agent: bench\r\n"], body, DeafClient(), now_s - 0.3
    )
    exchange.deployment = one = Deployment("mock", "mock", Endpoint("mock-1", Address("http", "127.0.0.1", 9)))
    exchange.candidates = Target("mock", "model", (one,))
    exchange.identity, exchange.facts, exchange.asked = Identity("bench"), look(CHAT, body), "mock"
    exchange.attempts, exchange.status, exchange.prompt_tokens, exchange.completion_tokens = 1, 200, 120, 100
    exchange.call_s, exchange.first_byte_s = now_s - 0.299, now_s - 0.001
    return exchange


def cost_us(work: Callable[[], object], between: Callable[[], object] = lambda: None) -> float:
    """The least mean of a round, with what has to be done after each round counted as well."""
    found = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(COUNT):
            work()
        between()
        found.append((time.process_time() - began_s) / COUNT * 1e6)
    return min(found)


def traced(tracing: Tracing, exchange: Exchange, forward: list[bytes]) -> Callable[[], None]:
    """One exchange's way past the tracing."""

    def run() -> None:
        exchange.trace, exchange.forward = None, forward
        tracing(exchange)
        tracing.attempted(exchange, None)
        tracing.finished(exchange)

    return run


def main() -> None:
    """Measure and print."""
    exchange, stream = a_chat(), a_chat(True)
    metrics = Metrics(SystemClock())
    figures = {
        "metrics, a whole answer": cost_us(lambda: (metrics.attempted(exchange, None), metrics.finished(exchange))),
        "metrics, a stream": cost_us(lambda: (metrics.attempted(stream, None), metrics.finished(stream))),
        "metrics brought up to date (per round)": COUNT * cost_us(lambda: None, metrics.flush),
    }
    with tempfile.TemporaryDirectory() as folder, open("/dev/null", "w") as nowhere, contextlib.ExitStack() as stack:
        ledger = Ledger()
        ledger.journal = Journal(Path(folder), 1 << 26, 1 << 30, 1 << 20)
        ledger.journal.start()
        stack.callback(ledger.journal.stop)
        figures["ledger"] = cost_us(lambda: ledger.finished(exchange))
        configure_logs("INFO", "json", nowhere)
        lines = Lines(1 << 60)

        def write() -> None:
            lines.tick()
            while lines._queue:
                time.sleep(0.0002)

        figures["a line, written"] = cost_us(lambda: lines.finished(exchange), write)
        some = Lines(100)
        figures["a line, most left out"] = cost_us(lambda: some.finished(exchange), some.tick)
        logging.getLogger().handlers.clear()
    with subprocess.Popen([sys.executable, "-c", _COLLECTOR], stdout=subprocess.PIPE) as collector:
        assert collector.stdout is not None
        exporter = Exporter(f"http://127.0.0.1:{int(collector.stdout.readline())}/v1/traces", "bench")
        for name, share in (("tracing, nothing sampled", 0.0), ("tracing, 1 % sampled", 0.01)):
            tracing = Tracing(share, exporter.put, metrics.book)
            run = traced(tracing, exchange, exchange.forward)
            began_s = time.process_time()
            for _ in range(20):
                for _ in range(2000):
                    run()
                exporter.tick()
                time.sleep(0.3)  # its threads count, too
            figures[name] = (time.process_time() - began_s) / 40_000 * 1e6
        time.sleep(2.0)
        print(f"{exporter.made} spans made, {exporter.lost} lost")
        exporter.stop()
        collector.terminate()
    for name, microseconds in figures.items():
        print(f"{name:<40} {microseconds:6.2f} µs")


if __name__ == "__main__":
    main()
