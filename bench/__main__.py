"""`python -m bench`: prints the table; nothing is asserted, because absolute times mean nothing on a shared machine."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers import KEY, Peer, peers
from bench.processes import busy_s, cpu_s, rss_mb, tree

NATIVE = Path(__file__).parent / "native"
UPSTREAM_PORTS = ("9101", "9102")
WORKLOADS = {
    "chat": (["-w", "chat", "-c", "64"], "one chat, 600 bytes in and 660 out, 64 connections"),
    "chat-differing": (["-w", "chat", "-c", "64", "-x"], "the same chat, no two heads alike, neither of requests nor of answers"),
    "embeddings": (["-w", "emb", "-c", "64"], "one embedding, 20 KB out, 64 connections"),
    "embeddings-differing": (["-w", "emb", "-c", "64", "-x"], "the same embedding, no two heads alike"),
    "chat-hit": (["-w", "chat", "-c", "64", "-H", "x-hx-cache: on"], "the same chat, answered from the cache (peer gateway-cache)"),
    "chat-miss": (["-w", "chat", "-c", "64", "-H", "x-hx-cache: refresh"], "the same chat, each answer asked for and kept"),
    "stream-miss": (["-w", "stream", "-c", "64", "-H", "x-hx-cache: refresh"], "64 streams, each asked for and kept"),
    "stream": (["-w", "stream", "-c", "64"], "64 streams of 100 events, as fast as they go"),
    "paced": (["-w", "stream", "-c", "500", "-g", "20"], "500 streams, 20 ms between events"),
    "held": (["-w", "stream", "-c", "2000", "-g", "100"], "2,000 streams, 100 ms between events"),
}
SECONDS = {"held": 12.0}


def built(folder: Path) -> None:
    """Compile load generator and upstream when they are missing or older than their source."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("the bench needs a C compiler (Debian: apt install gcc libc6-dev)")
    for name in ("mock", "loadgen"):
        source, target = NATIVE / f"{name}.c", folder / name
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.check_call([compiler, "-O2", "-w", "-o", str(target), str(source)])


def up(port: int) -> bool:
    """Whether a chat is answered there within a minute."""
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "hi"}]})
    for _ in range(240):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json", "authorization": f"Bearer {KEY}"})
            answer = connection.getresponse()
            if answer.status == 200 and b"chatcmpl-" in answer.read():
                return True
        connection.close()
        time.sleep(0.25)
    return False


@contextlib.contextmanager
def started(command: list[str], core: str, log: Path) -> Iterator[int]:
    """A process on one core for the time of the block."""
    environment = {**os.environ, "BENCH_KEY": KEY}
    with log.open("wb") as output:
        process = subprocess.Popen(["taskset", "-c", core, *command], stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield process.pid
    finally:
        for pid in tree(process.pid):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            for pid in tree(process.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def measured(folder: Path, pid: int, port: int, workload: str, seconds: float, core: str) -> dict[str, Any]:
    """One run: what the load generator saw, and what the proxy used meanwhile."""
    warm_s = 2.2 if workload in ("paced", "held") else 1.0
    generator = ["taskset", "-c", core, str(folder / "loadgen"), "-p", str(port), "-d", str(seconds), "-u", str(warm_s), "-k", KEY]
    with subprocess.Popen([*generator, *WORKLOADS[workload][0]], stdout=subprocess.PIPE, text=True) as load:
        time.sleep(warm_s)
        pids = tree(pid)
        cpu_before_s, busy_before_s, began_s = cpu_s(pids), busy_s(), time.monotonic()
        time.sleep(seconds)
        used_s, lasted_s = cpu_s(pids) - cpu_before_s, time.monotonic() - began_s
        figures: dict[str, Any] = {"rss_mb": rss_mb(pids)}
        figures["machine_pct"] = 100 * (busy_s() - busy_before_s) / lasted_s
        figures.update(json.loads(load.communicate()[0]))
    figures["cpu_pct"] = 100 * used_s / lasted_s
    figures["cpu_us"] = 1e6 * used_s / max(1, figures["ok"])
    if "chunks_s" in figures:
        figures["events_per_cpu_s"] = figures["chunks_s"] * lasted_s / max(0.001, used_s)
    return figures


def line(name: str, workload: str, figures: dict[str, Any]) -> str:
    """One row for people."""
    wrong = f"bad {figures['bad']}, not 200 {figures['non200']}, connection errors {figures['connerr']}"
    if "events_per_cpu_s" in figures:
        cost = f"{figures['events_per_cpu_s']:>9.0f} events per CPU-second"
    else:
        cost = f"{figures['cpu_us']:>9.1f} us CPU per request     "
    return f"{name:14} {workload:20} {cost}  CPU {figures['cpu_pct']:3.0f} %  {figures['rps']:>7.0f}/s  RSS {figures['rss_mb']:4.0f} MB  {wrong}"


def compare(folder: Path, chosen: dict[str, Peer], workloads: list[str], rounds: int, seconds: float, cores: list[str]) -> None:
    """All workloads on all peers, in turns, so that a slow minute of the machine hits them alike; the cheapest round counts."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for turn in range(rounds):
        for name, peer in chosen.items():
            with socket.socket() as probe:
                if not probe.connect_ex(("127.0.0.1", peer.port)):
                    sys.exit(f"something listens on port {peer.port} already: it would be taken for {name}")
            with started(peer.command, cores[0], folder / f"{name}.log") as pid:
                if not up(peer.port):
                    print(f"{name}: did not come up, see {folder / name}.log")
                    continue
                for workload in workloads:
                    figures = measured(folder, pid, peer.port, workload, SECONDS.get(workload, seconds), cores[1])
                    known = best.get((name, workload))
                    if known is not None:
                        for key in ("bad", "non200", "connerr"):
                            figures[key] += known[key]
                    if known is None or figures["cpu_us"] < known["cpu_us"]:
                        best[name, workload] = figures
                    else:
                        known.update({key: figures[key] for key in ("bad", "non200", "connerr")})
                    print(f"round {turn + 1}: {line(name, workload, figures)}", flush=True)
    print()
    for workload in workloads:
        print(f"{workload}: {WORKLOADS[workload][1]}")
        for name in chosen:
            if (name, workload) in best:
                print("  " + line(name, workload, best[name, workload]))


def soak(folder: Path, peer: Peer, requests: int, cores: list[str]) -> None:
    """Memory over many requests, in ten parts."""
    with started(peer.command, cores[0], folder / "soak.log") as pid:
        if not up(peer.port):
            sys.exit(f"the gateway did not come up, see {folder / 'soak.log'}")
        done = 0
        while done < requests:
            figures = measured(folder, pid, peer.port, "chat", 4.0, cores[1])
            done += figures["ok"]
            print(f"{done:>9} requests  RSS {figures['rss_mb']:6.1f} MB  bad {figures['bad']}  not 200 {figures['non200']}", flush=True)


def main() -> None:
    """Read the command line and measure."""
    asked = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    asked.add_argument("--peers", default="gateway,envoy,sglang-router,nginx,haproxy")
    asked.add_argument("--workloads", default="chat,chat-differing,embeddings,embeddings-differing,stream,paced", help=", ".join(WORKLOADS))
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--seconds", type=float, default=4.0)
    asked.add_argument("--cores", default="0,1", help="core of the proxy, core of load and upstream")
    asked.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hx-bench", help="for programs, peers and logs")
    asked.add_argument("--soak", type=int, default=0, metavar="REQUESTS", help="instead: memory of the gateway over so many requests")
    asked.add_argument(
        "--analytics", type=int, default=0, metavar="ROWS", help="instead: reports over so many rows on Postgres, a tenth on SQLite"
    )
    options = asked.parse_args()
    if options.analytics:
        from bench.analytics import analytics  # needs the gateway itself

        analytics(options.analytics)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    built(options.folder)
    cores = options.cores.split(",")
    chosen = peers(["gateway"] if options.soak else options.peers.split(","), options.folder)
    with started([str(options.folder / "mock"), *UPSTREAM_PORTS], cores[1], options.folder / "mock.log"):
        time.sleep(0.3)
        if options.soak:
            soak(options.folder, chosen["gateway"], options.soak, cores)
        else:
            compare(options.folder, chosen, options.workloads.split(","), options.rounds, options.seconds, cores)


if __name__ == "__main__":
    main()
