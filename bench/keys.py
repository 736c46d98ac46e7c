"""`python -m bench.keys`: what limits, journal and metrics add to a bare key check, in µs of the CPU for one chat.

Gateways that differ in nothing else stand side by side on one core and are asked in turns, a short round each; of each the cheapest quarter
of its rounds counts, since the others were disturbed, and only the process that serves: the housekeeper works on the other core. Two processes
of the same program can differ by a tenth for as long as they live: there are several sets of them. Metrics cannot be switched off: what they
take is measured by itself. Envoy takes its turn among them: a machine is known by what a chat costs there, and the sum is also told as it would be
where that is 29.5 µs, as on the machine of the bounds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from unittest.mock import patch

from bench.__main__ import UPSTREAM_PORTS, WORKLOADS, built, started, up
from bench.peers import HERE, KEY, peers
from bench.processes import tree
from bench.telemetry import a_chat
from hx_gateway.housekeeping import read_state
from hx_gateway.telemetry.metrics import Metrics

VARIANTS = {
    "bare key": ("gateway.yaml", 8101, {"HX__LEDGER__ENABLED": "false"}),
    "with the journal": ("gateway.yaml", 8102, {}),
    "with limits": ("keys.yaml", 8103, {"HX__LEDGER__ENABLED": "false"}),
    "with both": ("keys.yaml", 8104, {}),
}
ENVOY = "envoy"
_ENVOY_US = 29.5


def used_s(pid: int, children: bool = False) -> float:
    """CPU seconds of all threads of a process, to the nanosecond; where asked, of those of its children, too."""
    threads = [task for one in (tree(pid) if children else [pid]) for task in Path(f"/proc/{one}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def put_aside(state: Path, core: int) -> None:
    """Move what ships the journal beside a serving process to another core, as soon as it has told its state."""
    give_up_s = time.monotonic() + 30.0
    while (told := read_state(state)) is None:
        if time.monotonic() > give_up_s:
            sys.exit(f"no housekeeper told its state in {state}")
        time.sleep(0.1)
    for task in Path(f"/proc/{told['pid']}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def cheap(found: list[float]) -> float:
    """The mean of the cheapest quarter."""
    return fmean(sorted(found)[: max(1, len(found) // 4)])


def round_us(folder: Path, pid: int, port: int, seconds: float, core: str, children: bool = False) -> float:
    """Microseconds of the serving process for one chat."""
    generator = ["taskset", "-c", core, str(folder / "loadgen"), "-p", str(port), "-d", str(seconds), "-u", "0.5", "-k", KEY]
    with subprocess.Popen([*generator, *WORKLOADS["chat"][0]], stdout=subprocess.PIPE, text=True) as load:
        time.sleep(0.5)
        before_s, began_s = used_s(pid, children), time.monotonic()
        time.sleep(seconds)
        spent_s = (used_s(pid, children) - before_s) * seconds / (time.monotonic() - began_s)
        figures = json.loads(load.communicate()[0])
    if figures["bad"] or figures["non200"] or figures["connerr"]:
        print("a round with failures:", figures)
    return 1e6 * spent_s / max(1, figures["ok"])


def metrics_us(rounds: int = 9, count: int = 20_000) -> float:
    """Microseconds of the metrics for one chat."""
    metrics, exchange = Metrics(), a_chat()
    found = []
    for _ in range(rounds):
        before_s = time.process_time()
        for _ in range(count):
            metrics.attempted(exchange, None)
            metrics.finished(exchange)
        found.append((time.process_time() - before_s) / count * 1e6)
    return min(found)


def one_set(folder: Path, seen: dict[str, list[float]], rounds: int, seconds: float, cores: tuple[str, str]) -> None:
    """Start one gateway of each kind and ask them in turns."""
    with ExitStack() as stack:
        states = stack.enter_context(tempfile.TemporaryDirectory())
        pids = {}
        for name, (settings, port, more) in VARIANTS.items():
            own = {**more, "HX__SERVICE__PORT": str(port), "XDG_STATE_HOME": f"{states}/{port}"}
            with patch.dict(os.environ, own):
                command = [sys.executable, "-m", "hx_gateway", "serve", str(HERE / settings)]
                pids[name] = stack.enter_context(started(command, cores[0], folder / f"keys-{port}.log"))
            if not up(port):
                sys.exit(f"the gateway {name} did not come up, see {folder}/keys-{port}.log")
            put_aside(Path(states, str(port), "hx-gateway"), int(cores[1]))
        ports = {name: port for name, (_, port, _) in VARIANTS.items()}
        for name, peer in (peers([ENVOY], folder) if ENVOY in seen else {}).items():
            pids[name], ports[name] = stack.enter_context(started(peer.command, cores[0], folder / "keys-envoy.log")), peer.port
            if not up(peer.port):
                sys.exit(f"{name} did not come up, see {folder}/keys-envoy.log")
        for _ in range(rounds):
            for name, port in ports.items():
                seen[name].append(round_us(folder, pids[name], port, seconds, cores[1], name == ENVOY))


def main() -> None:
    """Read the command line, measure and print."""
    asked = argparse.ArgumentParser(prog="python -m bench.keys", description=__doc__)
    asked.add_argument("--sets", type=int, default=6)
    asked.add_argument("--rounds", type=int, default=8, help="with each set")
    asked.add_argument("--seconds", type=float, default=0.8)
    asked.add_argument("--cores", default="0,1", help="core of the gateways, core of load and upstream")
    asked.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "hx-bench", help="for programs and logs")
    asked.add_argument("--no-envoy", action="store_true", help="where it cannot be had")
    options = asked.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    built(folder)
    core, other = options.cores.split(",")
    seen: dict[str, list[float]] = {name: [] for name in (*VARIANTS, *([] if options.no_envoy else [ENVOY]))}
    with ExitStack() as stack:
        stack.enter_context(started([str(folder / "mock"), *UPSTREAM_PORTS], other, folder / "mock.log"))
        for number in range(options.sets):
            one_set(folder, seen, options.rounds, options.seconds, (core, other))
            print(
                f"set {number + 1}: " + ", ".join(f"{name} {cheap(found[-options.rounds :]):.1f}" for name, found in seen.items()),
                flush=True,
            )
    bare, metrics = seen["bare key"], metrics_us()
    print()
    for name, found in seen.items():
        over = cheap(found) - cheap(bare)
        middle = median(one - first for one, first in zip(found, bare, strict=True))
        print(f"{name:18} {cheap(found):6.1f} us CPU a chat, {over:+5.1f} over the bare key (median of all rounds: {middle:+.1f})")
    total = cheap(seen["with both"]) - cheap(bare) + metrics
    print(f"metrics, part of all of these: {metrics:.1f} us. Limits, journal and metrics over a bare key check: {total:.1f} us")
    if ENVOY in seen:
        scale = _ENVOY_US / cheap(seen[ENVOY])
        print(f"where envoy takes {_ENVOY_US} us for a chat: {total * scale:.1f} us; this machine's time counts {scale:.2f}")


if __name__ == "__main__":
    main()
