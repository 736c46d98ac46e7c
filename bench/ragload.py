"""How fast vectors are kept and found at the HTTP surface: 100,000 points of 384 numbers in the embedded store, and what chats beside feel of it.

Points come with their vectors, so that no model is measured: numbers at random, the hardest kind to find. A tenth of the points has a colour
each, by which filtered searches look. Chats come from the native load generator at a steady rate, in rounds without and with searches in turn;
what counts is the median of the rounds' p99. CPU is that of the worker and of the process that owns the vectors, by the kernel's clock.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.gateway import GatewayProcess, free_port

from bench.__main__ import built
from bench.processes import tree

DIMENSION = 384
_CONFIG = """
endpoints: {{one: {{url: "http://127.0.0.1:{port}", provider: openai}}}}
models: {{chat: {{endpoint: one, upstream_model: "mock", mode: chat}}}}
storage: {{state_directory: "{state}"}}
rag: {{max_documents: 1000}}
"""
SEARCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "filtered": {"filter": {"must": [{"key": "colour", "match": {"value": "c3"}}]}},
    "one namespace of two": {"namespace": "other"},
}


def vector() -> list[float]:
    """A direction at random."""
    return [number / 128 for number in memoryview(os.urandom(DIMENSION)).cast("b")]


class Caller:
    """Asks a gateway over one connection."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=600)
        self._headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}

    def ask(self, path: str, data: str) -> float:
        """The milliseconds until the answer was there; what is refused ends the program."""
        began_s = time.perf_counter()
        self._connection.request("POST", path, data, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        took_ms = 1e3 * (time.perf_counter() - began_s)
        if answer.status != 200 or (path.endswith("search") and text.count(b'"score"') != 10):
            raise SystemExit(f"{path}: {answer.status} {text[:500]!r}")
        return took_ms


def percentile(values: list[float], share: float) -> float:
    """One of the values, that so many are below."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def cpu_s(gateway: GatewayProcess) -> dict[str, float]:
    """CPU seconds so far of the processes of a gateway, by what they are."""
    spent: dict[str, float] = {}
    for pid in tree(gateway.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text()
            name = "owner" if "vectors.owner" in words else "worker" if pid == gateway.pid else "others"
            for task in Path(f"/proc/{pid}/task").iterdir():
                spent[name] = spent.get(name, 0.0) + int((task / "schedstat").read_text().split()[0]) / 1e9
    return spent


@contextlib.contextmanager
def spending(gateway: GatewayProcess, things: int, unit: str) -> Iterator[None]:
    """Print what each of so many things of the block took."""
    before, began_s = cpu_s(gateway), time.perf_counter()
    yield
    took_s, after = time.perf_counter() - began_s, cpu_s(gateway)
    parts = ", ".join(f"{name} {1e6 * (spent - before.get(name, 0.0)) / things:.0f}" for name, spent in sorted(after.items()))
    print(f"   {things / took_s:8.0f} {unit}/s; µs of the CPU for each: {parts}; load {os.getloadavg()[0]:.1f}", flush=True)


def ingest(gateway: GatewayProcess, first: int, points: int, batch: int, **more: str) -> None:
    """Store points by two connections, their JSON made before."""
    bodies = []
    for start in range(first, first + points, batch):
        documents = [
            {"id": str(number), "metadata": {"colour": f"c{number % 10}"}, "chunks": [{"text": f"point {number}", "vector": vector()}]}
            for number in range(start, min(start + batch, first + points))
        ]
        bodies.append(json.dumps({"documents": documents, **more}))
    with spending(gateway, points, "points"), ThreadPoolExecutor(2) as pool:
        callers = [Caller(gateway), Caller(gateway)]
        for done in [pool.submit(lambda n: [callers[n].ask("/v1/rag/upsert", body) for body in bodies[n::2]], n) for n in range(2)]:
            done.result()


def search(gateway: GatewayProcess, name: str, times: int) -> None:
    """Print how long searches take, one after another."""
    caller = Caller(gateway)
    bodies = [json.dumps({"vector": vector(), "limit": 10, **SEARCHES[name]}) for _ in range(times)]
    caller.ask("/v1/rag/search", bodies[0])  # the first of a filter has an index made
    with spending(gateway, times, "searches"):
        taken = [caller.ask("/v1/rag/search", body) for body in bodies]
    shares = "  ".join(f"p{100 * share:.0f} {percentile(taken, share):6.2f}" for share in (0.1, 0.5, 0.95, 0.99))
    print(f"searches, {name:22} {shares} ms", flush=True)


def chats(program: Path, gateway: GatewayProcess, rate: float, seconds: float) -> dict[str, Any]:
    """Latencies of chats at a steady rate, in microseconds from the intended moment."""
    words = [str(program), "-p", str(gateway.port), "-k", gateway.key, "-m", "chat", "-w", "chat", "-c", "8"]
    made = subprocess.run([*words, "-r", str(rate), "-d", str(seconds), "-u", "0.5"], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(made.stdout)
    if found["bad"] or found["non200"] or found["connerr"]:
        raise SystemExit(f"chats failed: {found}")
    return found


def beside(program: Path, gateway: GatewayProcess, rounds: int, rate: float, every_s: float) -> None:
    """Print what chats feel of searches: rounds without and with them in turn."""
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    taken: list[float] = []
    for number in range(2 * rounds):
        ended = threading.Event()

        def searching(ended: threading.Event = ended) -> None:
            caller = Caller(gateway)
            while not ended.wait(every_s):
                more = SEARCHES[("plain", "filtered")[len(taken) % 2]]
                taken.append(caller.ask("/v1/rag/search", json.dumps({"vector": vector(), "limit": 10, **more})))

        thread = threading.Thread(target=searching)
        if number % 2:
            thread.start()
        found[number % 2 == 1].append(chats(program, gateway, rate, 4.0))
        ended.set()
        if number % 2:
            thread.join()
    for searched, rows in found.items():
        told = "  ".join(f"{name} {median(row[name] for row in rows) / 1e3:6.2f}" for name in ("p50", "p90", "p99"))
        best = min(row["p99"] for row in rows) / 1e3
        print(f"chats, {rate:.0f}/s, {'searches beside' if searched else 'alone':22} {told} ms; best round's p99 {best:.2f}", flush=True)
    print(f"   {len(taken) / 4 / rounds:.0f} searches/s beside them, p50 {percentile(taken, 0.5):.2f} ms; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.ragload", description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1000, help="documents of an upsert")
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of chats alone, and as many with searches")
    parser.add_argument("--rate", type=float, default=200.0, help="chats a second")
    parser.add_argument("--every", type=float, default=0.02, metavar="SECONDS", help="between searches beside chats")
    parser.add_argument("--rest", type=float, default=10.0, metavar="SECONDS", help="wait after the ingest, until all is written out")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hx-bench", help="of the compiled load generator")
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    built(options.folder)
    port = free_port()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as state, subprocess.Popen([options.folder / "mock", str(port)]) as upstream:
        try:
            with GatewayProcess(_CONFIG.format(port=port, state=state)) as gateway:
                print(f"{options.points} points over HTTP, {options.batch} a request, two at a time")
                step = 20_000
                for first in range(0, options.points, step):
                    ingest(gateway, first, min(step, options.points - first), options.batch)
                time.sleep(options.rest)
                for name in ("plain", "filtered"):
                    search(gateway, name, options.searches)
                beside(options.folder / "loadgen", gateway, options.rounds, options.rate, options.every)
                ingest(gateway, options.points, options.points // 10, options.batch, namespace="other")
                search(gateway, "one namespace of two", options.searches)
                search(gateway, "filtered", options.searches)
        finally:
            upstream.kill()


if __name__ == "__main__":
    main()
