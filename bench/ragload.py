"""How fast vectors are found at the HTTP surface: 100,000 points of 384 numbers in the embedded store, with chats beside.

Points come with their vectors, so that no model is measured: whole numbers at random, the hardest kind to index. A tenth of the points has a
colour each, by which filtered searches look.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.support.background import scripted
from tests.support.gateway import GatewayProcess

DIMENSION = 384
_CONFIG = """
endpoints: {{one: {{url: "{url}", provider: openai}}}}
models: {{chat: {{endpoint: one, upstream_model: "tiny:1b", mode: chat}}}}
storage: {{state_directory: "{state}"}}
rag: {{max_documents: 1000}}
"""
_CHAT = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def vector() -> list[int]:
    """A direction at random."""
    return list(memoryview(os.urandom(DIMENSION)).cast("b"))


class Caller:
    """Asks a gateway over one connection."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=600)
        self._headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}

    def ask(self, path: str, body: Any) -> tuple[dict[str, Any], float]:
        """The answer, and the milliseconds until it was there; what is refused ends the program."""
        data = json.dumps(body)
        began_s = time.perf_counter()
        self._connection.request("POST", path, data, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        took_ms = 1e3 * (time.perf_counter() - began_s)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {text[:500]!r}")
        return dict(json.loads(text)), took_ms


def percentile(values: list[float], share: float) -> float:
    """One of the values, that so many are below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def told(name: str, values: list[float]) -> None:
    """Print a row."""
    print(
        f"{name:34} p50 {percentile(values, 0.5):6.2f} ms  p95 {percentile(values, 0.95):6.2f}  p99 {percentile(values, 0.99):6.2f}",
        flush=True,
    )


def chats(gateway: GatewayProcess, rate: float, until: Callable[[], bool]) -> list[float]:
    """Milliseconds of chats asked at a steady rate."""
    caller, taken = Caller(gateway), []
    due_s = time.perf_counter()
    while not until():
        taken.append(caller.ask("/v1/chat/completions", _CHAT)[1])
        due_s = max(due_s + 1 / rate, time.perf_counter())
        time.sleep(max(0.0, due_s - time.perf_counter()))
    return taken


def ingested(gateway: GatewayProcess, points: int, batch: int) -> float:
    """Store the points; how many a second, the time to write their JSON left out."""
    caller, spent_ms = Caller(gateway), 0.0
    for start in range(0, points, batch):
        documents = [
            {"id": str(number), "metadata": {"colour": f"c{number % 10}"}, "chunks": [{"text": f"point {number}", "vector": vector()}]}
            for number in range(start, min(start + batch, points))
        ]
        spent_ms += caller.ask("/v1/rag/upsert", {"documents": documents})[1]
    return 1e3 * points / spent_ms


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ragload", description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1000, help="documents of an upsert")
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--rest", type=float, default=30.0, metavar="SECONDS", help="wait after the ingest, for the index")
    options = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with (
        tempfile.TemporaryDirectory() as state,
        scripted("openai", models=("tiny:1b",)) as backend,
        GatewayProcess(_CONFIG.format(url=backend.url, state=state)) as gateway,
    ):
        print(f"{options.points} points ingested at {ingested(gateway, options.points, options.batch):.0f}/s over HTTP", flush=True)
        time.sleep(options.rest)
        until_s = time.perf_counter() + 10
        told("chats alone", chats(gateway, 50, lambda: time.perf_counter() > until_s))
        beside: list[float] = []
        ended = threading.Event()
        thread = threading.Thread(target=lambda: beside.extend(chats(gateway, 50, ended.is_set)))
        thread.start()
        caller = Caller(gateway)
        try:
            for name, more in (("plain", {}), ("filtered", {"filter": {"must": [{"key": "colour", "match": {"value": "c3"}}]}})):
                taken = [caller.ask("/v1/rag/search", {"vector": vector(), "limit": 10, **more})[1] for _ in range(options.searches)]
                told(f"searches, {name}, chats beside", taken)
        finally:
            ended.set()
            thread.join()
        told("chats, searches beside", beside)


if __name__ == "__main__":
    main()
